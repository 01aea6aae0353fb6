"""A server as a process of ours: started, waited for, measured, stopped."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .lifeline import lifeline

_POLL = 0.05  # seconds between two looks at a server that starts
_START_LIMIT = 180.0  # seconds
_STOP_LIMIT = 30.0


class ServerFailed(Exception):
    """A server did not start, or ended; the message has the end of what it printed."""


class ServerProcess:
    """Runs until the ``with`` block ends. ``start_seconds``: from its start to the first 200 of ``ready``."""

    def __init__(self, command: Sequence[str], *, port: int, ready: str, environment: Mapping[str, str]) -> None:
        self.host, self.port = "127.0.0.1", port
        self._command = command
        self._ready = ready
        self._environment = environment
        self.start_seconds = 0.0

    def __enter__(self) -> Self:
        self._output = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=dict(self._environment),
            process_group=0,
            preexec_fn=lifeline(),
        )
        try:
            self.start_seconds = self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def cpu_seconds(self) -> float:
        """Of all threads of its processes since each of them started, user and system."""
        return sum(int(stat[11]) + int(stat[12]) for _, stat in self._group()) / os.sysconf("SC_CLK_TCK")

    def rss_bytes(self) -> int:
        """Memory that its processes have resident now. Raises: ServerFailed if there are none."""
        return self._memory("VmRSS:")

    def peak_rss_bytes(self) -> int:
        """The most memory that its processes have had resident since each of them started. Raises: as `rss_bytes`."""
        return self._memory("VmHWM:")

    def _memory(self, field: str) -> int:
        total = 0
        for folder, _ in self._group():
            with contextlib.suppress(OSError):
                lines = (folder / "status").read_text().splitlines()
                total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
        if not total:
            raise ServerFailed(f"{self._command[0]} has ended: it has no {field} to measure")
        return total

    def _group(self) -> Iterator[tuple[Path, list[str]]]:
        """It and what it started: the folder in /proc, and the fields of ``stat`` behind the program's name."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[2]) == self._process.pid:
                    yield stat.parent, fields

    def _wait_until_ready(self) -> float:
        start = time.perf_counter()
        while not self._is_ready():
            if self._process.poll() is not None:
                raise ServerFailed(
                    f"{self._command[0]} ended with exit code {self._process.returncode}: {self._tail()}"
                )
            if time.perf_counter() - start > _START_LIMIT:
                raise ServerFailed(f"{self._command[0]} is not ready after {_START_LIMIT:g} seconds: {self._tail()}")
            time.sleep(_POLL)
        return time.perf_counter() - start

    def _is_ready(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=5)
        try:
            connection.request("GET", self._ready)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _tail(self) -> str:
        self._output.seek(0)
        return self._output.read()[-2000:].decode(errors="replace").strip()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


def free_port() -> int:
    """A port of the loopback address that nobody listens on at this moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
