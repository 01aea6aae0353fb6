"""Three support desks, one model: tune a profile for each, serve them, and ask all three at once.

`make demo` runs it and leaves the server running until Ctrl-C; `make demo ONCE=1` ends by itself. Everything that it
writes is in demo-data/. It ends with exit code 1 if anything is not as it should be.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from xpeft_profiles import write_profile_file
from xpeft_server.api.auth import Role
from xpeft_server.api.key_file import new_key, write_keys
from xpeft_server.model.bank import Bank
from xpeft_server.model.bank_file import write_bank_file
from xpeft_server.model.bank_source import open_bank
from xpeft_server.model.errors import ModelError
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.settings import Settings
from xpeft_tuning.dataset import read_dataset
from xpeft_tuning.errors import TuningError
from xpeft_tuning.mask_tuner import TunedProfile, TuningProgress, tune_profile
from xpeft_tuning.settings import TuningSettings

EXAMPLES = Path(__file__).resolve().parent
DATA = EXAMPLES.parent / "demo-data"
XPEFT = str(Path(sys.executable).with_name("xpeft"))
DESKS = ("airline", "bank", "clinic")
BANK = "random:N=100,R=48,seed=0,std=0.1"

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class DemoFailed(Exception):
    """Something is not as it should be; the message says what."""


@dataclass(frozen=True)
class Desk:
    """A tenant of the server, the profile that it uploads, and its key."""

    tenant: str
    profile: str
    key: str
    tuned: TunedProfile


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop the server at the end instead of leaving it on.")] = False,
    plm: Annotated[str, typer.Option(help="Language model: a path or a hub id.")] = Settings().plm,
) -> None:
    """Tune three profiles, serve them, and classify the same messages with all three at once."""
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: who starts this in the background may have it ignored
        signal.signal(number, signal.default_int_handler)
    try:
        run(plm, once=once, started=time.monotonic())
    except (DemoFailed, httpx.HTTPError, ModelError, TuningError) as failure:
        console.print(Text(f"\nThe demo failed: {failure}", style="bold red"))
        raise typer.Exit(1) from None


def run(plm_name: str, *, once: bool, started: float) -> None:
    shutil.rmtree(DATA, ignore_errors=True)
    DATA.mkdir()
    step("1", "One frozen language model, one bank of random adapters, shared by everybody")
    plm = load_plm(plm_name)
    bank = open_bank(BANK, plm.facts)
    write_bank_file(bank, DATA / "bank.safetensors")
    say(f"{plm.name}: {bank.blocks} blocks of width {bank.hidden}; nothing in it will change")
    say(f"demo-data/bank.safetensors: {bank.adapters} adapters for each block, {bank.nbytes / 1e6:.0f} MB, once")
    desks, operator_key = make_desks(plm, bank)
    step("3", "One server for all of them: SQLite, a key for each tenant")
    with running_server(plm_name) as (server, url):
        say(f"xpeft serve listens at {url}; its log is demo-data/server.log")
        with httpx.Client(base_url=url, timeout=60) as client:
            show_server(desks, operator_key, client)
        say(f"All of this took {time.monotonic() - started:.0f} seconds.")
        if not once:
            stay(server, desks[0], operator_key, url=url, plm=plm_name)
    say("The server was asked to stop (SIGTERM) and ended with exit code 0.")


def make_desks(plm: Plm, bank: Bank) -> tuple[list[Desk], str]:
    """Tune, check and write a profile for each desk; the operator's key comes with them."""
    step("2", "A profile for each desk: which adapters it chooses, and a head for its own labels")
    tuned = {name: tune_desk(plm, bank, name) for name in DESKS}
    show_tuned(tuned)
    keys = {name: new_key(id=name, tenant=name, role=Role.ADMIN, expires=None) for name in DESKS}
    operator_key, operator = new_key(id="operator", tenant=None, role=Role.OPERATOR, expires=None)
    write_keys(DATA / "keys.json", [*(entry for _, entry in keys.values()), operator])
    desks = [Desk(name, f"{name}-desk", keys[name][0], result) for name, result in tuned.items()]
    for desk in desks:
        (DATA / f"{desk.profile}.safetensors").write_bytes(write_profile_file(desk.tuned.profile))
    return desks, operator_key


def tune_desk(plm: Plm, bank: Bank, name: str) -> TunedProfile:
    dataset, settings = read_dataset(EXAMPLES / f"{name}.jsonl"), TuningSettings(description=f"{name} support desk")
    with Progress(console=console) as bar:
        task = bar.add_task(f"  {name}")

        def show(progress: TuningProgress) -> None:
            total, done = progress.epochs * progress.steps, (progress.epoch - 1) * progress.steps + progress.step
            bar.update(task, total=total, completed=done, description=f"  {name:8} loss {progress.loss:.3f}")

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


@contextmanager
def running_server(plm_name: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`xpeft serve` on a free port; stopped at the end, which has to be a clean one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XPEFT_")}
    environment |= {"XPEFT_PLM": plm_name, "XPEFT_BANK": str(DATA / "bank.safetensors"), "XPEFT_PORT": "0"}
    environment |= {"XPEFT_STORE": f"sqlite:///{DATA / 'profiles.db'}", "XPEFT_API_KEYS": str(DATA / "keys.json")}
    with (DATA / "server.log").open("w", encoding="utf-8") as log:
        # A session of its own: Ctrl-C reaches the demo, which then stops the server as one would.
        server = subprocess.Popen(
            [XPEFT, "serve"], env=environment, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    try:
        with killed_after_a_minute(server):
            url = wait_until_ready(server)
        yield server, url
    finally:
        server.terminate()
        with killed_after_a_minute(server):
            code = server.wait()
    if code != 0:
        fail(f"the server ended with exit code {code}; see {DATA / 'server.log'}")


def wait_until_ready(server: subprocess.Popen[str]) -> str:
    """The URL that the server announces, once it is ready."""
    announced = re.search(r"serves at (\S+)", next(iter(server.stdout or []), ""))
    if announced is None:
        fail(f"the server did not start; see {DATA / 'server.log'}")
    while httpx.get(f"{announced[1]}/ready").status_code != httpx.codes.OK and server.poll() is None:
        time.sleep(0.1)
    return announced[1]


@contextmanager
def killed_after_a_minute(server: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(60, server.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def show_server(desks: list[Desk], operator_key: str, server: httpx.Client) -> None:
    before = scrape(server, operator_key)
    step("4", "Each desk uploads its profile over HTTP, with its own key")
    for desk in desks:
        upload(desk, server)
    step("5", "The same messages, asked of all three desks at once")
    messages = [row["text"] for row in map(json.loads, (EXAMPLES / "shared.jsonl").read_text("utf-8").splitlines())]
    show_answers(desks, messages, ask_everybody(desks, messages, server))
    step("6", "What the server counted meanwhile (GET /metrics, with the operator's key)")
    show_metrics(before, scrape(server, operator_key), answers=len(desks) * len(messages), uploads=len(desks))
    step("7", "A desk sees its own profiles and nobody else's")
    for desk, other in zip(desks, [*desks[1:], desks[0]], strict=True):
        answer = call(server, "GET", f"/v1/profiles/{other.profile}", desk.key, expect=404)
        say(f"{desk.tenant} asks for {other.profile}: 404, {answer.json()['error']['message']}")


def call(
    server: httpx.Client, method: str, path: str, key: str, kind: str = "", body: bytes | None = None, expect: int = 200
) -> httpx.Response:
    """One request with a key; the answer has to have the status that is expected."""
    headers = {"Authorization": f"Bearer {key}"} | ({"Content-Type": kind} if kind else {})
    answer = server.request(method, path, headers=headers, content=body)
    if answer.status_code != expect:
        fail(f"{method} {path} was answered with {answer.status_code}, expected {expect}: {answer.text}")
    return answer


def upload(desk: Desk, server: httpx.Client) -> None:
    path, file = f"/v1/profiles/{desk.profile}", (DATA / f"{desk.profile}.safetensors").read_bytes()
    version = call(server, "PUT", path, desk.key, "application/octet-stream", file, 201).headers["etag"].strip('"')
    if version != desk.tuned.profile.version:
        fail(f"{desk.profile} is stored as {version}, uploaded was {desk.tuned.profile.version}")
    say(f"PUT {path}: 201, version {version[:19]}…")


def ask_everybody(desks: list[Desk], messages: list[str], server: httpx.Client) -> list[list[dict[str, Any]]]:
    """Every message of every desk as a request of its own, all at once; answers by message, then desk."""

    def ask(message: str, desk: Desk) -> dict[str, Any]:
        body = json.dumps({"profile": desk.profile, "input": message}).encode()
        return dict(call(server, "POST", "/v1/classify", desk.key, "application/json", body).json()["data"][0])

    with ThreadPoolExecutor(len(desks) * len(messages)) as pool:
        waiting = [[pool.submit(ask, message, desk) for desk in desks] for message in messages]
        return [[each.result() for each in row] for row in waiting]


def show_answers(desks: list[Desk], messages: list[str], answers: list[list[dict[str, Any]]]) -> None:
    table = Table("message", *(desk.tenant for desk in desks), show_lines=True)
    for message, row in zip(messages, answers, strict=True):
        for desk, each in zip(desks, row, strict=True):
            if each["label"] not in (desk.tuned.profile.labels or ()):
                fail(f"{desk.profile} answered with {each['label']!r}, which is no label of its")
        table.add_row(Text(message), *(f"[bold]{each['label']}[/bold] {each['score']:.2f}" for each in row))
    console.print(table)


def scrape(server: httpx.Client, operator_key: str) -> dict[str, float]:
    """Series → value; of histograms only the counts."""
    text = call(server, "GET", "/metrics", operator_key).text
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("xpeft_"))
    return {series: float(value) for series, value in lines if "_bucket{" not in series and not series.endswith("_sum")}


def show_metrics(before: dict[str, float], after: dict[str, float], *, answers: int, uploads: int) -> None:
    table = Table("metric", "before", "after")
    moved = {series for series, value in after.items() if value != before.get(series, 0.0) and "seconds" not in series}
    for series in sorted(moved):
        table.add_row(Text(series), f"{before.get(series, 0.0):g}", f"{after[series]:g}")
    console.print(table)
    classified, uploaded = (
        'requests_total{outcome="ok",route="/v1/classify"}',
        'profile_uploads_total{outcome="created"}',
    )
    for series, by in ((f"xpeft_{classified}", answers), (f"xpeft_{uploaded}", uploads)):
        if after.get(series, 0.0) - before.get(series, 0.0) != by:
            fail(f"{series} went from {before.get(series)} to {after.get(series)}, expected {by} more")


def stay(server: subprocess.Popen[str], desk: Desk, operator_key: str, *, url: str, plm: str) -> None:
    """Leave the server on until Ctrl-C."""
    console.rule("The server stays on until Ctrl-C; try it from another terminal")
    for line in (
        f"export KEY={desk.key}  # {desk.tenant}'s, admin",
        f"curl -s {url}/v1/classify -H \"Authorization: Bearer $KEY\" -H 'Content-Type: application/json' \\",
        f'  -d \'{{"profile": "{desk.profile}", "input": "I need to change the date."}}\'',
        f"curl -s {url}/metrics -H 'Authorization: Bearer {operator_key}'",
        f"{XPEFT} tune --plm {plm} --bank {DATA / 'bank.safetensors'} \\",
        f"  --data {EXAMPLES / 'clinic.jsonl'} --url {url} --api-key $KEY --profile another-desk",
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


if __name__ == "__main__":
    typer.run(demo)
