"""A real Ray with the application on it, started as docs/ray.md says."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import httpx
import pytest
import yaml

from xpeft_benchmarks.processes.server_client import geometry_of
from xpeft_benchmarks.random_profiles import random_profile
from xpeft_profiles import BankGeometry, write_profile_file

BANK: Final = "random:N=12,R=8,seed=1,std=0.3"
PROFILES: Final = 6
SECONDS: Final = 120
"""Whatever is waited for takes less."""
# A series, its replica, its value.
_SERIES: Final = re.compile(r'^(\w+)\{.*?replica="(\w+)".*\} (\S+)$', re.MULTILINE)


def wait_until(happened: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + SECONDS
    while not (found := happened()):
        assert time.monotonic() < deadline, f"not within {SECONDS} s: {what}"
        time.sleep(0.05)
    return found


def named(program: str) -> str:
    return str(Path(sys.executable).with_name(program))


class Process(NamedTuple):
    id: int
    parent: int
    command: str
    environ: bytes


def running() -> Iterator[Process]:
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (path / "cmdline").read_bytes().decode(errors="replace")
            state, parent, *_ = (path / "stat").read_text().rpartition(")")[2].split()
            if state not in "ZX":
                yield Process(int(path.name), int(parent), command, (path / "environ").read_bytes())


class Ray:
    """A head node of its own, in a short folder: sockets in it have names of at most 107 characters."""

    def __init__(self, port: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))
        self._log = self._folder / "start.log"
        address = f"127.0.0.1:{port}"
        self.environ = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            "RAY_ADDRESS": address,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        options = {"port": str(port), "node-ip-address": "127.0.0.1", "num-cpus": "2"}
        options |= {"include-dashboard": "false", "object-store-memory": str(80 << 20), "temp-dir": str(self._folder)}
        command = [named("ray"), "start", "--head", "--block", *(f"--{name}={said}" for name, said in options.items())]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log)
        wait_until(self._started, "ray start")

    def processes(self, word: str) -> list[int]:
        """Of this node alone, with the word in their command line."""
        return [process.id for process in self._all() if word in process.command]

    def logged(self, word: str) -> bool:
        """Whether a process of an actor wrote it to stderr."""
        written = self._folder.glob("session_*/logs/worker-*.err")
        return any(word in path.read_text(encoding="utf-8", errors="replace") for path in written)

    def stop(self) -> None:
        """Everything at once: Ray would give each actor half a minute."""
        seen: set[int] = set()

        def gone() -> bool:
            seen.update(process.id for process in self._all())
            left = seen & {process.id for process in running()}
            for id_ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(id_, signal.SIGKILL)
            return not left

        wait_until(gone, "processes that end")
        self._process.wait()
        shutil.rmtree(self._folder)

    def _all(self) -> list[Process]:
        """Those that the head node started, and those that know its token: some have written over their environment."""
        found = {process.id: process for process in running()}
        ours = {id_ for id_, process in found.items() if self.environ["RAY_AUTH_TOKEN"].encode() in process.environ}
        ours.add(self._process.pid)
        while more := {id_ for id_, process in found.items() if process.parent in ours} - ours:
            ours |= more
        return [process for id_, process in found.items() if id_ in ours]

    def _started(self) -> bool:
        said = self._log.read_text(errors="replace")
        assert self._process.poll() is None, said
        return "Ray runtime started" in said


class Application:
    """What ``serve run`` of the page started; ``client`` only knows HTTP. ``texts``: of `classify`, answered."""

    def __init__(self, ray: Ray, command: str, folder: Path, port: int) -> None:
        self.ray = ray
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        self.texts = 0
        self._log = folder / "serve.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"], cwd=folder, env=ray.environ, stdout=log, stderr=log
            )
        wait_until(self._ready, "/ready")
        self.geometry: BankGeometry = geometry_of(self.client.get("/info").json())
        wait_until(lambda: len(self.engines()) == 2 and len(self.by_replica("xpeft_store_up")) == 3, "two engines")

    def engines(self) -> list[int]:
        return self.ray.processes("ray::ServeReplica:xpeft:engine")

    def put(self, name: str, index: int) -> str:
        """The version that the upload acknowledges."""
        body = write_profile_file(random_profile(self.geometry, seed=7, index=index))
        answer = self.client.put(
            f"/v1/profiles/{name}", content=body, headers={"content-type": "application/octet-stream"}
        )
        assert answer.status_code in (200, 201), answer.text
        version: str = answer.json()["version"]
        return version

    def classify(self, profile: str) -> httpx.Response:
        answer = self.client.post("/v1/classify", json={"profile": profile, "input": "w1 w2 w3"})
        self.texts += answer.status_code == 200
        return answer

    def by_replica(self, series: str, **labels: str) -> dict[str, float]:
        """Replica → value, of all that show the series."""
        wanted = [f'{name}="{value}"' for name, value in labels.items()]
        return {
            found[2]: float(found[3])
            for found in _SERIES.finditer(self.client.get("/metrics").text)
            if found[1] == series and all(label in found[0] for label in wanted)
        }

    def total(self, series: str, **labels: str) -> float:
        return sum(self.by_replica(series, **labels).values())

    def close(self) -> None:
        """What was started ends with Ray."""
        self.client.close()
        self._process.wait()

    def _ready(self) -> bool:
        assert self._process.poll() is None, self._log.read_text(errors="replace")[-5000:]
        with contextlib.suppress(httpx.TransportError):
            return self.client.get("/ready").status_code == 200
        return False


def page_block(project_root: Path, name: str) -> str:
    page = (project_root / "docs" / "ray.md").read_text(encoding="utf-8")
    found = re.search(rf"^```sh test:{name}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert found, f"docs/ray.md has no block that {name} runs"
    return found[1].strip()


@pytest.fixture(scope="module")
def application(
    project_root: Path,
    save_word_llama: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    free_port: Callable[[], int],
) -> Iterator[Application]:
    """The page's command over the repository's file, with a tiny model that classifies and writes."""
    folder = tmp_path_factory.mktemp("application")
    model = folder / "model"
    model.mkdir()
    save_word_llama(model, [f"w{number}" for number in range(100)], hidden=32, positions=4096)
    config: Any = yaml.safe_load((project_root / "deploy" / "ray" / "serve.yaml").read_text(encoding="utf-8"))
    config["http_options"]["port"] = port = free_port()
    (served,) = config["applications"]
    served["args"] |= {"plm": str(model), "bank": BANK, "store": f"sqlite:///{folder}/profiles.db"}
    served["args"] |= {"queue_seconds": 60.0, "drain_seconds": 1.0, "access_log": True, "log_level": "warning"}
    (folder / "deploy" / "ray").mkdir(parents=True)
    (folder / "deploy" / "ray" / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = page_block(project_root, "test_the_command_of_the_page_starts_two_engines_behind_one_address")
    ray = Ray(free_port())
    try:
        application = Application(ray, command, folder, port)
        for index in range(PROFILES):
            application.put(f"p{index}", index)
        yield application
    finally:
        ray.stop()
    application.close()


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Waits for a condition, and gives what was true."""
    return wait_until
