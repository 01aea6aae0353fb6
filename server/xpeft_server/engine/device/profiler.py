"""A trace of what the device thread does, by torch's profiler, for people who look at operators."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

from xpeft_server.model.recorded import recorded

logger = logging.getLogger(__name__)

SKIPPED: Final = 5
"""Turns before the first that is recorded: libraries prepare in them what later ones only use."""


class DeviceProfiler:
    """Records some turns of the one thread that calls it, each a batch or a step, and writes a Chrome trace of them.

    To be made by the thread that imported torch: the profiler's library complains of any other that prepares it.

    Args:
        path: what is written, gzipped if its name ends in ``.gz``, when all turns are recorded or the thread ends; a
            file that is there already is replaced.
        turns: how many are recorded.
    """

    def __init__(self, path: Path, turns: int, *, skipped: int = SKIPPED) -> None:
        self._path = path
        self._turns = turns
        self._skip = self._skipped = skipped
        self._recorded = 0
        self._profile: profile | None = None
        self._closed = False
        with _profile():
            pass

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Record what happens within, if it is its turn. After the last one the file is written."""
        if self._closed:
            yield
            return
        if self._skip:
            self._skip -= 1
            yield
            return
        if self._profile is None:
            self._profile = self._started()
        with recorded(name):
            yield
        self._recorded += 1
        if self._recorded == self._turns:
            self.close()

    def close(self) -> None:
        """Write what was recorded, unless that was done."""
        if self._closed:
            return
        self._closed = True
        if self._profile is None:
            logger.warning("nothing was profiled: the first %d batches and steps are not recorded", self._skipped)
            return
        self._profile.stop()
        self._write(self._profile)
        self._profile = None

    def _started(self) -> profile:
        started = _profile()
        started.start()
        logger.info("profiling %d batches and steps of the device thread", self._turns)
        return started

    def _write(self, recorded_: profile) -> None:
        # Beside it first, so that nobody reads half a trace; the end of the name decides whether it is gzipped.
        draft = self._path.with_name(f".draft-{self._path.name}")
        try:
            recorded_.export_chrome_trace(str(draft))
            draft.replace(self._path)
        except (OSError, RuntimeError) as error:
            logger.error("the profile of %d batches and steps cannot be written to %s: %s", *self._facts, error)
        else:
            logger.info("the profile of %d batches and steps is in %s", *self._facts)

    @property
    def _facts(self) -> tuple[int, Path]:
        return self._recorded, self._path


def _profile() -> profile:
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    # PyTorch 2.11 warns where events of one cycle alone are kept; here there is one.
    return profile(activities=activities, record_shapes=True, acc_events=True)
