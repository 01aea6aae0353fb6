"""Reading profile files together comes to what reading each alone comes to, whatever is in them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpeft_profiles import (
    FileRecord,
    ProfileInvalid,
    encode_record,
    read_file_batch,
    read_profile_file,
    write_profile_file,
)
from xpeft_profiles.file import batch as file_batch
from xpeft_profiles.file.layout import FileLayout

MakeProfile = Callable[..., Any]
EXAMPLES = 5_000 if os.environ.get("NIGHTLY") == "1" else 150
BANK = "sha256:" + "5a" * 32
L, N, R, H, C = 2, 11, 3, 4, 2
SHAPES = {
    "mask_a": (L, N),
    "mask_b": (L, N),
    "ln_weight": (L, R),
    "ln_bias": (L, R),
    "head.weight": (C, H),
    "head.bias": (C,),
}
NAMES = {np.dtype(np.uint8): "U8", np.dtype(np.bool_): "BOOL", np.dtype("<f2"): "F16", np.dtype("<f4"): "F32"}


def alone(data: bytes, max_bytes: int | None = None) -> tuple[str, bytes] | str:
    try:
        profile = read_profile_file(data, max_bytes=max_bytes)
    except ProfileInvalid as error:
        return error.message
    return profile.version, encode_record(profile)


def batch(files: list[bytes], max_bytes: int | None = None) -> list[tuple[str, bytes] | str]:
    answers = read_file_batch(files, max_bytes=max_bytes)
    return [each.message if isinstance(each, ProfileInvalid) else tuple(each) for each in answers]


def file_of(arrays: dict[str, Any], **metadata: str) -> bytes:
    """Equal shapes, dtypes and metadata give equal headers."""
    header: dict[str, Any] = {"__metadata__": {"format": "xpeft-profile-1", "bank": BANK, **metadata}}
    body = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        offsets = [len(body), len(body) + len(raw)]
        header[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": offsets}
        body += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def values(generator: np.random.Generator, name: str, dtype: np.dtype[Any], k: int) -> Any:
    """Of a tensor that is valid, or almost."""
    if not name.startswith("mask"):
        return (generator.standard_normal(SHAPES[name]) * 10.0 ** generator.integers(-9, 5)).astype(dtype)
    if dtype.kind != "f":
        return generator.permuted(np.tile(np.arange(N) < k, (L, 1)), axis=1).astype(dtype)
    weights = np.exp(generator.standard_normal((L, N)) * generator.integers(1, 6))
    sums = 1 + generator.choice([0, 4e-4, 6e-4, 9.9e-4, 1.1e-3, -1e-3])
    return (weights / weights.sum(axis=1, keepdims=True) * sums).astype(dtype)


FLOATS = st.sampled_from([np.dtype("<f2"), np.dtype("<f4")])
FAULTS = ["", "", "", "value", "byte", "header", "cut", "more"]
WRONG = {"f": [np.nan, np.inf, -1, -0.0, 7e4, 1e-9], "u": [2, 255], "b": [2, 255]}


@st.composite
def kinds(draw: st.DrawFn) -> tuple[dict[str, np.dtype[Any]], dict[str, str]]:
    """Dtypes of the tensors, in the order of the file, and metadata."""
    mask = draw(st.sampled_from([np.dtype(np.uint8), np.dtype(np.bool_), np.dtype("<f2"), np.dtype("<f4")]))
    dtypes = {"mask_a": mask, "mask_b": draw(FLOATS) if mask.kind == "f" else mask}
    metadata = {}
    for name in ("ln_weight", "ln_bias"):
        if draw(st.booleans()):
            dtypes[name] = draw(FLOATS)
    head = draw(st.sampled_from(["none", "own", "own with bias", "shared:topics", "own:topics"]))
    if head.startswith("own") and ":" not in head:
        dtypes["head.weight"] = draw(FLOATS)
        metadata["labels"] = json.dumps(["yes", draw(st.sampled_from(["no", "yes"]))])
        if "bias" in head:
            dtypes["head.bias"] = draw(FLOATS)
    elif ":" in head:
        metadata["head"] = head
    return {name: dtypes[name] for name in draw(st.permutations(list(dtypes)))}, metadata


def spoiled(draw: st.DrawFn, arrays: dict[str, Any], metadata: dict[str, str]) -> bytes:
    """A file with a fault, or with none."""
    fault = draw(st.sampled_from(FAULTS))
    if fault == "value":
        flat = arrays[draw(st.sampled_from(list(arrays)))].reshape(-1)
        wrong = draw(st.sampled_from(WRONG[flat.dtype.kind]))
        with np.errstate(over="ignore"):
            raw = np.array(wrong).astype(np.uint8 if flat.dtype.kind == "b" else flat.dtype)
        flat.view(raw.dtype)[draw(st.integers(0, len(flat) - 1))] = raw
    data = bytearray(file_of(arrays, **metadata))
    if fault == "byte":
        data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif fault == "header":
        data[draw(st.integers(0, 40))] = draw(st.integers(0, 255))
    elif fault == "cut":
        del data[draw(st.integers(0, len(data) - 1)) :]
    elif fault == "more":
        data += bytes(draw(st.integers(1, 3)))
    return bytes(data)


@st.composite
def batches(draw: st.DrawFn) -> list[bytes]:
    """Files of one to three headers, some of them wrong in a value, a byte or their length, in any order."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    files: list[bytes] = []
    for dtypes, metadata in draw(st.lists(kinds(), min_size=1, max_size=3)):
        for k in draw(st.lists(st.sampled_from([3, 3, 3, 5, 0, N]), min_size=1, max_size=6)):
            other = draw(st.sampled_from([k, k, k, 4]))
            arrays = {
                name: values(generator, name, dtype, other if name == "mask_b" else k) for name, dtype in dtypes.items()
            }
            files.append(spoiled(draw, arrays, metadata))
    return draw(st.permutations(files))


@settings(max_examples=EXAMPLES, deadline=None)
@given(files=batches())
def test_a_batch_is_read_as_each_file_alone(files: list[bytes]) -> None:
    assert batch(files) == [alone(data) for data in files]


@settings(max_examples=EXAMPLES, deadline=None)
@given(files=st.lists(st.binary(max_size=40)))
def test_any_bytes_are_read_as_each_file_alone(files: list[bytes]) -> None:
    assert batch(files) == [alone(data) for data in files]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft": True},
        {"layer_norm": True, "description": "é"},
        {"labels": ("yes", "no", "日本"), "soft": True},
        {"layer_norm": True, "labels": ("a", "b")},
        {"shared_head": "topics", "bank": "a test's bank"},
    ],
)
def test_valid_files_of_one_header_are_read_together(
    make_profile: MakeProfile, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = [make_profile(seed, **options) for seed in range(20)]
    read: list[bytes] = []

    def counted(data: bytes, max_bytes: int | None = None) -> Any:
        read.append(data)
        return read_profile_file(data, max_bytes=max_bytes)

    monkeypatch.setattr(file_batch, "read_profile_file", counted)
    monkeypatch.setattr(file_batch, "TOGETHER", 7)
    answers = read_file_batch([write_profile_file(profile) for profile in profiles])
    assert answers == [FileRecord(profile.version, encode_record(profile)) for profile in profiles]
    assert len(read) == 1


def test_a_bad_first_file_does_not_hide_the_good_ones(make_profile: MakeProfile) -> None:
    good = [write_profile_file(make_profile(seed)) for seed in range(6)]
    bad = good[0][:-1] + b"\x07"
    assert batch([bad, *good, bad]) == [alone(data) for data in [bad, *good, bad]]
    assert isinstance(batch([bad, *good])[0], str)


def test_a_file_over_the_limit_is_refused_for_its_size(make_profile: MakeProfile) -> None:
    small = [write_profile_file(make_profile(seed)) for seed in range(3)]
    large = [write_profile_file(make_profile(seed, labels=("a", "b"))) for seed in range(3)]
    limit = len(small[0])
    files = [*small, *large]
    assert batch(files, limit) == [alone(data, limit) for data in files]
    assert [isinstance(answer, str) for answer in batch(files, limit)] == [False] * 3 + [True] * 3


def test_a_header_that_lies_about_its_length_is_no_group(make_profile: MakeProfile) -> None:
    data = write_profile_file(make_profile())
    liars = [length.to_bytes(8, "little") + data[8:] for length in (0, 7, 2**63, 2**64 - 1, len(data))]
    assert batch(liars * 2) == [alone(liar) for liar in liars * 2]
    assert batch([]) == []


def test_soft_rows_at_the_edge_of_the_tolerance_are_left_to_the_exact_rule() -> None:
    masks = {name: np.full((1, 4), 0.25, np.float32) for name in ("mask_a", "mask_b")}
    edges = [1 + 0.0004, 1 + 0.0006, 1 + 0.00099, 1 + 0.00101, 1 - 0.00099]
    files = [file_of({**masks, "mask_b": masks["mask_b"] * np.float32(sums)}) for sums in edges]
    record = encode_record(read_profile_file(file_of(masks)))
    together = FileLayout(file_of(masks), record).records(files)
    assert [each is not None for each in together] == [True, False, False, False, False]
    assert batch([file_of(masks), *files])[1:] == [alone(data) for data in files]
