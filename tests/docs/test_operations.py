"""The sizes in docs/operations.md are those that the code allocates, stores and counts."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch

from xpeft_kernels import AdapterForm
from xpeft_profiles import Profile, encode_record
from xpeft_server.engine.profiles.cache import CachedProfile
from xpeft_server.model.kv.cache import KvShape
from xpeft_server.settings import Settings

GIB: Final = 1 << 30
DTYPES: Final = {4: torch.float32, 2: torch.bfloat16}
BANK: Final = "sha256:" + "ab" * 32
Row = dict[str, str]


@pytest.fixture(scope="module")
def page(project_root: Path) -> str:
    return (project_root / "docs" / "operations.md").read_text(encoding="utf-8")


def rows(page: str, heading: str) -> list[Row]:
    """Of the first table below the heading."""
    below = page.split(f"### {heading}\n")[1]
    lines = [line.strip("|").split("|") for line in below.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line] for line in lines]
    end = next((number for number, row in enumerate(cells) if len(row) != len(cells[0])), len(cells))
    found = [dict(zip(cells[0], row, strict=True)) for row in cells[2:end]]
    assert len(found) >= 3
    return found


def number(row: Row, column: str) -> int:
    return int(row[column].replace(",", ""))


def test_a_slot_and_a_bank_are_as_large_as_the_page_says(page: str) -> None:
    for row in rows(page, "Profiles per GiB"):
        blocks, hidden, adapters, width, size = (number(row, letter) for letter in "LHNRb")
        form = AdapterForm(hidden=hidden, width=width)
        slot = blocks * form.slot_row * size
        assert number(row, "bytes of a slot") == slot, row
        assert number(row, "slots in 1 GiB") == GIB // slot, row
        assert number(row, "bank, MiB") == round(blocks * adapters * form.bank_row * size / (1 << 20)), row


def test_a_record_is_as_large_as_the_page_says(page: str) -> None:
    for row in rows(page, "Bytes of a profile"):
        L, H, N, R, C = (number(row, letter) for letter in "LHNRC")
        hard = {"bank": BANK, "mask_a": np.ones((L, N), np.uint8), "mask_b": np.ones((L, N), np.uint8)}
        soft = {name: np.full((L, N), 1 / N, np.float16) for name in ("mask_a", "mask_b")}
        affine = {"ln_weight": np.ones((L, R), np.float16), "ln_bias": np.zeros((L, R), np.float16)}
        labels = tuple(map(str, range(C)))
        head = {"head_weight": np.zeros((C, H), np.float16), "labels": labels}
        texts = len('{"labels":["') + C * 1 + (C - 1) * len('","') + len('"]}')
        assert number(row, "hard masks alone") == len(encode_record(Profile(**hard))), row
        assert number(row, "with affine") == len(encode_record(Profile(**hard, **affine))), row
        whole = len(encode_record(Profile(**hard, **affine, **head)))
        assert number(row, "with affine and head") == whole - texts, row
        assert number(row, "soft masks alone") == len(encode_record(Profile(bank=BANK, **soft))), row
        assert number(row, "hard masks alone") == 66 + 2 * L * math.ceil(N / 8), row


def test_a_token_of_a_sequence_is_as_large_as_the_page_says(page: str) -> None:
    for row in rows(page, "Keys and values"):
        blocks, heads, size = number(row, "L"), number(row, "heads of keys"), number(row, "size")
        shape = KvShape(blocks, heads, size, DTYPES[number(row, "b")], torch.device("cpu"))
        assert number(row, "bytes of a token") == shape.token_bytes, row
        assert number(row, "tokens in 1 GiB") == GIB // shape.token_bytes, row


def test_the_host_holds_as_many_profiles_as_the_page_says(page: str) -> None:
    said = re.search(r"`--host-cache-bytes` of 256 MiB holds ([\d,]+) of\s+these\s+profiles with an affine", page)
    assert said
    L, N, R = 6, 100, 48
    masks = {name: np.ones((L, N), np.uint8) for name in ("mask_a", "mask_b")}
    affine = {"ln_weight": np.ones((L, R), np.float16), "ln_bias": np.zeros((L, R), np.float16)}
    profile = Profile(bank=BANK, **masks, **affine, shared_head="mood")
    cached = CachedProfile(("tenant", "name"), profile.version, profile, ("sad", "glad"), 0.0)
    assert Settings().host_cache_bytes == 256 << 20
    assert int(said[1].replace(",", "")) == Settings().host_cache_bytes // cached.size


def test_the_measured_bytes_of_a_profile_are_those_of_the_results(page: str, project_root: Path) -> None:
    said = re.search(r"(\d+) bytes a\s+profile in SQLite, (\d+) in Redis", page)
    assert said
    for name, value in zip(("sqlite", "redis"), said.groups(), strict=True):
        results = (project_root / "benchmarks" / "results" / f"stores-{name}.jsonl").read_text(encoding="utf-8")
        measured = re.search(r'"bytes_per_profile": ([\d.]+)', results)
        assert measured
        assert int(value) == round(float(measured[1]))


def test_every_reason_of_a_refusal_has_its_row(page: str) -> None:
    from xpeft_server.engine.metrics import REFUSALS

    told = set(re.findall(r"`(\w+)`", "".join(line for line in page.splitlines() if line.startswith("| 429"))))
    assert set(REFUSALS) <= told
