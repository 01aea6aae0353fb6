"""Profile files: ours, those that the safetensors library writes, and those that a stranger made up."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

from xpeft_profiles import ProfileInvalid, decode_record, encode_record, read_profile_file, write_profile_file

BANK = "sha256:" + "5a" * 32
METADATA: dict[str, Any] = {"format": "xpeft-profile-1", "bank": BANK}
HARD = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
HEAD = np.arange(16, dtype=np.float32).reshape(2, 8)
MASKS: dict[str, Any] = {"mask_a": HARD, "mask_b": HARD}
LABELS: dict[str, Any] = {"labels": '["no", "yes"]'}
MakeProfile = Callable[..., Any]


def file_of(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype: str, shape: Any, begin: Any, end: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw(masks: dict[str, Any] | None = None, body: bytes = HARD.tobytes() * 2, **metadata: Any) -> bytes:
    """A file whose two masks are described as told."""
    entries = {"mask_a": entry("U8", [2, 3], 0, 6), "mask_b": entry("U8", [2, 3], 6, 12), **(masks or {})}
    return file_of({"__metadata__": {**METADATA, **metadata}, **entries}, body)


def saved(tensors: dict[str, Any], **metadata: Any) -> bytes:
    """A file as the safetensors library writes it."""
    return safetensors.numpy.save({**MASKS, **tensors}, {**METADATA, **metadata})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"soft": True},
        {"layer_norm": True, "description": 'with "quotes", ü and \x00'},
        {"labels": ("yes", "no", "日本")},
        {"soft": True, "layer_norm": True, "labels": tuple(map(str, range(300))), "description": ""},
        {"shared_head": "topics", "bank": "a test's bank"},
    ],
)
def test_a_written_file_is_read_as_the_same_version(make_profile: MakeProfile, options: dict[str, Any]) -> None:
    profile = make_profile(**options)
    data = write_profile_file(profile)
    again = read_profile_file(data)
    assert again.version == profile.version
    assert write_profile_file(again) == data
    tensors = safetensors.numpy.load(data)
    assert np.array_equal(tensors["mask_a"], profile.mask_a)
    assert ("head.weight" in tensors) == (profile.head_weight is not None)


def test_a_file_of_the_safetensors_library_is_read() -> None:
    head = {"head.weight": HEAD, "head.bias": np.array([0.5, -1], np.float16)}
    norm = {"ln_bias": np.full((2, 4), 0.1, np.float32)}
    profile = read_profile_file(saved({**head, **norm}, **LABELS, description="é"))
    assert np.array_equal(profile.mask_a, HARD)
    assert profile.head_weight is not None
    assert profile.ln_weight is not None
    assert profile.ln_bias is not None
    assert profile.head_weight.tolist() == HEAD.tolist()
    assert profile.ln_bias[0, 0] == np.float16(0.1)
    assert (profile.labels, profile.description) == (("no", "yes"), "é")


def test_the_order_and_dtypes_of_a_file_do_not_matter() -> None:
    tensors = {"head.weight": HEAD, "ln_weight": np.ones((2, 4), np.float32)}
    one = read_profile_file(saved(tensors, **LABELS))
    halves = {name: array.astype(np.float16) for name, array in reversed(tensors.items())}
    two = read_profile_file(
        saved({"mask_b": HARD.astype(bool), **halves, "mask_a": HARD.astype(bool)}, labels='["no","\\u0079es"]')
    )
    assert one.version == two.version
    swapped = raw({"mask_b": entry("BOOL", [2, 3], 0, 6), "mask_a": entry("U8", [2, 3], 6, 12)})
    assert read_profile_file(swapped).version == read_profile_file(raw()).version


def test_a_large_label_list_is_limited_by_the_body_alone() -> None:
    labels = [f"label {i}" for i in range(30_000)]
    head = np.zeros((len(labels), 1), np.float16)
    data = saved({"head.weight": head}, labels=json.dumps(labels))
    profile = read_profile_file(data, max_bytes=len(data))
    assert profile.labels == tuple(labels)
    with pytest.raises(ProfileInvalid, match=f"body: has {len(data)} bytes, at most {len(data) - 1} are allowed"):
        read_profile_file(data, max_bytes=len(data) - 1)


DEEP = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
TWICE = b'{"mask_a":{"dtype":"U8","dtype":"U8","shape":[2,3],"data_offsets":[0,6]}}'

REFUSED: dict[str, tuple[bytes, str, str]] = {
    "empty": (b"", "header", "a body of 0 bytes"),
    "too short for a length": (b"\1\0\0", "header", "a body of 3 bytes"),
    "length beyond the file": (file_of({}, length=3), "header", "only 2 bytes follow"),
    "length of 2^64-1": (b"\xff" * 8 + b"{}", "header", "18446744073709551615, at most 100000000"),
    "another kind of file": (b"-----BEGIN CERTIFICATE-----", "header", "the file begins with b'-----BEG', where"),
    "length short of the object": (file_of(b'{"a":1}', length=3), "header", "is not valid JSON"),
    "empty header": (file_of(b""), "header", "must be a JSON object"),
    "no object": (file_of(b"[]"), "header", "must be a JSON object"),
    "blank before the object": (file_of(b" {}"), "header", "must be a JSON object"),
    "no UTF-8": (file_of(b'{"\xff":1}'), "header", "is not UTF-8 at byte 2"),
    "two objects": (file_of(b"{}{}"), "header", "is not valid JSON"),
    "endless nesting": (file_of(DEEP), "header", "is nested too deeply"),
    "endless number": (file_of(b'{"a":' + b"9" * 5000 + b"}"), "header", "is not valid JSON"),
    "NaN in the header": (file_of(b'{"a":NaN}'), "header", "NaN is not a JSON number"),
    "a key twice": (file_of(b'{"mask_a":{},"mask_a":{}}'), "header", "'mask_a' stands there twice"),
    "a key twice, deeper": (file_of(TWICE), "header", "'dtype' stands there twice"),
    "a metadata key twice": (
        file_of(b'{"__metadata__":{"bank":"a","bank":"b"}}'),
        "header",
        "'bank' stands there twice",
    ),
    "a key twice among many": (
        file_of(b"{" + b",".join(b'"%d":0' % i for i in range(100_000)) + b',"77777":0}'),
        "header",
        "'77777' stands there twice",
    ),
    "metadata that is no object": (file_of({"__metadata__": []}), "__metadata__", r"\[\] is not an object of strings"),
    "metadata that is no text": (raw(labels=["a"]), "__metadata__", "is not an object of strings"),
    "no metadata": (file_of({}), "format", "is None, it must be 'xpeft-profile-1'"),
    "another format": (raw(format="pt"), "format", "is 'pt'"),
    "no bank": (file_of({"__metadata__": {"format": "xpeft-profile-1"}}), "bank", "must name the bank"),
    "an unknown metadata key": (raw(author="me"), "author", "may only have format, bank"),
    "an unknown tensor": (raw({"mask_c": entry("U8", [1], 12, 13)}), "mask_c", "no such tensor"),
    "an unknown tensor that is no name": (raw({"a\n\ud800": entry("U8", [1], 12, 13)}), r"a\n\ud800", "no such tensor"),
    "an unknown tensor with a long name": (
        raw({"x" * 5000: entry("U8", [1], 12, 13)}),
        "x" * 37 + "..." + "x" * 38,
        "no such tensor",
    ),
    "a mask missing": (saved({})[:0] + file_of({"__metadata__": METADATA}), "mask_a", "is missing"),
    "an entry that is no object": (raw({"mask_a": 5}), "mask_a", "5 does not have just dtype"),
    "an entry without offsets": (raw({"mask_a": {"dtype": "U8", "shape": [2, 3]}}), "mask_a", "does not have just"),
    "an entry with more": (raw({"mask_a": {**entry("U8", [2, 3], 0, 6), "x": 1}}), "mask_a", "does not have just"),
    "an unknown dtype": (raw({"mask_a": entry("BF16", [2, 3], 0, 12)}), "mask_a", "dtype is 'BF16', it must be one of"),
    "a dtype that is no text": (raw({"mask_a": entry([], [2, 3], 0, 6)}), "mask_a", r"dtype is \[\]"),  # type: ignore[arg-type]
    "integers as numbers": (saved({"ln_weight": np.ones((2, 4), np.uint8)}), "ln_weight", "dtype is U8"),
    "a shape that is no list": (raw({"mask_a": entry("U8", 6, 0, 6)}), "mask_a", "shape is 6"),
    "a shape of truths": (raw({"mask_a": entry("U8", [True, 6], 0, 6)}), "mask_a", r"shape is \[True, 6\]"),
    "a fraction of a shape": (raw({"mask_a": entry("U8", [2.0, 3], 0, 6)}), "mask_a", r"shape is \[2.0, 3\]"),
    "a negative shape": (raw({"mask_a": entry("U8", [-2, -3], 0, 6)}), "mask_a", r"shape is \[-2, -3\]"),
    "a shape of three": (raw({"mask_a": entry("U8", [1, 2, 3], 0, 6)}), "mask_a", "must be 2 sizes"),
    "a shape with a zero": (
        raw({"mask_a": entry("U8", [0, 3], 0, 0)}),
        "mask_a",
        r"shape is \[0, 3\], .* none of them zero",
    ),
    "a huge shape": (
        raw({"mask_a": entry("U8", [2**40, 2**40], 0, 6)}),
        "mask_a",
        "is not the size of",
    ),
    "an absurd shape": (raw({"mask_a": entry("U8", [10**4299] * 2, 0, 6)}), "mask_a", "is not the size of"),
    "huge offsets": (
        raw({"mask_a": entry("U8", [2**30, 2**30], 0, 2**60)}),
        "mask_a",
        "there are 12 bytes",
    ),
    "absurd offsets": (raw({"mask_a": entry("U8", [2, 3], 10**4299, 10**4299 + 6)}), "mask_a", "there are 12 bytes"),
    "one offset": (
        raw({"mask_a": {**entry("U8", [2, 3], 0, 6), "data_offsets": [0]}}),
        "mask_a",
        r"data_offsets are \[0\]",
    ),
    "negative offsets": (raw({"mask_a": entry("U8", [2, 3], -6, 0)}), "mask_a", r"data_offsets are \[-6, 0\]"),
    "offsets the wrong way": (raw({"mask_a": entry("U8", [2, 3], 6, 0)}), "mask_a", r"data_offsets are \[6, 0\]"),
    "offsets that do not fit the shape": (raw({"mask_a": entry("U8", [2, 3], 0, 5)}), "mask_a", "is not the size of"),
    "offsets beyond the file": (raw({"mask_b": entry("U8", [2, 3], 7, 13)}), "mask_b", "there are 12 bytes"),
    "overlapping offsets": (raw({"mask_b": entry("U8", [2, 3], 5, 11)}), "mask_b", "overlaps the tensor before it"),
    "the same offsets": (raw({"mask_b": entry("U8", [2, 3], 0, 6)}), "mask_b", "overlaps the tensor before it"),
    "sizes with a point": (raw({"mask_a": entry("U8", [2.0, 3.0], 0, 6)}), "mask_a", r"shape is \[2.0, 3.0\]"),
    "sizes that are true": (raw({"mask_a": entry("U8", [True, 6], 0, 6)}), "mask_a", r"shape is \[True, 6\]"),
    "negative sizes": (raw({"mask_a": entry("U8", [-2, -3], 0, 6)}), "mask_a", r"shape is \[-2, -3\]"),
    "sizes beyond 64 bits": (raw({"mask_a": entry("U8", [2**32, 2**32], 0, 0)}), "mask_a", "which is not the size of"),
    "as many sizes as you like": (raw({"mask_a": entry("U8", [1] * 100_000, 0, 1)}), "mask_a", "it must be 2 sizes"),
    "an offset that is infinite": (
        raw({"mask_a": entry("U8", [2, 3], 0, 6e308 * 10)}),
        "header",
        "Infinity is not a JSON",
    ),
    "a dtype that is a list": (raw({"mask_a": entry(["U8"], [2, 3], 0, 6)}), "mask_a", r"dtype is \['U8'\]"),
    "three offsets": (
        raw({"mask_a": {**entry("U8", [2, 3], 0, 6), "data_offsets": [0, 6, 12]}}),
        "mask_a",
        r"data_offsets are \[0, 6, 12\]",
    ),
    "metadata that is null": (file_of({"__metadata__": None}), "__metadata__", "None is not an object of strings"),
    "metadata in metadata": (raw(format={}), "__metadata__", "is not an object of strings"),
    "a key twice in another spelling": (
        file_of(b'{"mask_a":1,"mask\\u005fa":1}'),
        "header",
        "'mask_a' stands there twice",
    ),
    "a byte order mark": (file_of(b"\xef\xbb\xbf{}"), "header", "must be a JSON object"),
    "UTF-16": (file_of("{}".encode("utf-16")), "header", "must be a JSON object"),
    "null bytes behind the object": (file_of(b"{}\0\0"), "header", "is not valid JSON"),
    "a number in octal": (file_of(b'{"a":007}'), "header", "is not valid JSON"),
    "a bank of half a character": (raw(bank="\ud800"), "bank", "is not valid Unicode"),
    "a gap": (raw({"mask_b": entry("U8", [2, 3], 7, 13)}, body=bytes(13)), "mask_b", "leaves a gap before it"),
    "bytes behind": (raw(body=HARD.tobytes() * 2 + b"x"), "header", "1 bytes follow that belong to no tensor"),
    "a BOOL of 2": (raw({"mask_a": entry("BOOL", [2, 3], 0, 6)}, body=b"\2" * 12), "mask_a", r"\[0, 0\] is 2"),
    "a soft and a hard mask": (
        saved({"mask_b": HARD.astype(np.float32)}),
        "mask_b",
        "both masks must be hard",
    ),
    "unequal k": (raw(body=b"\1\1\1\0\1\1" * 2), "mask_a", "row 1 selects k=2"),
    "beyond float16": (saved({"ln_bias": np.full((2, 4), 7e4, np.float32)}), "ln_bias", "is 70000.0, which is beyond"),
    "labels that are no JSON": (raw(labels="a, b"), "labels", "'a, b' is not valid JSON"),
    "labels that are no list": (raw(labels='{"a":1}'), "labels", "is not a JSON list"),
    "labels as deep as you like": (raw(labels="[" * 200_000), "labels", "is nested too deeply"),
    "labels that are no text": (
        saved({"head.weight": HEAD}, labels='["a", ["b"]]'),
        "labels",
        r"\['b'\] is not a non-empty",
    ),
    "labels twice": (saved({"head.weight": HEAD}, labels='["a","a"]'), "labels", "'a' stands there twice"),
    "labels too few": (saved({"head.weight": HEAD}, labels='["a"]'), "labels", "there are 1, head.weight has C=2"),
    "half a character": (saved({"head.weight": HEAD}, labels='["a","\\ud800"]'), "labels", "is not valid Unicode"),
    "labels without a head": (saved({}, **LABELS), "labels", "without a head.weight"),
    "a head without labels": (saved({"head.weight": HEAD}), "labels", "needs 2 labels"),
    "two heads": (saved({"head.weight": HEAD}, **LABELS, head="shared:x"), "head", "has one head at most"),
    "a head that is not shared": (raw(head="x"), "head", "it must be 'shared:NAME'"),
    "a shared head without a name": (raw(head="shared:"), "head", "'' is not a non-empty string"),
    "labels of a shared head": (raw(head="shared:x", **LABELS), "labels", "without a head.weight"),
    "a long description": (raw(description="x" * 1025), "description", "1025 bytes, at most 1024"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_lies_is_refused_by_name_and_value(case: str) -> None:
    data, param, message = REFUSED[case]
    with pytest.raises(ProfileInvalid, match=message) as refused:
        read_profile_file(data)
    assert refused.value.param == param
    assert refused.value.message.startswith(f"{param}: ")
    assert len(refused.value.message) < 500


def test_a_refusal_costs_no_memory_for_what_the_file_claims() -> None:
    data = raw({"mask_a": entry("F32", [2**20, 2**10], 0, 2**32)})
    tracemalloc.start()
    with pytest.raises(ProfileInvalid):
        read_profile_file(data)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_changed_file_is_refused_or_is_a_valid_profile(data: st.DataObject, make_profile: MakeProfile) -> None:
    content = bytearray(write_profile_file(make_profile(labels=("a", "b"), layer_norm=True, soft=True)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    try:
        profile = read_profile_file(bytes(content[:end]))
    except ProfileInvalid:
        return
    assert decode_record(encode_record(profile)).version == profile.version


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner) | st.dictionaries(st.sampled_from(["mask_a", "dtype", "shape", "__metadata__", "x"]), inner)
        ),
    )
)
@example({"__metadata__": {"format": None}})
def test_any_json_for_a_header_is_refused_politely(header: Any) -> None:
    with pytest.raises(ProfileInvalid):
        read_profile_file(file_of(header, b"\0" * 24))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_refused_politely(content: bytes) -> None:
    with pytest.raises(ProfileInvalid):
        read_profile_file(content)
