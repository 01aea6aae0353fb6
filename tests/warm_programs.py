"""``xpeft`` and ``python`` as forks of a process that has loaded PyTorch and transformers already.

To load them takes longer than all else that a command of a page or a demo does. Everything else is as in a process of
its own: arguments, environment, folder, streams, SIGTERM and SIGINT, exit status. No other signal is passed on.
Where what was loaded runs threads of its own, which a fork would lack, the programs start from nothing.

Run: python -P warm_programs.py FOLDER, which has the two programs once it says "ready", until this one ends; tests call
`started` and `begun`, by `runpy`.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import shlex
import signal
import socket
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_NUMBER: Final = struct.Struct("i")
# This process was started with -P, too.
_MODULE: Final = ["-P", "-m"]
_FORWARDED: Final = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def started(folder: Path, **environment: str) -> Iterator[Path]:
    """The folder, while the programs are there; those that still run then are killed."""
    import subprocess

    command = [sys.executable, "-P", __file__, str(folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield folder
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def begun(
    folder: Path, words: list[str], *, environment: Mapping[str, str], streams: Sequence[int]
) -> tuple[int, socket.socket]:
    """A fork with all that a process has, in this folder: its number, and the connection that tells how it ended.

    Args: streams: file descriptors of its standard input, output and error.
    """
    server = socket.socket(socket.AF_UNIX)
    server.connect(str(folder / "socket"))
    said = {"words": words, "environment": dict(environment), "folder": str(Path.cwd())}
    body = json.dumps(said).encode()
    socket.send_fds(server, [_NUMBER.pack(len(body))], streams)
    server.sendall(body)
    return received(server), server


def received(connection: socket.socket) -> int:
    """A number that the warm process tells: at the end the exit status, of a signal minus its number."""
    number: int = _NUMBER.unpack(connection.recv(_NUMBER.size, socket.MSG_WAITALL))[0]
    return number


def _ask(folder: Path, words: list[str]) -> None:
    """In place of the program: hand over all that a process has, and end as the fork does."""
    if words[0] == "python" and words[1:3] != _MODULE and (len(words) == 1 or words[1].startswith("-")):
        os.execv(sys.executable, [sys.executable, *words[1:]])  # noqa: S606
    # A signal that comes too early waits until it is known whom to send it to.
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    fork, server = begun(folder, words, environment=os.environ, streams=[0, 1, 2])
    for each in _FORWARDED:
        signal.signal(each, lambda number, _: os.kill(fork, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    with server:
        status = received(server)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _become_what_asks(listening: socket.socket) -> list[str]:
    """Return in a fork for each that asks, with its words; the fork has its environment, folder and streams."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listening.accept()
        if os.fork():
            connection.close()
            continue
        listening.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        length, streams, _, _ = socket.recv_fds(connection, _NUMBER.size, 3)
        said = json.loads(connection.recv(_NUMBER.unpack(length)[0], socket.MSG_WAITALL))
        if fork := os.fork():
            for stream in streams:
                os.close(stream)
            with suppress(BrokenPipeError):
                connection.sendall(_NUMBER.pack(fork))
                connection.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])))
            os._exit(0)
        connection.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.chdir(said["folder"])
        os.environ.clear()
        os.environ.update(said["environment"])
        words: list[str] = said["words"]
        return words


def _serve(folder: Path) -> None:
    from xpeft_server.cli import heap

    heap.limit_product_caches()
    heap.restart_with_tuned_heap()
    kept = {name: os.environ[name] for name in (heap.VARIABLE, *heap.PRODUCT_CACHES) if name in os.environ}
    import transformers.models.bert.modeling_bert
    import transformers.models.llama.modeling_llama  # noqa: F401

    import xpeft_server.cli.serve.running_server  # noqa: F401
    from xpeft_server.cli.__main__ import main as xpeft

    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads > 1:
        sys.stderr.write(f"warm_programs.py: a fork would have one of {threads} threads: programs start from nothing\n")
    for name in ("xpeft", "python"):
        command = shlex.join([sys.executable, "-IS", __file__, str(folder), name])
        (folder / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        listening.listen()
        # A fork that ends would else look through all that was loaded.
        gc.freeze()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        program, *arguments = _become_what_asks(listening)
    if threads > 1:
        start = ["-P", "-m", "xpeft_server.cli"] if program == "xpeft" else []
        os.execv(sys.executable, [sys.executable, *start, *arguments])  # noqa: S606
    if program == "xpeft":
        # This process began with the heap for which that program would start itself anew.
        os.environ.update(kept | os.environ)
        sys.argv = [program, *arguments]
        xpeft()
    else:
        # An `xpeft` beside it is the one that is warm.
        sys.executable = str(folder / program)
        if arguments[:2] == _MODULE:
            sys.argv = arguments[2:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path.insert(0, str(Path(arguments[0]).parent.resolve()))
            runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    where, *asked = sys.argv[1:]
    if asked:
        _ask(Path(where), asked)
    else:
        _serve(Path(where))
