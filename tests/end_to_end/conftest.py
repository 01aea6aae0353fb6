"""A real `xpeft serve` over a tiny model, and a client that only knows HTTP."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from xpeft_profiles import Profile, write_profile_file

BANK = "random:N=12,R=8,seed=1,std=0.3"


class Server:
    """A server process; ``client`` is a plain HTTP client of it.

    Args:
        program: Python that ends in starting the command line; the installed one by default.
        log: where its log goes; to the test's own standard error by default.
        environ: beside this process's own.
    """

    def __init__(
        self,
        *arguments: str,
        program: str | None = None,
        log: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        begin = [str(Path(sys.executable).with_name("xpeft"))] if program is None else [sys.executable, "-c", program]
        self.log = log
        with contextlib.nullcontext() if log is None else log.open("ab") as errors:
            self.process = subprocess.Popen(
                [*begin, "serve", "--port", "0", "--bank", BANK, *arguments],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **(environ or {})},
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

    def worker(self) -> int:
        """The process id of its one child, as soon as there is one."""
        deadline = time.monotonic() + 60
        while len(children := self._children()) != 1:
            assert time.monotonic() < deadline, children
            time.sleep(0.01)
        return children[0]

    def _children(self) -> list[int]:
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


StartServer = Callable[..., Server]


@pytest.fixture(scope="session")
def server_starter(tiny_bert: Path) -> Callable[..., Server]:
    return lambda store, *arguments, **options: Server("--plm", str(tiny_bert), "--store", store, *arguments, **options)


@pytest.fixture(scope="session")
def server_of() -> Callable[..., Server]:
    """A server with arguments of one's own; who starts it ends it."""
    return Server


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
