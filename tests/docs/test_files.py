"""docs/files.md names every tensor, every dtype and every word of metadata that profiles and banks may have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from xpeft_profiles.file.reader import DTYPES, FILE_FORMAT, METADATA_KEYS, TENSORS
from xpeft_server.model.banks.bank import BANK_FORMAT
from xpeft_server.model.banks.header import ADAPTER_TENSORS, METADATA
from xpeft_server.model.fingerprint import DTYPE_NAMES


@pytest.fixture(scope="module")
def page(project_root: Path) -> str:
    return (project_root / "docs" / "files.md").read_text(encoding="utf-8")


def first_words(page: str, heading: str) -> list[str]:
    """Of the tables' rows below the heading."""
    part = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", part, re.MULTILINE)


def test_a_profile_has_what_the_page_says(page: str) -> None:
    assert first_words(page, "A profile") == [*TENSORS, *METADATA_KEYS]
    part = page.split("## A bank")[0]
    assert all(f"`{dtype}`" in part for dtype in DTYPES)
    assert f"`{FILE_FORMAT}`" in part


def test_a_bank_has_what_the_page_says(page: str) -> None:
    heads = ["heads.NAME.weight", "heads.NAME.bias"]
    assert first_words(page, "A bank") == [*ADAPTER_TENSORS, *heads, *METADATA]
    part = page.split("## A bank")[1]
    assert all(f"`{dtype}`" in part for dtype in DTYPE_NAMES.values())
    assert f"`{BANK_FORMAT}`" in part
