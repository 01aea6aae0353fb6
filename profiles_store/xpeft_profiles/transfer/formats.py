"""Which form a source or a target has: its name says so."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple


class Form(StrEnum):
    FOLDER = "folder"
    TAR = "tar"
    JSONL = "jsonl"


class Format(NamedTuple):
    form: Form
    gzipped: bool = False


_BY_SUFFIX: Final = {
    ".tar": Format(Form.TAR),
    ".tar.gz": Format(Form.TAR, gzipped=True),
    ".tgz": Format(Form.TAR, gzipped=True),
    ".jsonl": Format(Form.JSONL),
    ".jsonl.gz": Format(Form.JSONL, gzipped=True),
}
FILE_SUFFIXES: Final = tuple(_BY_SUFFIX)


def format_of(path: Path) -> Format:
    """``.tar``, ``.tar.gz``, ``.tgz``, ``.jsonl`` and ``.jsonl.gz`` are files, all else is a folder."""
    return next((form for suffix, form in _BY_SUFFIX.items() if path.name.endswith(suffix)), Format(Form.FOLDER))
