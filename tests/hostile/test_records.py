"""Records that somebody changed: each is refused, or is the one record of the profile that comes out."""

from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import Callable

import pytest

from xpeft_profiles import RecordDamaged, decode_record, encode_record
from xpeft_profiles.record.layout import CHECKSUM, HEADER, OWN_HEAD, RecordHeader
from xpeft_profiles.record.reader import read_summary

MUTATIONS = 1_000_000 if os.environ.get("NIGHTLY") == "1" else 20_000
SIZES = ("blocks", "adapters", "width", "hidden", "classes", "text_bytes")
EXTREMES = (0, 1, 2, 7, 8, 9, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
WORDS = (
    b"{}",
    b'{"head":"\\ud800"}',
    b'{"head":null}',
    b'{"labels":[]}',
    b"[" * 9,
    b'{"bank":"x"}',
    b'{"head":NaN}',
    b"\xff",
)
Mutate = Callable[[bytearray, random.Random, list[bytes]], bytearray]


def sealed(record: bytes | bytearray) -> bytes:
    """With the checksum that fits, as a store that somebody writes into would have it."""
    body = bytes(record[: -CHECKSUM.size])
    return body + CHECKSUM.pack(zlib.crc32(body))


def flip_bits(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    for _ in range(rng.randint(1, 4)):
        bit = rng.randrange(8 * len(record))
        record[bit // 8] ^= 1 << bit % 8
    return record


def change_bytes(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    place = rng.randrange(len(record))
    end = place + rng.randint(1, 8)
    record[place:end] = rng.choice((b"\0", b"\xff", b"\x80\x00", b"\x00\x80", b"\x01")) * (end - place)
    return record


def cut(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    return record[: rng.randrange(len(record))]


def lengthen(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    return record + rng.randbytes(rng.randint(1, 40))


def splice(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    other = rng.choice(seeds)
    here, there = rng.randrange(len(record)), rng.randrange(len(other))
    return record[:here] + other[there:]


def lie_about_sizes(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    header = RecordHeader(*HEADER.unpack_from(record))
    for name in rng.sample(SIZES, rng.randint(1, 2)):
        near = (getattr(header, name) + rng.choice((-1, 1))) % (1 << 32)
        header = header._replace(**{name: rng.choice((*EXTREMES, near))})
    HEADER.pack_into(record, 0, *header)
    return record


def lie_and_measure(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    """As long as the lie claims, where that is a size that one can send."""
    record = lie_about_sizes(record, rng, seeds)
    wanted = RecordHeader(*HEADER.unpack_from(record)).record_bytes
    return record[:wanted].ljust(wanted, b"\0") if wanted < 1 << 16 else record


def change_flags(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    record[5] = rng.randrange(16)
    wanted = RecordHeader(*HEADER.unpack_from(record)).record_bytes
    return record[:wanted].ljust(wanted, b"\0") if wanted < 1 << 16 else record


def change_text(record: bytearray, rng: random.Random, seeds: list[bytes]) -> bytearray:
    header = RecordHeader(*HEADER.unpack_from(record))
    text = rng.choice(WORDS)
    rest = record[HEADER.size + header.text_bytes :]
    return bytearray(HEADER.pack(*header._replace(text_bytes=len(text)))) + text + rest


MUTATE: tuple[Mutate, ...] = (
    flip_bits,
    change_bytes,
    cut,
    lengthen,
    splice,
    lie_about_sizes,
    lie_and_measure,
    change_flags,
    change_text,
)


@pytest.fixture(scope="module")
def seeds(valid_seeds: Callable[[str], list[bytes]]) -> list[bytes]:
    return valid_seeds("record")


def outcome(record: bytes) -> str:
    try:
        profile = decode_record(record)
    except RecordDamaged:
        return "damaged"
    assert encode_record(profile) == record
    return "decoded"


def test_a_changed_record_is_damage_or_the_one_record_of_its_profile(seeds: list[bytes]) -> None:
    rng = random.Random(7)
    seen: Counter[tuple[bool, str]] = Counter()
    slowest = 0.0
    for _ in range(MUTATIONS):
        record = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            record = rng.choice(MUTATE)(record, rng, seeds)
            if len(record) <= HEADER.size + CHECKSUM.size:
                break
        honest = rng.random() < 0.8 and len(record) > CHECKSUM.size
        data = sealed(record) if honest else bytes(record)
        began = time.thread_time()
        seen[honest, outcome(data)] += 1
        slowest = max(slowest, time.thread_time() - began)
        with_summary(data)
    assert seen[False, "damaged"] > 0.1 * MUTATIONS
    assert seen[True, "damaged"] > 0.1 * MUTATIONS
    # Most checksums that fit stand under something else that does not; a good part is a profile all the same.
    assert seen[True, "decoded"] > 0.02 * MUTATIONS
    assert slowest < 0.25


def with_summary(record: bytes) -> None:
    """What a listing reads of a record is refused in the same way."""
    try:
        read_summary(record)
    except RecordDamaged:
        return


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("size", [2**16, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("others", [None, 0])
def test_a_size_that_is_a_lie_costs_no_memory(seeds: list[bytes], name: str, size: int, others: int | None) -> None:
    """``others``: zero makes the product of sizes small, so that the record's length does not give the lie away."""
    for seed in seeds:
        header = RecordHeader(*HEADER.unpack_from(seed))
        zeros = {} if others is None else dict.fromkeys(SIZES, others)
        lie = HEADER.pack(*header._replace(**{**zeros, name: size}))
        record = sealed(lie + seed[HEADER.size :])
        short = sealed(lie + b"\0" * CHECKSUM.size)
        tracemalloc.start()
        for each in (record, short):
            with pytest.raises(RecordDamaged):
                decode_record(each)
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()


def test_a_text_as_deep_as_you_like_is_damage(seeds: list[bytes]) -> None:
    header = RecordHeader(*HEADER.unpack_from(seeds[0]))
    for depth in [*range(800, 1100), 100_000]:
        text = b'{"head":' + b"[" * depth + b"]" * depth + b"}"
        body = HEADER.pack(*header._replace(text_bytes=len(text))) + text + seeds[0][HEADER.size :]
        with pytest.raises(RecordDamaged):
            decode_record(sealed(body))
        with pytest.raises(RecordDamaged):
            read_summary(sealed(body))


def test_a_negative_zero_is_not_how_a_zero_is_kept(seeds: list[bytes]) -> None:
    for seed in seeds:
        if seed[5] & OWN_HEAD:
            record = bytearray(seed)
            struct.pack_into("<e", record, len(record) - CHECKSUM.size - 2, -0.0)
            with pytest.raises(RecordDamaged, match="canonical"):
                decode_record(sealed(record))
