"""Texts of an exact number of tokens, and a tokenizer for models that have none of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from xpeft_server.model.tokens.tokenizing import TextTokenizer

from .texts import TextsInvalid

_SPECIAL: Final = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
_WORDS: Final = 2048


def word_texts(tokenizer: TextTokenizer, count: int, tokens: int, rng: np.random.Generator) -> list[str]:
    """``count`` texts of random words, each ``tokens`` long, special tokens included.

    Raises: TextsInvalid if this tokenizer's texts cannot be so long.
    """
    special = _lengths(tokenizer, [""])[0]
    if not special < tokens <= tokenizer.limit:
        raise TextsInvalid(f"text-tokens is {tokens}, this model's texts have {special + 1} to {tokenizer.limit}")
    words = _whole_words(tokenizer, special, rng)
    texts = [" ".join(rng.choice(words, tokens - special)) for _ in range(count)] if words else []
    if set(_lengths(tokenizer, texts)) != {tokens}:
        raise TextsInvalid(f"this model's tokenizer has no whole words to make texts of {tokens} tokens of")
    return texts


def word_tokenizer(size: int, limit: int) -> TextTokenizer:
    """BERT's own way of tokenising (lower case, split, word pieces, [CLS] and [SEP]) over ``size`` made-up tokens."""
    vocabulary = {**_SPECIAL, **{f"w{index}": index for index in range(len(_SPECIAL), size)}}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))  # noqa: S106
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, _SPECIAL[name]) for name in ("[CLS]", "[SEP]")],
    )
    names = {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **names), limit)  # type: ignore[no-untyped-call]


def _whole_words(tokenizer: TextTokenizer, special: int, rng: np.random.Generator) -> list[str]:
    """Some words that are one token each, at the beginning of a text and within it."""
    every = sorted(word for word in tokenizer.vocabulary if word.isascii() and word.isalnum() and word.islower())
    some = [every[index] for index in rng.permutation(len(every))[:_WORDS]]
    lengths = _lengths(tokenizer, [f"{word} {word}" for word in some])
    return [word for word, length in zip(some, lengths, strict=True) if length == special + 2]


def _lengths(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[int]:
    return list(map(len, tokenizer.encode([(text, None) for text in texts])))
