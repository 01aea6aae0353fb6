"""The texts that are classified: from a JSON Lines file, or the project's example messages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np


class TextsInvalid(ValueError):
    """A file of texts cannot be used; the message names file, line and field."""


def read_texts(path: Path) -> list[str]:
    """The ``text`` of every line of a ``.jsonl`` or ``.jsonl.gz``; other fields are not looked at.

    Raises: TextsInvalid.
    """
    try:
        with _open(path) as lines:
            texts = list(_texts(path, lines))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise TextsInvalid(f"{path} cannot be read: {error}") from None
    if not texts:
        raise TextsInvalid(f"{path} has no line with a text")
    return texts


def example_texts() -> list[str]:
    """The messages in the project's ``examples`` folder, which stands beside the sources and is in no wheel.

    Raises: TextsInvalid if it is not there.
    """
    folder = Path(__file__).resolve().parents[2] / "examples"
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise TextsInvalid("the example messages are not installed here: give --data FILE.jsonl with a text a line")
    return [text for file in files for text in read_texts(file)]


def sample_texts(pool: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """``count`` texts in a random order; none comes again before all have come."""
    rounds = -(-count // len(pool))
    order = np.concatenate([rng.permutation(len(pool)) for _ in range(rounds)])
    return [pool[index] for index in order[:count]]


def _open(path: Path) -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _texts(path: Path, lines: IO[str]) -> Iterator[str]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str) or not text.strip():
            raise TextsInvalid(f'{path}, line {number}: no object with a "text" that is not empty')
        yield text
