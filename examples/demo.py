"""Three support desks, one model: tune a profile for each, serve them, and ask all three at once.

`make demo` runs it and leaves the server running until Ctrl-C; `make demo ONCE=1` ends by itself. Everything that it
writes is in demo-data/. It ends with exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from demo_server import (
    XPEFT,
    Tenant,
    call,
    console,
    fail,
    make_tenants,
    run_to_the_end,
    running_server,
    say,
    scrape,
    show_metrics,
    stay,
    step,
    tuning_bar,
    upload,
)
from rich.table import Table
from rich.text import Text

from xpeft_profiles import write_profile_file
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.file import write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.settings import Settings
from xpeft_tuning.dataset import read_dataset
from xpeft_tuning.mask_tuner import TunedProfile, tune_profile
from xpeft_tuning.settings import TuningSettings

EXAMPLES = Path(__file__).resolve().parent
DATA = EXAMPLES.parent / "demo-data"
DESKS = ("airline", "bank", "clinic")
BANK = "random:N=100,R=48,seed=0,std=0.1"


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop the server at the end instead of leaving it on.")] = False,
    plm: Annotated[str, typer.Option(help="Language model: a path or a hub id.")] = Settings().plm,
) -> None:
    """Tune three profiles, serve them, and classify the same messages with all three at once."""
    started = time.monotonic()
    run_to_the_end(lambda: run(plm, once=once, started=started))


def run(plm_name: str, *, once: bool, started: float) -> None:
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    step("1", "One frozen language model, one bank of random adapters, shared by everybody")
    plm = load_plm(plm_name)
    bank = open_bank(BANK, plm.facts)
    write_bank_file(bank, DATA / "bank.safetensors")
    say(f"{plm.name}: {bank.blocks} blocks of width {bank.hidden}; nothing in it will change")
    say(f"demo-data/bank.safetensors: {bank.adapters} adapters for each block, {bank.nbytes / 1e6:.0f} MB, once")
    step("2", "A profile for each desk: which adapters it chooses, and a head for its own labels")
    tuned = {name: tune_desk(plm, bank, name) for name in DESKS}
    show_tuned(tuned)
    desks, operator_key = make_tenants(tuned, profile="desk", folder=DATA)
    step("3", "One server for all of them: SQLite, a key for each tenant")
    with running_server(DATA, plm=plm_name) as server:
        say(f"xpeft serve listens at {server.url}; its log is demo-data/server.log")
        with httpx.Client(base_url=server.url, timeout=60) as client:
            show_server(desks, operator_key, client)
        say(f"All of this took {time.monotonic() - started:.0f} seconds.")
        if not once:
            show_commands(desks[0], operator_key, url=server.url, plm=plm_name)
            stay(server)
    say("The server was asked to stop (SIGTERM) and ended with exit code 0.")


def tune_desk(plm: Plm, bank: Bank, name: str) -> TunedProfile:
    dataset, settings = read_dataset(EXAMPLES / f"{name}.jsonl"), TuningSettings(description=f"{name} support desk")
    with tuning_bar(name) as show:
        return tune_profile(plm, bank, dataset, settings, show)


def show_tuned(tuned: dict[str, TunedProfile]) -> None:
    table = Table("desk", "labels", "tuned on", "held out", "majority", "head alone", "profile", "bytes")
    for name, result in tuned.items():
        if result.held_out is None or result.head_alone is None:
            fail(f"{name}: no messages are held out")
        share, alone, accuracy = result.majority, result.head_alone.accuracy, result.held_out.accuracy
        counts = (str(result.train.rows), str(result.held_out.rows))
        size = f"{len(write_profile_file(result.profile)):,}"
        labels = ", ".join(result.profile.labels or ())
        table.add_row(name, labels, *counts, f"{share:.2f}", f"{alone:.2f}", f"[bold]{accuracy:.2f}", size)
        if accuracy <= share:
            fail(f"{name}: held-out accuracy {accuracy:.2f} is not above the majority's share {share:.2f}")
    console.print(table)
    say("Accuracies are on held-out messages, as served; where a head alone has the same, masks add nothing.")


def show_server(desks: list[Tenant], operator_key: str, client: httpx.Client) -> None:
    before = scrape(client, operator_key)
    step("4", "Each desk uploads its profile over HTTP, with its own key")
    for desk in desks:
        upload(desk, client)
    step("5", "The same messages, asked of all three desks at once")
    messages = [row["text"] for row in map(json.loads, (EXAMPLES / "shared.jsonl").read_text("utf-8").splitlines())]
    show_answers(desks, messages, ask_everybody(desks, messages, client))
    step("6", "What the server counted meanwhile (GET /metrics, with the operator's key)")
    classified = 'xpeft_requests_total{outcome="ok",route="/v1/classify"}'
    uploaded = 'xpeft_profile_uploads_total{outcome="created"}'
    expected = {classified: len(desks) * len(messages), uploaded: len(desks)}
    show_metrics(before, scrape(client, operator_key), expected)
    step("7", "A desk sees its own profiles and nobody else's")
    for desk, other in zip(desks, [*desks[1:], desks[0]], strict=True):
        answer = call(client, "GET", f"/v1/profiles/{other.profile}", desk.key, expect=(404,))
        say(f"{desk.name} asks for {other.profile}: 404, {answer.json()['error']['message']}")


def ask_everybody(desks: list[Tenant], messages: list[str], client: httpx.Client) -> list[list[dict[str, Any]]]:
    """Every message of every desk as a request of its own, all at once; answers by message, then desk."""

    def ask(message: str, desk: Tenant) -> dict[str, Any]:
        document = {"profile": desk.profile, "input": message}
        return dict(call(client, "POST", "/v1/classify", desk.key, document=document).json()["data"][0])

    with ThreadPoolExecutor(len(desks) * len(messages)) as pool:
        waiting = [[pool.submit(ask, message, desk) for desk in desks] for message in messages]
        return [[each.result() for each in row] for row in waiting]


def show_answers(desks: list[Tenant], messages: list[str], answers: list[list[dict[str, Any]]]) -> None:
    table = Table("message", *(desk.name for desk in desks), show_lines=True)
    for message, row in zip(messages, answers, strict=True):
        for desk, each in zip(desks, row, strict=True):
            if each["label"] not in (desk.tuned.profile.labels or ()):
                fail(f"{desk.profile} answered with {each['label']!r}, which is not one of its labels")
        table.add_row(Text(message), *(f"[bold]{each['label']}[/bold] {each['score']:.2f}" for each in row))
    console.print(table)


def show_commands(desk: Tenant, operator_key: str, *, url: str, plm: str) -> None:
    console.rule("The server stays on until Ctrl-C; try it from another terminal")
    for line in (
        f"export KEY={desk.key}  # {desk.name}'s, admin",
        f"curl -s {url}/v1/classify -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' \\",
        f'  -d \'{{"profile": "{desk.profile}", "input": "I need to change the date."}}\'',
        f"curl -s {url}/metrics -H 'Authorization: Bearer {operator_key}'",
        f"{XPEFT} tune --plm {plm} --bank {DATA / 'bank.safetensors'} \\",
        f"  --data {EXAMPLES / 'clinic.jsonl'} --url {url} --api-key $KEY --profile another-desk",
    ):
        console.print(Text(line), soft_wrap=True)


if __name__ == "__main__":
    typer.run(demo)
