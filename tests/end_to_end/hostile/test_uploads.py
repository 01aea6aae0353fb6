"""Files that are no profiles, thousands of them: all refused, nothing stored, and a neighbour notices nothing."""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
import random
import struct
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from xpeft_profiles import BankGeometry, BankMismatch, ProfileInvalid, read_profile_file

UPLOADS = 20_000 if os.environ.get("NIGHTLY") == "1" else 600
PAGE = 4096
Make = Callable[[bytes, random.Random], bytes]


def parted(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a valid file."""
    length = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: Any, tensors: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def lie_about_the_header(data: bytes, rng: random.Random) -> bytes:
    length = rng.choice((0, 1, 2**31, 2**32 + 5, 2**62, 2**64 - 1, len(data), rng.randrange(100)))
    return struct.pack("<Q", length) + data[8:]


def lie_about_a_tensor(data: bytes, rng: random.Random) -> bytes:
    header, tensors = parted(data)
    entry = header[rng.choice(("mask_a", "mask_b", "head.weight", "head.bias"))]
    field, values = rng.choice(
        (
            ("dtype", ("F64", "BF16", "I8", "", None, 7, "F32", "U16")),
            ("shape", ([], [0], [2**62, 2**62], [-1, 3], ["2", 3], [2, 3, 4], "2x3", [1e9, 1], [True, 1], None)),
            ("data_offsets", ([0, 0], [0, 2**63], [-5, 5], [7, 3], [1], [0, 1, 2], ["0", "6"], [10**400, 10**400 + 1])),
        )
    )
    entry[field] = rng.choice(values)
    return joined(header, tensors)


def change_the_header(data: bytes, rng: random.Random) -> bytes:
    header, tensors = parted(data)
    metadata = header["__metadata__"]
    metadata |= rng.choice(
        (
            {"bank": "sha256:" + rng.randbytes(32).hex()},
            {"bank": ""},
            {"format": "xpeft-profile-2"},
            {"labels": "["},
            {"labels": '["a"]'},
            {"labels": '["a","a","a"]'},
            {"labels": '["a","b",3]'},
            {"labels": '["a","b","\\ud800"]'},
            {"labels": "[" * 5000},
            {"head": "shared:nothing"},
            {"head": 5},
            {"description": "d" * 1025},
            {"description": "\ud800"},
            {"surprise": "!"},
        )
    )
    return joined(header, tensors)


def spoil_the_json(data: bytes, rng: random.Random) -> bytes:
    header, tensors = parted(data)
    text = json.dumps(header).encode()
    spoilt = rng.choice(
        (
            text[:-1],
            text + text,
            text.replace(b'"mask_b"', b'"mask_a"'),
            text.replace(b'"dtype"', b'"dtype": "U8", "dtype"', 1),
            text.replace(b"[", b"[NaN,", 1),
            b"[" * rng.randrange(1, 200_000),
            b'{"a":' * rng.randrange(1, 50_000),
            b'{"\xff": 1}',
            b'{"a":' + b"9" * 5000 + b"}",
            b"null",
            b"{}",
            text.decode().encode("utf-16"),
        )
    )
    return joined(spoilt, tensors)


def spoil_a_value(data: bytes, rng: random.Random) -> bytes:
    header, tensors = parted(data)
    spoilt = bytearray(tensors)
    if rng.random() < 0.5:
        begin, end = header[rng.choice(("mask_a", "mask_b"))]["data_offsets"]
        place = rng.randrange(begin, end)
        spoilt[place] = rng.choice((1 - spoilt[place], 2, 255))
    else:
        begin, end = header[rng.choice(("head.weight", "head.bias"))]["data_offsets"]
        struct.pack_into("<e", spoilt, rng.randrange(begin, end, 2), rng.choice((math.nan, math.inf, -math.inf)))
    return joined(header, bytes(spoilt))


def another_file(data: bytes, rng: random.Random) -> bytes:
    noise = rng.randbytes(rng.randrange(3000))
    kinds = (noise, gzip.compress(data), pickle.dumps({"mask_a": noise}), b"PK\x03\x04" + noise, data + b"\0", b"")
    return rng.choice(kinds)


MALFORMED: tuple[Make, ...] = (
    cut,
    lie_about_the_header,
    lie_about_a_tensor,
    change_the_header,
    spoil_the_json,
    spoil_a_value,
    another_file,
)


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def geometry_of(server: Any) -> BankGeometry:
    bank = server.client.get("/info").json()["bank"]
    return BankGeometry(bank["fingerprint"], bank["blocks"], bank["adapters"], bank["hidden"], bank["width"])


def is_profile(data: bytes, geometry: BankGeometry) -> bool:
    try:
        read_profile_file(data).check_fits(geometry)
    except (ProfileInvalid, BankMismatch):
        return False
    return True


def files(server: Any, count: int, rng: random.Random) -> list[bytes]:
    """None of them is a profile of the server's bank; those with flipped bits only as far as they are none."""
    geometry = geometry_of(server)
    seeds = [server.profile(seed, labels=3) for seed in range(5)]
    assert all(is_profile(seed, geometry) for seed in seeds)
    found: list[bytes] = []
    while len(found) < count:
        seed = rng.choice(seeds)
        if rng.random() < 0.2:
            data = flip_bits(seed, rng)
            if is_profile(data, geometry):
                continue
        else:
            data = rng.choice(MALFORMED)(seed, rng)
        found.append(data)
    return found


def resident_bytes(server: Any) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * PAGE


def test_malformed_uploads_are_refused_and_nobody_else_notices(
    encoder: Any, neighbour: httpx.Client, refused: Callable[[httpx.Response], None]
) -> None:
    before = encoder.versions()
    question = {"profile": "mine", "input": ["w1 w2", "w3"]}

    def bits() -> Any:
        answer = neighbour.post("/v1/classify", json=question)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    expected = bits()
    seen: Counter[int] = Counter()
    over = threading.Event()

    def ask() -> int:
        asked = 0
        while not over.is_set():
            assert bits() == expected
            asked += 1
        return asked

    def upload(numbered: tuple[int, bytes]) -> None:
        number, data = numbered
        answer = encoder.put("mine" if number % 2 else f"new{number}", data)
        refused(answer)
        seen[answer.status_code] += 1

    rng = random.Random(11)
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(upload, enumerate(files(encoder, 60, rng))))
        resident = resident_bytes(encoder)
        asking = pool.submit(ask)
        try:
            list(pool.map(upload, enumerate(files(encoder, UPLOADS, rng))))
        finally:
            over.set()
        assert asking.result() > 10
    assert seen.keys() == {409, 422}
    assert resident_bytes(encoder) < resident + (8 << 20)
    assert encoder.versions() == before
    assert bits() == expected


@pytest.mark.parametrize("size", [1 << 20, (1 << 20) + 1, 40 << 20])
def test_a_body_of_any_size_costs_no_memory(encoder: Any, refused: Callable[[httpx.Response], None], size: int) -> None:
    resident = resident_bytes(encoder)
    for _ in range(3):
        refused(encoder.put("big", b"\0" * size))
    assert resident_bytes(encoder) < resident + (8 << 20)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/json", "application/octet-stream, text/plain", "x" * 5000]
)
def test_another_kind_of_body_is_refused(encoder: Any, refused: Callable[[httpx.Response], None], kind: str) -> None:
    headers = {"content-type": kind}
    answer = encoder.client.put("/v1/profiles/other", content=encoder.profile(1), headers=headers)
    refused(answer)
    assert answer.status_code == 415
