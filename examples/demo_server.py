"""What the demos share: a server with tenants, from its start to its clean end, and how its answers are checked."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import httpx
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from xpeft_profiles import write_profile_file
from xpeft_server.api.access.auth import Role
from xpeft_server.api.access.key_file import new_key, write_keys
from xpeft_server.model.errors import ModelError
from xpeft_tuning.errors import TuningError
from xpeft_tuning.mask_tuner import TunedProfile, TuningProgress

XPEFT = str(Path(sys.executable).with_name("xpeft"))

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


class DemoFailed(Exception):
    """Something is not as it should be; the message says what."""


@dataclass(frozen=True)
class Tenant:
    """A tenant of the server, its key, and the profile that it uploads from ``file``."""

    name: str
    key: str
    profile: str
    file: Path
    tuned: TunedProfile


@dataclass(frozen=True)
class Server:
    """A server that runs, and where its log is."""

    process: subprocess.Popen[str]
    url: str
    log: Path


def run_to_the_end(demo: Callable[[], None]) -> None:
    """Whatever is not as it should be is told in a line; the exit code is then 1."""
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: who starts this in the background may have it ignored
        signal.signal(number, signal.default_int_handler)
    try:
        demo()
    except (DemoFailed, httpx.HTTPError, ModelError, TuningError) as failure:
        console.print(Text(f"\nThe demo failed: {failure}", style="bold red"))
        raise typer.Exit(1) from None


@contextmanager
def tuning_bar(name: str) -> Iterator[Callable[[TuningProgress], None]]:
    with Progress(console=console) as bar:
        task = bar.add_task(f"  {name}")

        def show(progress: TuningProgress) -> None:
            total, done = progress.epochs * progress.steps, (progress.epoch - 1) * progress.steps + progress.step
            bar.update(task, total=total, completed=done, description=f"  {name:8} loss {progress.loss:.3f}")

        yield show


def make_tenants(tuned: Mapping[str, TunedProfile], *, profile: str, folder: Path) -> tuple[list[Tenant], str]:
    """Write each tenant's profile and everybody's keys; the operator's key comes with the tenants.

    Args:
        tuned: by the tenant's name.
        profile: what the profiles' names end with, after the tenant's.
    """
    keys = {name: new_key(id=name, tenant=name, role=Role.ADMIN, expires=None) for name in tuned}
    operator_key, operator = new_key(id="operator", tenant=None, role=Role.OPERATOR, expires=None)
    write_keys(folder / "keys.json", [*(entry for _, entry in keys.values()), operator])
    tenants = []
    for name, result in tuned.items():
        file = folder / f"{name}-{profile}.safetensors"
        file.write_bytes(write_profile_file(result.profile))
        tenants.append(Tenant(name, keys[name][0], f"{name}-{profile}", file, result))
    return tenants, operator_key


@contextmanager
def running_server(folder: Path, **settings: str) -> Iterator[Server]:
    """`xpeft serve` on a free port, with what is in the folder; stopped at the end, which has to be a clean one."""
    log = folder / "server.log"
    settings |= {"bank": str(folder / "bank.safetensors"), "port": "0"}
    settings |= {"store": f"sqlite:///{folder / 'profiles.db'}", "api_keys": str(folder / "keys.json")}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XPEFT_")}
    environment |= {f"XPEFT_{name.upper()}": value for name, value in settings.items()}
    with log.open("w", encoding="utf-8") as stderr:
        # A session of its own: Ctrl-C reaches the demo, which then stops the server as one would.
        process = subprocess.Popen(
            [XPEFT, "serve"], env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
        )
    try:
        with _killed_after_a_minute(process):
            url = _wait_until_ready(process, log)
        yield Server(process, url, log)
    finally:
        process.terminate()
        with _killed_after_a_minute(process):
            code = process.wait()
    if code != 0:
        fail(f"the server ended with exit code {code}; see {log}")


def _wait_until_ready(process: subprocess.Popen[str], log: Path) -> str:
    """The URL that the server announces, once it is ready."""
    announced = re.search(r"serves at (\S+)", next(iter(process.stdout or []), ""))
    if announced is None:
        fail(f"the server did not start; see {log}")
    while httpx.get(f"{announced[1]}/ready").status_code != httpx.codes.OK and process.poll() is None:
        time.sleep(0.1)
    return announced[1]


@contextmanager
def _killed_after_a_minute(process: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(60, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def call(
    client: httpx.Client,
    method: str,
    path: str,
    key: str,
    *,
    document: object = None,
    file: bytes | None = None,
    expect: tuple[int, ...] = (200,),
) -> httpx.Response:
    """One request with a key, and a JSON document or a file; the answer has to have a status that is expected."""
    headers = {"Authorization": f"Bearer {key}"}
    if file is not None:
        headers["Content-Type"] = "application/octet-stream"
    answer = client.request(method, path, headers=headers, json=document, content=file)
    if answer.status_code not in expect:
        wanted = " or ".join(map(str, expect))
        fail(f"{method} {path} was answered with {answer.status_code}, expected {wanted}: {answer.text}")
    return answer


def upload(tenant: Tenant, client: httpx.Client) -> None:
    path = f"/v1/profiles/{tenant.profile}"
    answer = call(client, "PUT", path, tenant.key, file=tenant.file.read_bytes(), expect=(201,))
    version = answer.headers["etag"].strip('"')
    if version != tenant.tuned.profile.version:
        fail(f"{tenant.profile} is stored as {version}, uploaded was {tenant.tuned.profile.version}")
    say(f"PUT {path}: 201, version {version[:19]}…")


def scrape(client: httpx.Client, operator_key: str) -> dict[str, float]:
    """Series → value; of histograms only the counts."""
    text = call(client, "GET", "/metrics", operator_key).text
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("xpeft_"))
    return {series: float(value) for series, value in lines if "_bucket{" not in series and not series.endswith("_sum")}


def show_metrics(before: dict[str, float], after: dict[str, float], expected: Mapping[str, int]) -> None:
    """What moved; times only where they are expected to. Args: expected: series → by how much."""
    table = Table("metric", "before", "after")
    moved = {series for series, value in after.items() if value != before.get(series, 0.0)}
    for series in sorted(each for each in moved if "seconds" not in each or each in expected):
        table.add_row(Text(series), f"{before.get(series, 0.0):g}", f"{after[series]:g}")
    console.print(table)
    for series, by in expected.items():
        if after.get(series, 0.0) - before.get(series, 0.0) != by:
            fail(f"{series} went from {before.get(series)} to {after.get(series)}, expected {by} more")


def stay(server: Server) -> None:
    """Leave the server on until Ctrl-C."""
    try:
        code = server.process.wait()
    except KeyboardInterrupt:
        return
    fail(f"the server ended by itself with exit code {code}; see {server.log}")


def step(number: str, title: str) -> None:
    console.print(f"\n[bold cyan]{number}[/bold cyan] [bold]{title}")


def say(line: str) -> None:
    console.print(Text("  " + line))


def fail(message: str) -> NoReturn:
    raise DemoFailed(message)
