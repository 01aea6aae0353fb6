"""How long texts are: lengths from a file, and texts that have them."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final, NamedTuple

from tokenizers import Tokenizer

from xpeft_server.model.errors import ModelUnusable

_TOKENS: Final = "tokens"
_NEW_TOKENS: Final = "new_tokens"


class LengthsInvalid(ValueError):
    """A file of lengths cannot be used; the message names file, line and value."""


class Length(NamedTuple):
    """Of one request, in tokens, special ones included. ``new``: what it asks to be written; None: not told."""

    tokens: int
    new: int | None


def read_lengths(path: Path) -> list[Length]:
    """A length a line, by the file's name: ``.jsonl`` of ``{"tokens": 31}``, ``.csv`` with a column ``tokens``, else
    whole numbers. The first two may have ``new_tokens``, too; other fields are not looked at.

    Raises: LengthsInvalid.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LengthsInvalid(f"{path} cannot be read: {error}") from None
    read = {".jsonl": _of_json, ".csv": _of_csv}.get(path.suffix, _of_numbers)
    lengths = list(read(path, lines))
    if not lengths:
        raise LengthsInvalid(f"{path} has no line with a length")
    return lengths


def cut_texts(pool: Sequence[str], lengths: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """A text of each length: texts of the pool one behind the other, cut behind the token that fills it.

    Every text begins with the one of the pool behind the last that was used. Where a tokenizer splits a cut text
    otherwise than the whole (byte pairs), it may be a token longer or shorter.

    Raises: LengthsInvalid for a length that special tokens alone have.
    """
    special = len(tokenizer.encode("").ids)
    counted = [(text, len(tokenizer.encode(text, add_special_tokens=False).ids)) for text in pool]
    filled = [(text, count) for text, count in counted if count]
    if not filled:
        raise LengthsInvalid(f"none of {len(pool)} texts has a token to build others from")
    endless = cycle(filled)
    found = []
    for length in lengths:
        if length <= special:
            raise LengthsInvalid(f"tokens is {length}, and special tokens alone are {special}")
        found.append(_cut(endless, length - special, tokenizer))
    return found


def open_tokenizer(plm: str) -> Tokenizer:
    """Of a folder, a hub id or the packaged model. Raises: ModelError."""
    # They load torch, which nothing else here needs.
    from transformers import AutoTokenizer

    from xpeft_server.model.plm import DEFAULT_PLM, load_plm

    source = load_plm(plm).model.name_or_path if plm == DEFAULT_PLM else plm
    try:
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(source).backend_tokenizer
    except Exception as error:  # the libraries that read these files have errors of their own for damaged ones
        raise ModelUnusable(f"plm: the tokenizer of {plm!r} cannot be loaded: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _cut(endless: Iterator[tuple[str, int]], wanted: int, tokenizer: Tokenizer) -> str:
    """The next texts, cut behind so many tokens."""
    parts: list[str] = []
    tokens = 0
    while True:
        while tokens < wanted:
            text, count = next(endless)
            parts.append(text)
            tokens += count
        joined = " ".join(parts)
        offsets = tokenizer.encode(joined, add_special_tokens=False).offsets
        if len(offsets) >= wanted:
            return joined[: offsets[wanted - 1][1]]
        tokens = len(offsets)


def _of_numbers(path: Path, lines: Sequence[str]) -> Iterator[Length]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield Length(_positive(f"{path}, line {number}", "", line.strip()), None)


def _of_json(path: Path, lines: Sequence[str]) -> Iterator[Length]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise LengthsInvalid(f"{where}: {error}") from None
        if not isinstance(fields, dict):
            raise LengthsInvalid(f"{where}: {line!r} is no object")
        yield _of_fields(where, fields)


def _of_csv(path: Path, lines: Sequence[str]) -> Iterator[Length]:
    reader = csv.DictReader(lines)
    for fields in reader:
        yield _of_fields(f"{path}, line {reader.line_num}", fields)


def _of_fields(where: str, fields: dict[str, object]) -> Length:
    if _TOKENS not in fields:
        raise LengthsInvalid(f"{where}: there is no {_TOKENS!r}, only {', '.join(map(repr, fields))}")
    new = fields.get(_NEW_TOKENS)
    return Length(
        _positive(where, f"{_TOKENS} is ", fields[_TOKENS]),
        None if new in (None, "") else _positive(where, f"{_NEW_TOKENS} is ", new),
    )


def _positive(where: str, what: str, value: object) -> int:
    digits = value if isinstance(value, str) else str(value)
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit() and int(digits) > 0):
        raise LengthsInvalid(f"{where}: {what}{value!r}, not a whole number above 0")
    return int(digits)
