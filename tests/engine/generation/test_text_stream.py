from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from xpeft_server.engine.generation.text_stream import TextStream
from xpeft_server.model.tokens.tokenizing import TextTokenizer

TIMES = 4 if os.environ.get("NIGHTLY") == "1" else 1
UNKNOWN = "\ufffd"
TEXTS = [
    "The café — naïve, of course — serves 日本語のメニュー and crème brûlée 🙂🙂 👩‍👧.",
    "Привет, мир! 日本 日本語 日本人 🙂🙃 the the the cat, the hat and the café.\n\nUser: hi\n",
]
PIECES = ["▁", "▁▁", "▁the", "▁a", "a", "b", ".", "\n", "é", "日", "▁日本", "s▁", "🙂", "<0x4", "<tool>"]


def wrapped(backend: Tokenizer) -> TextTokenizer:
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **special), 10_000)


def byte_level() -> Tokenizer:
    """As GPT-2 and Llama 3; merges go across the borders of characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"], show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens(["<tool>", " two words", "日本語"])
    return tokenizer


def spelt(*steps: decoders.Decoder, byte_fallback: bool = True) -> Tokenizer:
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    words = ["<unk>", "<s>", "</s>", *byte_tokens, *PIECES]
    vocabulary = {word: id_ for id_, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=byte_fallback))
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in ("<s>", "</s>", "<unk>")])
    if steps:
        tokenizer.decoder = decoders.Sequence(list(steps))
    return tokenizer


SPELT = (decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse())
BACKENDS = {
    "byte_level": byte_level(),
    "llama_2": spelt(*SPELT, decoders.Strip(" ", 1, 0)),
    "gemma": spelt(*SPELT),
    "metaspace": spelt(decoders.Metaspace(), byte_fallback=False),
    "word_piece": spelt(decoders.WordPiece("##"), byte_fallback=False),
    "no_decoder": spelt(byte_fallback=False),
}
TOKENIZERS = {kind: wrapped(backend) for kind, backend in BACKENDS.items()}
WITH_BYTES = ["byte_level", "llama_2", "gemma"]
ENDINGS = [bytes(each) for n in range(4) for each in product(*[(0x80, 0x90, 0xA0)][:n], *[(0x80,)] * (n - 1))]
"""What completes any beginning of a character."""


def decoded(kind: str, tokens: Sequence[int]) -> str:
    text: str = BACKENDS[kind].decode(list(tokens), skip_special_tokens=True)
    return text


def bytes_of(kind: str, some: bytes) -> list[int]:
    """A token a byte."""
    signs = bytes_to_unicode()
    names = [signs[byte] if kind == "byte_level" else f"<0x{byte:02X}>" for byte in some]
    return [BACKENDS[kind].token_to_id(name) for name in names]


def bytes_in(kind: str, tokens: Sequence[int]) -> bytes:
    """Of a vocabulary with tokens of a byte: all the tokens', special ones left out."""
    names = [BACKENDS[kind].id_to_token(token) for token in tokens]
    signs = {sign: byte for byte, sign in bytes_to_unicode().items()}
    written = b""
    for name in names:
        if name is None or name in ("<s>", "</s>", "<unk>"):
            continue
        if kind == "byte_level":
            known = all(sign in signs for sign in name)
            written += bytes(signs[sign] for sign in name) if known else name.encode()
        else:
            byte = re.fullmatch("<0x(..)>", name)
            written += bytes.fromhex(byte[1]) if byte else name.replace("▁", " ").encode()
    return written


def may_go_on(some: bytes) -> bool:
    """Whether what is unknown at the end may still become a character."""
    text = some.decode(errors="replace")
    return text.endswith(UNKNOWN) and any(
        not (some + ending).decode(errors="replace").startswith(text) for ending in ENDINGS
    )


def all_at_once(kind: str, prompt: list[int], answer: list[int]) -> str:
    """The answer's text behind the prompt's, without a character that is unfinished at its end.

    Of bytes that are no characters Llama 2's decoder makes more unknown ones than there are.
    """
    whole, before = decoded(kind, prompt + answer), decoded(kind, prompt)
    unfinished = 0
    if kind in WITH_BYTES:
        some = bytes_in(kind, prompt + answer)
        text, unfinished = some.decode(errors="replace"), int(may_go_on(some))
        if UNKNOWN in text:
            whole, before = text, bytes_in(kind, prompt).decode(errors="replace")
    assert whole.startswith(before)
    return whole[len(before) : len(whole) - unfinished]


def pushed(kind: str, prompt: Sequence[int], answer: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    stream = TextStream(TOKENIZERS[kind], prompt, stop)
    return [*(stream.push(token) for token in answer), stream.end()]


def some_tokens(kind: str) -> st.SearchStrategy[list[int]]:
    """Any of the vocabulary; where there are tokens of a byte, also more of those than of others."""
    vocabulary = st.integers(0, BACKENDS[kind].get_vocab_size() - 1)
    if kind not in WITH_BYTES:
        return st.lists(vocabulary, max_size=30)
    text = st.text("aé日🙂 \n", max_size=4).map(lambda each: bytes_of(kind, each.encode()))
    broken = st.binary(max_size=3).map(lambda each: bytes_of(kind, each))
    parts = st.lists(vocabulary.map(lambda each: [each]) | text | broken, max_size=12)
    return parts.map(lambda many: [token for part in many for token in part])


@pytest.mark.parametrize("kind", BACKENDS)
@given(st.data())
@settings(max_examples=100 * TIMES, deadline=None)
def test_all_pieces_are_the_text_of_all_tokens_at_once(kind: str, data: st.DataObject) -> None:
    word = BACKENDS[kind].token_to_id("a")
    prompt = [*data.draw(some_tokens(kind)), word]
    answer = data.draw(some_tokens(kind))
    assert "".join(pushed(kind, prompt, answer)) == all_at_once(kind, prompt, answer)


@pytest.mark.parametrize("kind", BACKENDS)
@given(st.data())
@settings(max_examples=40 * TIMES, deadline=None)
def test_each_token_brings_all_text_that_is_certain_with_it(kind: str, data: st.DataObject) -> None:
    prompt = [BACKENDS[kind].token_to_id("a")]
    answer = data.draw(some_tokens(kind))
    stream = TextStream(TOKENIZERS[kind], prompt)
    shown = ""
    for count, token in enumerate(answer, 1):
        shown += stream.push(token)
        assert shown == all_at_once(kind, prompt, answer[:count])
    assert stream.end() == ""


@given(st.text(max_size=40))
@settings(max_examples=75 * TIMES, deadline=None)
def test_a_text_comes_back_as_it_was(text: str) -> None:
    tokens = BACKENDS["byte_level"].encode(text, add_special_tokens=False).ids
    pieces = pushed("byte_level", [token_of("byte_level", "a")], tokens)
    assert "".join(pieces) == text
    assert UNKNOWN in text or not any(UNKNOWN in piece for piece in pieces)


def token_of(kind: str, written: str) -> int:
    found = BACKENDS[kind].token_to_id(written)
    assert found is not None
    return int(found)


def test_a_character_comes_with_the_last_of_its_tokens() -> None:
    tokens = bytes_of("byte_level", "🙂é".encode())
    assert pushed("byte_level", [token_of("byte_level", "a")], tokens) == ["", "", "", "🙂", "", "é", ""]


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_a_run_of_bytes_is_told_character_by_character(kind: str) -> None:
    word = token_of(kind, "a")
    assert pushed(kind, [word], bytes_of(kind, "é\n🙂".encode())) == ["", "é", "\n", *[""] * 3, "🙂", ""]
    broken = bytes_of(kind, "é".encode() + b"\xff\xc3")
    assert pushed(kind, [word], [*broken, word]) == ["", "é", UNKNOWN, "", UNKNOWN + "a", ""]


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_a_character_that_the_answer_leaves_unfinished_is_dropped(kind: str) -> None:
    word = token_of(kind, "a")
    assert "".join(pushed(kind, [word], [word, *bytes_of(kind, "é🙂".encode()[:-1])])) == "aé"


@pytest.mark.parametrize("kind", WITH_BYTES)
@pytest.mark.parametrize(
    "never", [b"\xed\xa0", b"\xed\xbf", b"\xe0\x80", b"\xf0\x8f", b"\xf4\x90", b"\xc1\x80", b"\xff\x80"]
)
def test_bytes_that_no_character_begins_with_are_unknown_at_once(kind: str, never: bytes) -> None:
    answer = bytes_of(kind, never)
    assert "".join(pushed(kind, [token_of(kind, "a")], answer)[:-1]) == decoded(kind, answer) == UNKNOWN * 2


@pytest.mark.parametrize("kind", WITH_BYTES)
@pytest.mark.parametrize("begun", ["\ud7ff", "\ue000", "\u0800", "\U0010ffff"])
def test_the_first_and_last_characters_of_each_length_come_whole(kind: str, begun: str) -> None:
    tokens = bytes_of(kind, begun.encode())
    assert "".join(pushed(kind, [token_of(kind, "a")], tokens)) == begun
    assert "".join(pushed(kind, [token_of(kind, "a")], tokens[:-1])) == ""


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_a_character_that_the_prompt_began_comes_whole(kind: str) -> None:
    word = token_of(kind, "a")
    first, *rest = bytes_of(kind, "🙂".encode())
    assert "".join(pushed(kind, [word, first], [*rest, word])) == "🙂a"
    assert "".join(pushed(kind, [word, first, *rest[:2], token_of(kind, "</s>")], [rest[2]])) == "🙂"


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_what_the_prompt_left_unfinished_is_not_the_answers(kind: str) -> None:
    word = token_of(kind, "a")
    half = bytes_of(kind, "🙂".encode()[:2])
    assert "".join(pushed(kind, [word, *half], [word])) == "a"
    assert "".join(pushed(kind, [word, *half], [*half[:1], word])) == UNKNOWN + "a"
    assert "".join(pushed(kind, [word, *bytes_of(kind, b"\xff")], [word])) == "a"


def test_a_space_that_the_answer_begins_with_is_kept() -> None:
    for kind in ("llama_2", "gemma", "metaspace"):
        assert pushed(kind, [token_of(kind, "b")], [token_of(kind, "▁the"), token_of(kind, "▁a")]) == [" the", " a", ""]
    assert pushed("byte_level", [token_of("byte_level", "a")], [token_of("byte_level", "Ġthe")]) == [" the", ""]


@pytest.mark.parametrize("kind", BACKENDS)
def test_behind_a_prompt_without_text_the_answer_begins_as_the_tokenizer_decodes_it(kind: str) -> None:
    answer = [token_of(kind, "Ġthe" if kind == "byte_level" else "▁the"), token_of(kind, "a")]
    for prompt in ([], [token_of(kind, "<s>")]):
        assert "".join(pushed(kind, prompt, answer)) == decoded(kind, answer)


@pytest.mark.parametrize("kind", BACKENDS)
def test_special_tokens_are_no_text(kind: str) -> None:
    word, end = token_of(kind, "a"), token_of(kind, "</s>")
    assert "".join(pushed(kind, [word], [end, word, end, end])) == "".join(pushed(kind, [word], [word]))
    assert pushed(kind, [word], [end]) == ["", ""]


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_a_special_token_inside_a_character_does_not_break_it(kind: str) -> None:
    first, *rest = bytes_of(kind, "🙂".encode())
    answer = [first, token_of(kind, "</s>"), *rest]
    assert "".join(pushed(kind, [token_of(kind, "a")], answer)) == "🙂" == decoded(kind, answer)


@pytest.mark.parametrize("kind", BACKENDS)
def test_an_id_that_no_token_has_is_no_text(kind: str) -> None:
    word = token_of(kind, "a")
    assert pushed(kind, [word, 99_999], [99_999]) == ["", ""]


def test_a_stop_string_ends_the_text_across_tokens_and_characters() -> None:
    word, *tokens = BACKENDS["byte_level"].encode("a the café\n🙂User: hi").ids
    stream = TextStream(TOKENIZERS["byte_level"], [word], ["🙂User:"])
    shown = ""
    for token in tokens:
        assert not stream.stopped
        shown += stream.push(token)
        if stream.stopped:
            break
    assert shown == " the café\n"
    assert stream.push(word) == stream.end() == ""


def test_the_beginning_of_a_stop_string_is_held_back_to_the_end() -> None:
    kind = "gemma"
    a, dot, b = (token_of(kind, each) for each in ("a", ".", "b"))
    assert pushed(kind, [a], [a, dot, dot, b, dot], ["..\n", ".a"]) == ["a", "", "", "..b", "", "."]


@pytest.mark.parametrize("kind", WITH_BYTES)
def test_a_stop_string_in_tokens_of_a_byte_ends_the_text_with_its_last_one(kind: str) -> None:
    word = token_of(kind, "a")
    for stop in ("\n", "\n\n", "🙂"):
        stream = TextStream(TOKENIZERS[kind], [word], [stop])
        for token in bytes_of(kind, ("é" + stop).encode()):
            assert not stream.stopped
            stream.push(token)
        assert stream.stopped
        assert stream.push(word) == stream.end() == ""


def test_the_tokenizer_of_a_trained_model_streams_the_same_text(project_root: Path) -> None:
    path = project_root.parent / "shared" / "models" / "critic-lm"
    if not path.is_dir():
        pytest.skip("the model critic-lm is not beside the project")
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(path), 512)
    backend = Tokenizer.from_file(str(path / "tokenizer.json"))
    some = np.random.default_rng(0).integers(3, 8192, 3000).tolist() + backend.encode("a").ids[-1:]
    stream = TextStream(tokenizer, some[-1:])
    assert "a" + "".join(map(stream.push, some)) == backend.decode(some[-1:] + some)
    for text in TEXTS:
        tokens = backend.encode(text, add_special_tokens=False).ids
        for split in range(1, len(tokens)):
            stream = TextStream(tokenizer, tokens[:split])
            rest = "".join(stream.push(token) for token in tokens[split:]) + stream.end()
            before = backend.decode(tokens[:split]).rstrip(UNKNOWN)
            assert before + rest == text


def llama_2(*, prepends: bool) -> TextTokenizer:
    """Words of letters and bytes; as Llama 2's own, or as Gemma's, which puts no space before a text."""
    backend = spelt(*SPELT, decoders.Strip(" ", 1, 0)) if prepends else spelt(*SPELT)
    steps: list[normalizers.Normalizer] = [normalizers.Prepend("▁")] if prepends else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    return wrapped(backend)


@pytest.mark.parametrize(
    "tokenizer",
    [TOKENIZERS["byte_level"], llama_2(prepends=True), llama_2(prepends=False)],
    ids=["bytes", "llama", "gemma"],
)
@pytest.mark.parametrize("prompt", ["a b", "4", "a\n", "a "])
@pytest.mark.parametrize("text", ["b", " b", "  b", "\n", "\n\nb", "42", "éb.", "日本 a", " "])
def test_what_is_learned_behind_a_prompt_is_shown_as_it_was_written(
    tokenizer: TextTokenizer, prompt: str, text: str
) -> None:
    (before,), (learned,) = tokenizer.encode_bare([prompt]), tokenizer.encode_behind([text])
    stream = TextStream(tokenizer, before.ids.tolist())
    assert "".join([*map(stream.push, learned.ids.tolist()), stream.end()]) == text


def test_a_text_alone_would_be_learned_with_a_space() -> None:
    tokenizer = llama_2(prepends=True)
    alone, behind = tokenizer.encode_bare(["b"]), tokenizer.encode_behind(["b"])
    names = BACKENDS["llama_2"].id_to_token
    assert [[names(token) for token in each.ids] for each in (*alone, *behind)] == [["▁", "b"], ["b"]]
