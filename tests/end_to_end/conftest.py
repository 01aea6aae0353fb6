"""A real `xpeft serve` over a tiny model, and a client that only knows HTTP."""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest

from xpeft_profiles import Profile, write_profile_file

WARM: Final = runpy.run_path(str(Path(__file__).parent.parent / "warm_programs.py"))

BANK = "random:N=12,R=8,seed=1,std=0.3"


class Fork:
    """A process of tests/warm_programs.py, as far as `subprocess.Popen` is like it.

    Args:
        folder: of the warm programs.
    """

    def __init__(self, folder: Path, words: list[str], *, stderr: int, environ: Mapping[str, str]) -> None:
        reading, writing = os.pipe()
        self.stdout = os.fdopen(reading)
        self.returncode: int | None = None
        with Path(os.devnull).open() as nothing:
            streams = [nothing.fileno(), writing, stderr]
            self.pid, self._status = WARM["begun"](folder, words, environment=environ, streams=streams)
        os.close(writing)

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("xpeft", timeout or 0)
            self.returncode = WARM["received"](self._status)
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """A server process; ``client`` is a plain HTTP client of it.

    Args:
        program: Python that ends in starting the command line; the installed one by default.
        warm: folder of the warm programs: the server is a fork of a process that has loaded PyTorch already. None: it
            starts from nothing.
        log: where its log goes; to the test's own standard error by default.
        environ: beside this process's own.
    """

    def __init__(
        self,
        *arguments: str,
        program: str | None = None,
        warm: Path | None = None,
        log: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        words = ["serve", "--port", "0", "--bank", BANK, *arguments]
        environment = {**os.environ, **(environ or {})}
        self.process: Fork | subprocess.Popen[str]
        self.log = log
        with contextlib.nullcontext() if log is None else log.open("ab") as errors:
            if warm is not None:
                begin = ["xpeft"] if program is None else ["python", _written(program, warm)]
                stderr = 2 if errors is None else errors.fileno()
                self.process = Fork(warm, [*begin, *words], stderr=stderr, environ=environment)
            else:
                xpeft = str(Path(sys.executable).with_name("xpeft"))
                begin = [xpeft] if program is None else [sys.executable, "-c", program]
                self.process = subprocess.Popen(
                    [*begin, *words], stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
                )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if "xpeft serves at" in line:
                self.address = line.split("xpeft serves at ")[1].split()[0]
                self.client = httpx.Client(base_url=self.address, timeout=30)
                return
        raise AssertionError(f"xpeft serve ended with {self.process.wait()} before it listened")

    def wait_until_ready(self, seconds: float = 60, *, status: int = 200) -> None:
        deadline = time.monotonic() + seconds
        while self.client.get("/ready").status_code != status:
            assert time.monotonic() < deadline, self.client.get("/ready").text
            time.sleep(0.02)

    def profile(self, seed: int, *, labels: int = 3) -> bytes:
        """A profile file that fits this server's bank."""
        bank = self.client.get("/info").json()["bank"]
        shape = (bank["blocks"], bank["adapters"])
        rng = np.random.default_rng(seed)
        masks = np.zeros((2, *shape), bool)
        for row in masks.reshape(-1, shape[1]):
            row[rng.choice(shape[1], 2, replace=False)] = True
        return write_profile_file(
            Profile(
                bank=bank["fingerprint"],
                mask_a=masks[0],
                mask_b=masks[1],
                head_weight=rng.normal(0, 1, (labels, bank["hidden"])).astype(np.float16),
                labels=tuple(f"label{number}" for number in range(labels)),
            )
        )

    def put(self, name: str, body: bytes, **headers: str) -> httpx.Response:
        return self.client.put(
            f"/v1/profiles/{name}", content=body, headers={"content-type": "application/octet-stream", **headers}
        )

    def classify(self, name: str, text: Any = "w1 w2 w3") -> httpx.Response:
        return self.client.post("/v1/classify", json={"profile": name, "input": text})

    def versions(self) -> dict[str, str]:
        """Name → version of every profile, page by page."""
        found: dict[str, str] = {}
        cursor: str | None = None
        while True:
            parameters = {"limit": 100} | ({"cursor": cursor} if cursor else {})
            page = self.client.get("/v1/profiles", params=parameters).json()
            found |= {each["name"]: each["version"] for each in page["data"]}
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    def metric(self, series: str, *, client: httpx.Client | None = None) -> float:
        """A series, by what stands behind ``xpeft_``, labels included. Asked with its own client unless another's."""
        page = (client or self.client).get("/metrics").text
        (value,) = re.findall(rf"^xpeft_{re.escape(series)} (\S+)$", page, re.MULTILINE)
        return float(value)

    def worker(self) -> int:
        """The process id of its one child, as soon as there is one."""
        deadline = time.monotonic() + 60
        while len(children := self.children()) != 1:
            assert time.monotonic() < deadline, children
            time.sleep(0.01)
        return children[0]

    def children(self) -> list[int]:
        children = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent, *_ = stat.read_text().rpartition(")")[2].split()
                if int(parent) == self.process.pid and state not in "ZX":
                    children.append(int(stat.parent.name))
        return children

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def stop(self) -> int:
        self.process.terminate()
        return self.end()

    def end(self) -> int:
        code = self.process.wait(30)
        self.client.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code


def _written(program: str, folder: Path) -> str:
    path = folder / f"{sha256(program.encode()).hexdigest()}.py"
    path.write_text(program)
    return str(path)


StartServer = Callable[..., Server]


class Lasting:
    """One server for many tests: where one of them ended it, the next gets it started anew.

    Args:
        start: starts it, over the same store each time.
    """

    def __init__(self, start: Callable[[], Server]) -> None:
        self._start = start
        self._server: Server | None = None

    def server(self) -> Server:
        """It, ready."""
        if self._server is None or self._server.process.poll() is not None:
            self._server = self._start()
        self._server.wait_until_ready()
        return self._server

    def close(self) -> None:
        if self._server is not None and self._server.process.poll() is None:
            assert self._server.stop() == 0


@pytest.fixture(scope="session")
def lasting() -> Callable[[Callable[[], Server]], Lasting]:
    """A server that outlives tests; who asks for it closes it."""
    return Lasting


@pytest.fixture(scope="session")
def server_of(warm_programs: Path) -> Callable[..., Server]:
    """A server with arguments of one's own; who starts it ends it."""
    return partial(Server, warm=warm_programs)


@pytest.fixture(scope="session")
def server_starter(tiny_bert: Path, server_of: Callable[..., Server]) -> Callable[..., Server]:
    return lambda store, *arguments, **options: server_of(
        "--plm", str(tiny_bert), "--store", store, *arguments, **options
    )


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for a condition, half a minute at most."""

    def wait(happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not happened():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    return wait


@pytest.fixture
def start_server(server_starter: StartServer) -> Iterator[StartServer]:
    """Servers of one test."""
    servers: list[Server] = []

    def start(*arguments: str, **options: Any) -> Server:
        servers.append(server_starter(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()
