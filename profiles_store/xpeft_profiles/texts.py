"""The words in a profile: which bank, which labels, which shared head, what it is for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .errors import ProfileInvalid, shown

FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
DESCRIPTION_BYTES = 1024
LABEL_BYTES = 1024
"""An answer repeats a label for every text: one of a megabyte would make a quarter of a gigabyte of a small request."""
REFERENCE_BYTES = 128


def check_bank(bank: object) -> None:
    """Any short text: one that is no ``sha256:HEX`` is simply the fingerprint of no bank that can be loaded."""
    _check_text(bank, "bank", REFERENCE_BYTES)


def check_shared_head(name: object) -> None:
    _check_text(name, "head", REFERENCE_BYTES)


def check_description(description: object) -> None:
    if description != "":
        _check_text(description, "description", DESCRIPTION_BYTES)


def check_labels(labels: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    """Raises: ProfileInvalid unless there are C distinct, non-empty strings, none of them too long."""
    if labels is None:
        raise ProfileInvalid(f"a head of its own needs {classes} labels, there are none", "labels")
    if not isinstance(labels, tuple | list):
        raise ProfileInvalid(f"{shown(labels)} is not a list of strings", "labels")
    if len(labels) != classes:
        raise ProfileInvalid(f"there are {len(labels)}, head.weight has C={classes} rows", "labels")
    seen: set[str] = set()
    for label in labels:
        _check_text(label, "labels", LABEL_BYTES)
        if label in seen:
            raise ProfileInvalid(f"{shown(label)} stands there twice", "labels")
        seen.add(label)
    return tuple(labels)


def _check_text(value: object, param: str, limit: int) -> None:
    if not isinstance(value, str) or not value:
        raise ProfileInvalid(f"{shown(value)} is not a non-empty string", param)
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise ProfileInvalid(f"{shown(value)} is not valid Unicode", param) from error
    if size > limit:
        raise ProfileInvalid(f"{shown(value)} has {size} bytes, at most {limit} are allowed", param)
