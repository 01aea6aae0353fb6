from __future__ import annotations

import binascii
from base64 import b64encode

from hypothesis import given
from hypothesis import strategies as st

from xpeft_profiles.transfer.base64_batch import decode_base64


def one(text: bytes) -> bytes | None:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        return None


LETTERS = st.text("AZaz09+/=\n -_", max_size=12).map(str.encode)


@given(texts=st.lists(st.one_of(st.binary(max_size=30).map(b64encode), LETTERS, st.binary(max_size=9)), max_size=8))
def test_together_comes_to_what_one_after_the_other_comes_to(texts: list[bytes]) -> None:
    assert decode_base64(texts) == [one(text) for text in texts]


def test_every_pair_of_bytes_is_judged_right() -> None:
    for first in range(0, 256, 5):
        texts = [bytes([first, second]) + b"AA" for second in range(256)]
        for text in texts:
            assert decode_base64([text]) == [one(text)]


@given(files=st.lists(st.binary(min_size=3, max_size=300), min_size=1, max_size=20))
def test_what_was_encoded_comes_back(files: list[bytes]) -> None:
    assert decode_base64([b64encode(file) for file in files]) == files
