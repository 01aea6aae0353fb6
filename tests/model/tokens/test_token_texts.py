from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from xpeft_server.model.errors import ModelUnusable
from xpeft_server.model.tokens.token_texts import TokenTexts

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def tokenizer_of(words: list[str], decoder: decoders.Decoder | None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(words)}, unk_token=words[0]))
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def test_a_byte_level_token_is_its_bytes() -> None:
    texts = TokenTexts(tokenizer_of([*ALPHABET, "Ġthe", "ĊĊ", "ðŁĻĤ", "Ġâ", "日"], decoders.ByteLevel()))
    assert texts.byte_level
    assert not texts.drops_first_space
    assert {texts.part(token) for token in range(256)} == {bytes([byte]) for byte in range(256)}
    assert [texts.part(token) for token in range(256, 261)] == [
        b" the",
        b"\n\n",
        "🙂".encode(),
        b" \xe2",
        "日".encode(),
    ]
    assert texts.told(256) == (" the", b" the")
    assert texts.told(258) == ("🙂", "🙂".encode())
    assert texts.told(259) == (" \ufffd", b" \xe2")


def test_a_token_of_one_byte_is_that_byte_among_tokens_of_text() -> None:
    texts = TokenTexts(tokenizer_of(["▁the", "<0xE6>", "<0x61>", "<0x6>", "é", "▁▁"], LLAMA))
    assert not texts.byte_level
    assert [texts.part(token) for token in range(6)] == [" the", b"\xe6", b"a", "<0x6>", "é", "  "]
    assert texts.told(0) == (" the", b" the")
    assert texts.told(1) == ("\ufffd", b"\xe6")
    assert texts.told(2) == ("a", b"a")
    assert texts.told(4) == ("é", "é".encode())


def test_what_looks_like_a_byte_is_text_where_no_token_is_a_byte() -> None:
    for decoder in (decoders.Metaspace(), None):
        assert TokenTexts(tokenizer_of(["x", "<0x61>"], decoder)).told(1).text.strip() == "<0x61>"


@pytest.mark.parametrize(
    ("decoder", "word", "part", "drops_first_space"),
    [
        (LLAMA, "▁a", " a", True),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), "▁a", " a", False),
        (decoders.Metaspace(), "▁a", " a", True),
        (decoders.Metaspace(prepend_scheme="never"), "▁a", " a", False),
        (decoders.WordPiece("##"), "##a", "a", True),
        (decoders.WordPiece("##"), "a", " a", True),
        (None, "a", " a", True),
    ],
)
def test_a_token_is_told_as_it_stands_behind_another(
    decoder: decoders.Decoder | None, word: str, part: str, drops_first_space: bool
) -> None:
    texts = TokenTexts(tokenizer_of(["x", word], decoder))
    assert texts.part(1) == part
    assert texts.told(1) == (part, part.encode())
    assert texts.drops_first_space == drops_first_space


@pytest.mark.parametrize("decoder", [decoders.ByteLevel(), LLAMA, None])
def test_a_special_token_adds_nothing_and_is_told_by_its_name(decoder: decoders.Decoder | None) -> None:
    tokenizer = tokenizer_of(["x", "<s>"], decoder)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<é>", special=True)])
    tokenizer.add_tokens([" é "])
    texts = TokenTexts(tokenizer)
    assert not texts.part(1)
    assert not texts.part(2)
    assert texts.told(1) == ("<s>", b"<s>")
    assert texts.told(2) == ("<é>", "<é>".encode())
    assert texts.told(3).text.endswith(" é ")


@pytest.mark.parametrize("decoder", [decoders.ByteLevel(), LLAMA, None])
def test_an_id_that_no_token_has_adds_nothing(decoder: decoders.Decoder | None) -> None:
    texts = TokenTexts(tokenizer_of(["x"], decoder))
    assert not texts.part(1)
    assert texts.told(1) == ("", b"")


@pytest.mark.parametrize(
    ("decoder", "named"),
    [
        (decoders.CTC(), "CTC"),
        (decoders.BPEDecoder(), "BPEDecoder"),
        (decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)]), "ByteLevel, Strip"),
        (decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]), "Fuse, Replace"),
        (decoders.Strip(" ", 0, 1), "Strip of the end"),
    ],
)
def test_a_decoder_whose_tokens_depend_on_their_neighbours_is_refused(decoder: decoders.Decoder, named: str) -> None:
    with pytest.raises(ModelUnusable, match=rf"cannot be streamed from its tokenizer's decoder \({named}\)"):
        TokenTexts(tokenizer_of(["x"], decoder))


def test_several_threads_may_ask_at_once() -> None:
    texts = TokenTexts(tokenizer_of(ALPHABET, decoders.ByteLevel()))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda token: texts.told(token % 256).bytes, range(4096)))
    assert set(found) == {bytes([byte]) for byte in range(256)}
    assert found[:256] * 16 == found
