"""Measuring processes: each reads a JSON object a line and answers it with another, and is idle in between."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from .lifeline import lifeline


class WorkerFailed(Exception):
    """A measuring process ended before it answered; its own words are on stderr."""


class Worker:
    """The parent's end. ``module`` calls `answer_jobs` when it is run."""

    def __init__(self, module: str) -> None:
        self._module = module
        # -P: the folder that the command is typed in is not searched for modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for the parent, which then ends it
            preexec_fn=lifeline(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._process.terminate()
        self.close()

    def ask(self, **job: Any) -> dict[str, Any]:
        """Hand over one job and wait for its answer. Raises: WorkerFailed."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise WorkerFailed(f"{self._module} ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise WorkerFailed(answer["failed"])
        return answer

    def close(self) -> None:
        """Let the process end, and wait for it."""
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def answer_jobs(handle: Callable[[dict[str, Any]], dict[str, Any]], failures: tuple[type[Exception], ...]) -> None:
    """The child's end: until stdin closes. ``failures`` go back as messages, anything else ends the process."""
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except failures as error:
            answer = {"failed": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
