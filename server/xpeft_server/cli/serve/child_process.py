"""Processes that a server starts beside its own: how each is started, killed, and said to have ended."""

from __future__ import annotations

import contextlib
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping

from xpeft_server.settings_source import PREFIX


def child_command(module: str) -> tuple[str, ...]:
    """Runs ``module``. ``-P``: the folder that the server was started in is no place to import from."""
    return (sys.executable, "-P", "-m", module)


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what was meant for the server: the store's password is among it. What tunes glibc's heap stays."""
    return {name: value for name, value in environ.items() if not name.startswith(PREFIX)}


def kill(process: Process) -> None:
    """Nothing happens if it has ended."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()


def how_it_ended(process: Process) -> str:
    code = process.returncode
    return f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
