"""Writing the files of records together comes to what writing each alone comes to, whatever is in them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpeft_profiles import Profile, RecordDamaged, decode_record, encode_record, write_file_batch, write_profile_file
from xpeft_profiles.record import batch as record_batch
from xpeft_profiles.record.layout import CHECKSUM, HEADER, RecordHeader

MakeProfile = Callable[..., Profile]
EXAMPLES = 5_000 if os.environ.get("NIGHTLY") == "1" else 150
FORMS: list[dict[str, Any]] = [
    {},
    {"soft": True},
    {"adapters": 16},
    {"layer_norm": True, "description": "é"},
    {"labels": ("yes", "no", "日本"), "soft": True},
    {"layer_norm": True, "labels": ("a", "b")},
    {"shared_head": "topics", "bank": "a test's bank"},
]


def alone(record: bytes) -> bytes | str:
    try:
        return write_profile_file(decode_record(record))
    except RecordDamaged as error:
        return error.message


def batch(records: list[bytes]) -> list[bytes | str]:
    return [each.message if isinstance(each, RecordDamaged) else each for each in write_file_batch(records)]


def signed(record: bytes) -> bytes:
    """With the checksum that its bytes ask for."""
    body = record[: -CHECKSUM.size]
    return body + CHECKSUM.pack(zlib.crc32(body))


@st.composite
def spoiled(draw: st.DrawFn, record: bytes) -> bytes:
    """A record with a fault, or with none; most faults have the right checksum."""
    header = RecordHeader(*HEADER.unpack_from(record))
    begin, end = HEADER.size + header.text_bytes, len(record) - CHECKSUM.size
    data = bytearray(record)
    match draw(st.sampled_from(["", "", "", "bit", "half", "header", "sum", "cut"])):
        case "bit":
            data[draw(st.integers(begin, end - 1))] ^= 1 << draw(st.integers(0, 7))
        case "half":
            place = begin + 2 * draw(st.integers(0, (end - begin) // 2 - 1))
            value = draw(st.sampled_from([-0.0, np.nan, np.inf, -1.0, 0.0, 1.0]))
            data[place : place + 2] = np.array(value, "<f2").tobytes()
        case "header":
            data[draw(st.integers(0, begin - 1))] ^= 1 << draw(st.integers(0, 7))
        case "sum":
            data[draw(st.integers(0, len(data) - 1))] ^= 1
            return bytes(data)
        case "cut":
            return bytes(data[: draw(st.integers(0, len(data) - 1))])
    return signed(bytes(data))


@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_a_batch_is_written_as_each_record_alone(data: st.DataObject, make_profile: MakeProfile) -> None:
    records = [
        data.draw(spoiled(encode_record(make_profile(seed, **form))))
        for form in data.draw(st.lists(st.sampled_from(FORMS), min_size=1, max_size=3))
        for seed in data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=6))
    ]
    records = data.draw(st.permutations(records))
    assert batch(records) == [alone(record) for record in records]


@settings(max_examples=EXAMPLES, deadline=None)
@given(records=st.lists(st.binary(max_size=80)))
def test_any_bytes_are_written_as_each_record_alone(records: list[bytes]) -> None:
    assert batch(records) == [alone(record) for record in records]


@pytest.mark.parametrize("form", FORMS)
def test_records_that_begin_alike_are_written_together(
    make_profile: MakeProfile, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles = [make_profile(seed, **form) for seed in range(20)]
    decoded: list[bytes] = []

    def counted(record: bytes) -> Profile:
        decoded.append(record)
        return decode_record(record)

    monkeypatch.setattr(record_batch, "decode_record", counted)
    monkeypatch.setattr(record_batch, "TOGETHER", 7)
    files = write_file_batch([encode_record(profile) for profile in profiles])
    assert files == [write_profile_file(profile) for profile in profiles]
    assert len(decoded) == 1


@pytest.mark.parametrize(
    ("form", "place", "value"),
    [
        ({}, 2, 0xFF),  # beyond the 20 adapters of a row
        ({}, 0, 0x00),  # another k
        ({"soft": True}, 1, 0xFC),  # an infinity, or a NaN
        ({"soft": True}, slice(0, 2), b"\x00\x80"),  # a negative zero
        ({"layer_norm": True}, slice(12, 14), b"\x00\x7e"),  # a NaN behind the masks
    ],
)
def test_a_record_of_wrong_values_spoils_no_other_and_is_told_why(
    make_profile: MakeProfile, form: dict[str, Any], place: Any, value: Any
) -> None:
    good = [encode_record(make_profile(seed, **form)) for seed in range(4)]
    header = RecordHeader(*HEADER.unpack_from(good[1]))
    arrays = bytearray(good[1][HEADER.size + header.text_bytes :])
    arrays[place] = value
    wrong = signed(good[1][: HEADER.size + header.text_bytes] + bytes(arrays))
    with pytest.raises(RecordDamaged):
        decode_record(wrong)
    records = [wrong, good[0], wrong, good[2], good[3][:-1] + bytes([good[3][-1] ^ 1])]
    assert batch(records) == [alone(record) for record in records]
    assert [isinstance(each, bytes) for each in batch(records)] == [False, True, False, True, False]
