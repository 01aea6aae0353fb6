"""Three support desks, one model: tune a profile for each, serve them, and ask all three at once.

`make demo` runs it and leaves the server running until Ctrl-C; `make demo ONCE=1` ends by itself. Everything that it
writes is in demo-data/. It ends with exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from xpeft_profiles import write_profile_file
from xpeft_server.api.auth import Role
from xpeft_server.api.key_file import new_key, write_keys
from xpeft_server.model.bank import Bank
from xpeft_server.model.bank_file import write_bank_file
from xpeft_server.model.bank_source import open_bank
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.settings import Settings
from xpeft_tuning.dataset import read_dataset
from xpeft_tuning.mask_tuner import TunedProfile, TuningProgress, tune_profile
from xpeft_tuning.settings import TuningSettings

EXAMPLES = Path(__file__).resolve().parent
DATA = EXAMPLES.parent / "demo-data"
DESKS = ("airline", "bank", "clinic")
BANK = "random:N=100,R=48,seed=0,std=0.1"
START_SECONDS = 120.0
STOP_SECONDS = 30.0

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class DemoFailed(Exception):
    """Something is not as it should be; the message says what."""


@dataclass(frozen=True)
class Desk:
    """A tenant of the server, the profile that it uploads, and its key."""

    tenant: str
    profile: str
    file: Path
    key: str
    tuned: TunedProfile

    @property
    def client_headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop the server at the end instead of leaving it on.")] = False,
    plm: Annotated[str, typer.Option(help="Language model: a path or a hub id.")] = Settings().plm,
) -> None:
    """Tune three profiles, serve them, and classify the same messages with all three at once."""
    signal.signal(signal.SIGTERM, _interrupted)
    started = time.monotonic()
    try:
        _run(plm, once=once, started=started)
    except DemoFailed as failure:
        console.print(Text(f"\nThe demo failed: {failure}", style="bold red"))
        raise typer.Exit(1) from None


def _run(plm_name: str, *, once: bool, started: float) -> None:
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    step("1", "One frozen language model, one bank of random adapters, shared by everybody")
    plm = load_plm(plm_name)
    bank = open_bank(BANK, plm.facts)
    write_bank_file(bank, DATA / "bank.safetensors")
    facts = plm.facts
    say(f"{plm.name}: {facts.model_type}, {facts.blocks} blocks of width {facts.hidden}; nothing in it will change")
    say(f"demo-data/bank.safetensors: {bank.adapters} adapters for each block, {bank.nbytes / 1e6:.0f} MB, once")
    desks, operator_key = make_desks(plm, bank)
    step("3", "One server for all of them: SQLite, a key for each tenant")
    with running_server(plm_name) as (server, url):
        say(f"xpeft serve listens at {url}; its log is demo-data/server.log")
        show_server(desks, operator_key, url)
        say(f"All of this took {time.monotonic() - started:.0f} seconds.")
        if not once:
            stay(server, desks, operator_key, url)
    say("The server was asked to stop (SIGTERM) and ended with exit code 0.")


def make_desks(plm: Plm, bank: Bank) -> tuple[list[Desk], str]:
    """Tune, check and write a profile for each desk; the operator's key comes with them."""
    step("2", "A profile for each desk: which adapters it chooses, and a head for its own labels")
    tuned = {name: tune_desk(plm, bank, name) for name in DESKS}
    show_tuned(tuned)
    keys = {name: new_key(id=name, tenant=name, role=Role.ADMIN, expires=None) for name in DESKS}
    operator_key, operator = new_key(id="operator", tenant=None, role=Role.OPERATOR, expires=None)
    write_keys(DATA / "keys.json", [*(entry for _, entry in keys.values()), operator])
    desks = []
    for name, result in tuned.items():
        file = DATA / f"{name}.safetensors"
        file.write_bytes(write_profile_file(result.profile))
        desks.append(Desk(name, f"{name}-desk", file, keys[name][0], result))
    return desks, operator_key


def tune_desk(plm: Plm, bank: Bank, name: str) -> TunedProfile:
    dataset = read_dataset(EXAMPLES / f"{name}.jsonl")
    columns = (TextColumn(f"  {name:8}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(name, state="")

        def show(progress: TuningProgress) -> None:
            total, done = progress.epochs * progress.steps, (progress.epoch - 1) * progress.steps + progress.step
            bar.update(task, total=total, completed=done, state=f"epoch {progress.epoch:2} loss {progress.loss:.3f}")

        return tune_profile(plm, bank, dataset, TuningSettings(description=f"{name} support desk"), show)


def show_tuned(tuned: dict[str, TunedProfile]) -> None:
    table = Table(
        "desk", "labels", "messages", "held out", "majority", "head alone", "profile", "bytes", title_style=""
    )
    for name, result in tuned.items():
        if result.held_out is None or result.head_alone is None:
            fail(f"{name}: no messages are held out")
        labels = result.profile.labels or ()
        share, alone, accuracy = result.majority, result.head_alone.accuracy, result.held_out.accuracy
        size = len(write_profile_file(result.profile))
        rows = (str(result.train.rows), str(result.held_out.rows))
        table.add_row(
            name, ", ".join(labels), *rows, f"{share:.2f}", f"{alone:.2f}", f"[bold]{accuracy:.2f}", f"{size:,}"
        )
        if accuracy <= share:
            fail(f"{name}: held-out accuracy {accuracy:.2f} is not above the majority's share {share:.2f}")
    console.print(table)
    say("Accuracies are on held-out messages, by the profile exactly as it will be served.")


@contextmanager
def running_server(plm_name: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`xpeft serve` on a free port; stopped at the end, which has to be a clean one."""
    options = {
        "--plm": plm_name,
        "--bank": str(DATA / "bank.safetensors"),
        "--store": f"sqlite:///{DATA / 'profiles.db'}",
        "--api-keys": str(DATA / "keys.json"),
        "--port": "0",
    }
    command = [
        str(Path(sys.executable).with_name("xpeft")),
        "serve",
        *(word for pair in options.items() for word in pair),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XPEFT_")}
    with (DATA / "server.log").open("w", encoding="utf-8") as log:
        # A session of its own: Ctrl-C reaches the demo, which then stops the server as one would.
        server = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    watchdog = threading.Timer(START_SECONDS, server.kill)
    watchdog.start()
    try:
        url = wait_until_ready(server)
        watchdog.cancel()
        yield server, url
    finally:
        watchdog.cancel()
        code = stop(server)
    if code != 0:
        fail(f"the server ended with exit code {code}; see {DATA / 'server.log'}")


def wait_until_ready(server: subprocess.Popen[str]) -> str:
    """The URL that the server announces, once it is ready."""
    if server.stdout is None:
        fail("the server has no output to read")
    for line in server.stdout:
        _, found, rest = line.partition("xpeft serves at ")
        if found:
            url = rest.split()[0]
            while httpx.get(f"{url}/ready").status_code != httpx.codes.OK and server.poll() is None:
                time.sleep(0.1)
            return url
    fail(f"the server did not start; see {DATA / 'server.log'}")


def stop(server: subprocess.Popen[str]) -> int:
    if server.poll() is None:
        server.terminate()
    try:
        return server.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        server.kill()
        return server.wait()


def show_server(desks: list[Desk], operator_key: str, url: str) -> None:
    before = scrape(url, operator_key)
    step("4", "Each desk uploads its profile over HTTP, with its own key")
    for desk in desks:
        upload(desk, url)
    step("5", "The same messages, asked of all three desks at once: one mixed batch after the other")
    messages = [row["text"] for row in map(json.loads, (EXAMPLES / "shared.jsonl").read_text("utf-8").splitlines())]
    show_answers(desks, messages, asyncio.run(ask_everybody(desks, messages, url)))
    step("6", "What the server counted meanwhile (GET /metrics, with the operator's key)")
    show_metrics(before, scrape(url, operator_key), answers=len(desks) * len(messages), uploads=len(desks))
    step("7", "A desk sees its own profiles and nobody else's")
    for desk, other in zip(desks, [*desks[1:], desks[0]], strict=True):
        show_stranger(desk, other, url)


def upload(desk: Desk, url: str) -> None:
    headers = {**desk.client_headers, "Content-Type": "application/octet-stream"}
    answer = httpx.put(f"{url}/v1/profiles/{desk.profile}", content=desk.file.read_bytes(), headers=headers)
    version = answer.headers.get("etag", "").strip('"')
    if answer.status_code != httpx.codes.CREATED or version != desk.tuned.profile.version:
        fail(f"PUT {desk.profile} was answered with {answer.status_code}: {answer.text}")
    say(f"PUT /v1/profiles/{desk.profile}: 201, version {version[:19]}…")


async def ask_everybody(desks: list[Desk], messages: list[str], url: str) -> list[list[dict[str, Any]]]:
    """Every message of every desk as a request of its own, all at once; answers by message, then desk."""
    async with httpx.AsyncClient(timeout=60) as client:

        async def ask(desk: Desk, message: str) -> dict[str, Any]:
            body = {"profile": desk.profile, "input": message}
            answer = await client.post(f"{url}/v1/classify", json=body, headers=desk.client_headers)
            if answer.status_code != httpx.codes.OK:
                fail(f"classify with {desk.profile} was answered with {answer.status_code}: {answer.text}")
            data: dict[str, Any] = answer.json()["data"][0]
            return data

        flat = await asyncio.gather(*(ask(desk, message) for message in messages for desk in desks))
    return [flat[start : start + len(desks)] for start in range(0, len(flat), len(desks))]


def show_answers(desks: list[Desk], messages: list[str], answers: list[list[dict[str, Any]]]) -> None:
    table = Table("message", *(desk.tenant for desk in desks), show_lines=True)
    for message, row in zip(messages, answers, strict=True):
        for desk, each in zip(desks, row, strict=True):
            if each["label"] not in (desk.tuned.profile.labels or ()):
                fail(f"{desk.profile} answered with {each['label']!r}, which is no label of its")
        table.add_row(Text(message), *(f"[bold]{each['label']}[/bold] {each['score']:.2f}" for each in row))
    console.print(table)


def scrape(url: str, operator_key: str) -> dict[str, float]:
    """Series → value, without the buckets of histograms."""
    answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {operator_key}"})
    if answer.status_code != httpx.codes.OK:
        fail(f"GET /metrics was answered with {answer.status_code}: {answer.text}")
    lines = (line.rsplit(" ", 1) for line in answer.text.splitlines() if line.startswith("xpeft_"))
    return {series: float(value) for series, value in lines if "_bucket{" not in series}


def show_metrics(before: dict[str, float], after: dict[str, float], *, answers: int, uploads: int) -> None:
    table = Table("metric", "before", "after")
    for series, value in after.items():
        if value != before.get(series, 0.0) and not series.endswith("_sum") and "seconds" not in series:
            table.add_row(Text(series), f"{before.get(series, 0.0):g}", f"{value:g}")
    console.print(table)
    for series, by in (
        ('xpeft_requests_total{outcome="ok",route="/v1/classify"}', answers),
        ('xpeft_profile_uploads_total{outcome="created"}', uploads),
    ):
        if after.get(series, 0.0) - before.get(series, 0.0) != by:
            fail(f"{series} went from {before.get(series)} to {after.get(series)}, expected {by} more")


def show_stranger(desk: Desk, other: Desk, url: str) -> None:
    answer = httpx.get(f"{url}/v1/profiles/{other.profile}", headers=desk.client_headers)
    if answer.status_code != httpx.codes.NOT_FOUND:
        fail(f"{desk.tenant} asked for {other.profile} and got {answer.status_code}, expected 404")
    say(f"{desk.tenant} asks for {other.profile}: 404, {answer.json()['error']['message']}")


def stay(server: subprocess.Popen[str], desks: list[Desk], operator_key: str, url: str) -> None:
    """Leave the server on until Ctrl-C."""
    desk = desks[0]
    console.rule("The server stays on until Ctrl-C; try it from another terminal")
    for line in (
        f"export KEY={desk.key}  # {desk.tenant}'s, admin",
        f"curl -s {url}/v1/classify -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' \\",
        f'  -d \'{{"profile": "{desk.profile}", "input": "I need to change the date."}}\'',
        f'curl -s {url}/v1/profiles -H "Authorization: Bearer $KEY"',
        f"curl -s {url}/metrics -H 'Authorization: Bearer {operator_key}'",
        f"xpeft tune --data examples/{desk.tenant}.jsonl --bank demo-data/bank.safetensors \\",
        f"  --url {url} --api-key $KEY --profile another-desk",
    ):
        console.print(Text(line), soft_wrap=True)
    try:
        code = server.wait()
    except KeyboardInterrupt:
        return
    fail(f"the server ended by itself with exit code {code}; see {DATA / 'server.log'}")


def step(number: str, title: str) -> None:
    console.print(f"\n[bold cyan]{number}[/bold cyan] [bold]{title}")


def say(line: str) -> None:
    console.print(Text("  " + line))


def fail(message: str) -> NoReturn:
    raise DemoFailed(message)


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    typer.run(demo)
