"""A Redis server that tests start, fill, stop and kill."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import IO

import pytest


class RedisServer:
    """A redis-server of our own that answers a write when it is on the disk.

    Args:
        folder: for its files.
        port: for its clients; where it is a cluster's node, it takes the one 10000 above too.
        options: of the URL.
    """

    def __init__(self, folder: Path, port: int, options: str = "") -> None:
        self.folder = folder
        self.port = port
        self.url = f"redis://127.0.0.1:{self.port}/0{options}"
        self.process: subprocess.Popen[str] | None = None

    def start(self, *more: str) -> None:
        """Args: more: options."""
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not installed; these tests need a real one (apt install redis-server)")
        options = ["--port", str(self.port), "--dir", str(self.folder), "--bind", "127.0.0.1", "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always", *more]
        self.process = subprocess.Popen([program, *options], stdout=subprocess.PIPE, text=True)
        lines: IO[str] = self.output
        said = []
        for line in lines:
            said.append(line)
            if "Ready to accept connections" in line:
                return
        self.kill()
        pytest.fail("redis-server did not start:\n" + "".join(said))

    @property
    def output(self) -> IO[str]:
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout

    def kill(self) -> None:
        """SIGKILL: no chance to write anything more."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.output.close()
            self.process = None
