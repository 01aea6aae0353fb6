"""Results of a long run, a JSON line for each profile, from which it is resumed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .evaluation import Score

_FIRST_BYTES = b'{"name": "'
"""Every line begins with them: a tail that does not was never written by a journal."""


class JournalFailed(Exception):
    """The file is no journal, is another run's, or cannot be read or written."""


@dataclass(frozen=True, kw_only=True)
class TunedEntry:
    """A profile that is kept where it was to be kept.

    Args:
        value: of the field that told its rows from the others'.
        digest: of what it depends on, see `recipe.Recipe`.
        version: of the profile.
        train, held_out, majority, epoch, cut, bare: see `mask_tuner.TunedProfile`.
        seconds: from when it got a place among those that are tuned together until it was done.
    """

    name: str
    value: str
    digest: str
    version: str
    train: Score
    held_out: Score | None
    majority: float | None
    epoch: int
    cut: int
    seconds: float
    bare: Score | None = None  # not in the lines of earlier versions

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **vars(self),
            "train": self.train.record(),
            "held_out": self.held_out and self.held_out.record(),
            "bare": self.bare and self.bare.record(),
        }


@dataclass(frozen=True, kw_only=True)
class RefusedEntry:
    """A profile that cannot be tuned. Args: refused: why."""

    name: str
    value: str
    digest: str
    refused: str

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


Entry = TunedEntry | RefusedEntry


class Journal:
    """One line a profile, on the disk when `append` returns; of several about a profile the last one counts.

    Nobody else can write it meanwhile. A last line that was torn (its writer was killed) is cut off.

    Args: path: made if it is not there; its folder is.

    Attributes: entries: name → what the last line about it says, of the lines so far.

    Raises: JournalFailed, naming the file and the line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise JournalFailed(f"{path} cannot be opened: {error.strerror or error}") from None
        try:
            self._lock()
            whole, torn = _split(path.read_bytes(), path)
            self.entries: dict[str, Entry] = {}
            for number, line in enumerate(whole, start=1):
                entry = _entry(line, f"{path}: line {number}")
                self.entries[entry.name] = entry
            if torn:
                os.ftruncate(self._file, sum(map(len, whole)))
        except BaseException:
            os.close(self._file)
            raise

    def append(self, entry: Entry) -> None:
        """Raises: JournalFailed; then nothing may be appended any more."""
        line = json.dumps(entry.record()).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            raise JournalFailed(f"{self._path} cannot be written: {error.strerror or error}") from None
        self.entries[entry.name] = entry

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalFailed(f"{self._path} is being written by another run: wait for it, or stop it") from None


def _split(data: bytes, path: Path) -> tuple[list[bytes], bytes]:
    """Whole lines with their ends, and what stands behind the last end."""
    *lines, torn = data.split(b"\n")
    if not torn.startswith(_FIRST_BYTES[: len(torn)]):
        raise JournalFailed(f"{path}: line {len(lines) + 1} is no line of a journal: give another file")
    return [line + b"\n" for line in lines], torn


def _entry(line: bytes, where: str) -> Entry:
    try:
        record = json.loads(line)
        if "refused" in record:
            return RefusedEntry(**record)
        scores = {name: _score(record[name]) for name in ("train", "held_out")} | {"bare": _score(record.get("bare"))}
        return TunedEntry(**{**record, **scores})
    except (ValueError, TypeError, KeyError) as error:
        raise JournalFailed(f"{where} is no line of a journal: {error}: give another file") from None


def _score(record: Mapping[str, Any] | None) -> Score | None:
    return None if record is None else Score(**record)
