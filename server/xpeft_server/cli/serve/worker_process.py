"""The tuning worker as the server sees it: a child process, started for a job and ended when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from xpeft_server.jobs.errors import TuningFailed, WorkerDied
from xpeft_server.jobs.requests import TuningRequest
from xpeft_server.jobs.worker_port import Progress, Tuned

from .child_process import child_command, how_it_ended, kill
from .tuning_checks import dataset_of
from .worker_frames import Frame, encode_frame, receive_frame

logger = logging.getLogger(__name__)

IDLE_SECONDS: Final = 60.0
"""A worker without a job ends after this long: it holds a language model of its own."""

_DEATH_SECONDS: Final = 5.0


class WorkerProcess:
    """One job at a time; a job that is cancelled takes its process with it. For one event loop.

    Args:
        setup: told to every new process first; see `tuning_worker.Worker`.
    """

    def __init__(
        self,
        setup: Mapping[str, Any],
        *,
        environ: Mapping[str, str],
        command: Sequence[str] | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._setup = Frame(dict(setup))
        self._environ = environ
        self._command = command or (*child_command("xpeft_server.cli.serve.tuning_worker"), str(os.getpid()))
        self._idle_seconds = idle_seconds
        self._process: Process | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._ending: asyncio.Task[None] | None = None

    async def tune(self, request: TuningRequest, progress: Callable[[Progress], None]) -> Tuned:
        """Raises: TuningFailed, WorkerDied."""
        if self._idle is not None:
            self._idle.cancel()
        try:
            frame = await asyncio.to_thread(lambda: encode_frame(Frame(_job(request))))
            process, greeting = await self._running()
        except BaseException:
            self._rest()
            raise
        try:
            tuned = await self._tuned(process, greeting + frame, progress)
        except (asyncio.IncompleteReadError, OSError) as error:
            raise await self._death(process) from error
        except TuningFailed:
            self._rest()
            raise
        except BaseException:
            await self.close()
            raise
        self._rest()
        return tuned

    async def close(self) -> None:
        """Kill the process, if there is one: it has nothing to clean up."""
        process, self._process = self._process, None
        if self._idle is not None:
            self._idle.cancel()
        if process is not None and process.returncode is None:
            kill(process)
            await process.wait()

    async def _tuned(self, process: Process, said: bytes, progress: Callable[[Progress], None]) -> Tuned:
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        try:
            process.stdin.write(said)
        except RuntimeError as error:  # uvloop's, for a process that ended before it was told anything
            raise BrokenPipeError(str(error)) from None
        await process.stdin.drain()
        while True:
            message, attached = await receive_frame(process.stdout)
            if "progress" in message:
                progress(message["progress"])
            elif "failure" in message:
                if message["last"]:
                    await self.close()
                raise TuningFailed(**message["failure"])
            else:
                return Tuned(attached, message["report"])

    async def _running(self) -> tuple[Process, bytes]:
        """The process, and what it has to be told before a job."""
        if self._process is not None and self._process.returncode is None:
            return self._process, b""
        await self.close()
        process = await asyncio.create_subprocess_exec(*self._command, stdin=PIPE, stdout=PIPE, env=self._environ)
        self._process = process
        logger.info("tuning worker %d started", process.pid)
        return process, encode_frame(self._setup)

    async def _death(self, process: Process) -> WorkerDied:
        """Its pipes broke: it has ended, or does so now. To kill it would hide how."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _DEATH_SECONDS)
        await self.close()
        return WorkerDied(f"the tuning worker ended {how_it_ended(process)} before the job was done")

    def _rest(self) -> None:
        """End the process if no job comes for a while."""
        self._idle = asyncio.get_running_loop().call_later(self._idle_seconds, self._end_idle)

    def _end_idle(self) -> None:
        logger.info("the tuning worker has nothing to do and is ended")
        self._ending = asyncio.get_running_loop().create_task(self.close(), name="tuning-worker-end")


def _job(request: TuningRequest) -> dict[str, Any]:
    dataset = dataset_of(request)
    examples = [asdict(example) for example in dataset.examples]
    return {
        "examples": examples,
        "labels": dataset.labels,
        "completions": dataset.completions,
        "settings": dict(request.settings),
    }
