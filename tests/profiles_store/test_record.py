from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xpeft_profiles import (
    RecordDamaged,
    StoredProfile,
    decode_record,
    encode_record,
    read_profile_file,
    write_profile_file,
)
from xpeft_profiles.record.reader import read_summary

MakeProfile = Callable[..., Any]
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
profiles_options = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "blocks": st.integers(1, 4),
        "adapters": st.integers(1, 40),
        "width": st.integers(1, 9),
        "hidden": st.integers(1, 9),
        "soft": st.booleans(),
        "layer_norm": st.booleans(),
        "bank": st.sampled_from(["sha256:" + "0f" * 32, "sha256:" + "0F" * 32, "a test's bank"]),
        "description": st.none() | st.text(st.characters(codec="utf-8"), max_size=40),
    }
)
heads = st.fixed_dictionaries({"labels": st.lists(texts, min_size=1, max_size=6, unique=True).map(tuple)})
shared = st.fixed_dictionaries({"shared_head": texts})
FIELDS = ("mask_a", "mask_b", "ln_weight", "ln_bias", "head_weight", "head_bias")


@settings(max_examples=200, deadline=None)
@given(options=profiles_options, head=heads | shared | st.just({}), k=st.integers(1, 40))
def test_a_record_comes_back_as_the_profile_that_it_was(
    options: dict[str, Any], head: dict[str, Any], k: int, make_profile: MakeProfile
) -> None:
    profile = make_profile(**options, **head, k=min(k, options["adapters"]))
    record = encode_record(profile)
    again = decode_record(record)
    assert encode_record(again) == record
    assert profile.version == again.version == "sha256:" + hashlib.sha256(record).hexdigest()
    for field in FIELDS:
        here, there = getattr(profile, field), getattr(again, field)
        assert (here is None) == (there is None)
        if here is not None:
            assert here.dtype == there.dtype
            assert np.array_equal(here, there)
            assert not there.flags.writeable
    for word in ("bank", "labels", "shared_head", "description", "k", "hard"):
        assert getattr(profile, word) == getattr(again, word)
    assert read_summary(record) == (profile.labels, profile.shared_head)
    assert read_profile_file(write_profile_file(profile)).version == profile.version


@settings(max_examples=400, deadline=None)
@given(options=profiles_options, head=heads | shared | st.just({}), data=st.data())
def test_a_single_changed_byte_is_always_seen(
    options: dict[str, Any], head: dict[str, Any], data: st.DataObject, make_profile: MakeProfile
) -> None:
    record = bytearray(encode_record(make_profile(**options, **head, k=1)))
    place = data.draw(st.integers(0, len(record) - 1))
    record[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RecordDamaged):
        decode_record(bytes(record))
    with pytest.raises(RecordDamaged):
        read_summary(bytes(record))


def test_every_flipped_bit_and_every_cut_of_a_record_is_seen(make_profile: MakeProfile) -> None:
    record = encode_record(make_profile(labels=("a", "b")))
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(RecordDamaged):
            decode_record(bytes(damaged))
    for size in range(len(record)):
        with pytest.raises(RecordDamaged):
            decode_record(record[:size])
    with pytest.raises(RecordDamaged):
        decode_record(record + b"\0")


def resealed(record: bytes, place: int, change: bytes) -> bytes:
    """A record that somebody changed and gave a checksum that fits."""
    body = record[:place] + change + record[place + len(change) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (0, b"XPFS", "begins with b'XPFS'"),
        (4, b"\2", "has format 2, this server reads format 1"),
        (5, b"\x09", "flags 0x9"),
        (6, b"\xff" * 4, "its header promises"),
        (6, b"\0" * 8, "its header promises"),
        (30, b"\0" * 32, None),
        (62, b"\xff" * 3, "bits beyond|selects"),
        (62, b"\0" * 3, "row 0 is empty"),
    ],
)
def test_a_record_with_a_checksum_that_fits_is_still_checked(
    make_profile: MakeProfile, place: int, change: bytes, message: str | None
) -> None:
    record = resealed(encode_record(make_profile()), place, change)
    if message is None:
        assert decode_record(record).bank == "sha256:" + "00" * 32
        return
    with pytest.raises(RecordDamaged, match=message):
        decode_record(record)


@pytest.mark.parametrize(
    "text", [b'{ "head":"t"}', b'{"head":"top"', b'"head is a topic"', b'{"haed":"to"}', b'{"labels":[]}']
)
def test_a_text_that_is_not_canonical_is_damage(make_profile: MakeProfile, text: bytes) -> None:
    record = encode_record(make_profile(shared_head="t" * (len(text) - len('{"head":""}'))))
    with pytest.raises(RecordDamaged, match=r"text|no valid profile"):
        decode_record(resealed(record, 62, text))


def test_the_record_has_the_bytes_that_the_design_promises(make_profile: MakeProfile) -> None:
    bert = {"blocks": 12, "adapters": 100, "width": 48, "k": 50}
    fixed = 66
    assert len(encode_record(make_profile(**bert))) == fixed + 312
    assert len(encode_record(make_profile(**bert, layer_norm=True))) == fixed + 312 + 2304


def test_a_version_is_for_ever(make_profile: MakeProfile) -> None:
    """Changing the record's format changes every version that a client holds: then this number changes too."""
    rows = np.eye(4, dtype=bool)
    profile = make_profile().__class__(
        bank="sha256:" + "01" * 32, mask_a=rows, mask_b=rows[::-1], shared_head="topics", description="é"
    )
    assert encode_record(profile).hex() == (
        "58504652"
        "01"
        "01"
        "04000000"
        "04000000"
        "00000000"
        "00000000"
        "00000000"
        "24000000" + "01" * 32 + b'{"description":"\xc3\xa9","head":"topics"}'.hex() + "01020408"
        "08040201"
        "71e4c8bd"
    )


def test_a_record_that_is_not_the_one_of_its_version_is_damaged(make_profile: MakeProfile) -> None:
    one, two = make_profile(1), make_profile(2)
    assert StoredProfile(one.version, encode_record(one), 0, 0).decode().version == one.version
    with pytest.raises(RecordDamaged, match="is kept as"):
        StoredProfile(one.version, encode_record(two), 0, 0).decode()
