"""Texts of an exact number of tokens: whatever is measured with them has full batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xpeft_benchmarks.shapes import random_plm
from xpeft_benchmarks.texts import TextsInvalid
from xpeft_benchmarks.word_texts import word_texts, word_tokenizer
from xpeft_server.model.plm import load_plm
from xpeft_server.model.tokens.tokenizing import TextTokenizer


def encoded(tokenizer: TextTokenizer, texts: list[str]) -> list[list[int]]:
    return [each.ids.tolist() for each in tokenizer.encode([(text, None) for text in texts])]


@pytest.mark.parametrize("tokens", [3, 16, 64])
def test_texts_are_as_long_as_asked_and_differ(tokens: int, tiny_bert: Path) -> None:
    for tokenizer in (load_plm(str(tiny_bert)).tokenizer, word_tokenizer(500, 64)):
        ids = encoded(tokenizer, word_texts(tokenizer, 20, tokens, np.random.default_rng(0)))
        assert [len(each) for each in ids] == [tokens] * 20
        assert len({tuple(each) for each in ids}) > 10


def test_made_up_words_are_tokens_of_a_model_of_that_size_between_special_ones() -> None:
    tokenizer = word_tokenizer(500, 64)
    first, *words, last = encoded(tokenizer, ["W7 w499, w500"])[0]
    assert tokenizer.size == 500
    assert (first, last) == (1, 2)
    assert words == [7, 499, 0, 0]


@pytest.mark.parametrize("tokens", [2, 65])
def test_texts_that_a_model_does_not_take_are_refused(tokens: int) -> None:
    with pytest.raises(TextsInvalid, match=f"text-tokens is {tokens}, this model's texts have 3 to 64"):
        word_texts(word_tokenizer(500, 64), 4, tokens, np.random.default_rng(0))


def test_a_tokenizer_without_whole_words_is_refused() -> None:
    config = {"model_type": "bert", "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1}
    plm = random_plm({**config, "num_attention_heads": 2, "intermediate_size": 64}, device="cpu", dtype=torch.float32)
    with pytest.raises(TextsInvalid, match="no whole words to make texts of 8 tokens"):
        word_texts(plm.tokenizer, 4, 8, np.random.default_rng(0))
