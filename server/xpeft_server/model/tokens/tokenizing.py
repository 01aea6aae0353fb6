"""Texts to token ids, under the model's length limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from ..errors import ModelUnusable
from .chat_template import chat_template_of
from .token_texts import TokenText, TokenTexts

_NEIGHBOURS: Final = ("\n", "a", ".")
"""Texts that another may stand behind; what melts into one of them stays apart from the next."""

_READ_WHOLE: Final = 16_384
"""Characters; of longer texts a beginning may do."""

_READ_PER_TOKEN: Final = 16
"""Characters of a long text's beginning for each token that the model takes: about four times what they have."""

_READ_MOST: Final = 1_048_576
"""Characters of any text, unless `_READ_MOST_PER_TOKEN` are more: a word or spaces without end have few tokens."""

_READ_MOST_PER_TOKEN: Final = 64


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """``ids`` and ``type_ids`` ``[n]`` int32, special tokens included; ``is_whole``: of the text to its end."""

    ids: NDArray[np.int32]
    type_ids: NDArray[np.int32]
    is_whole: bool = True

    def __len__(self) -> int:
        return len(self.ids)


class TextTokenizer:
    """The PLM's own fast tokenizer, with whatever truncation or padding its file sets switched off.

    Safe to call from several threads.

    Args:
        tokenizer: a fast tokenizer of transformers.
        limit: tokens that the model takes.

    Attributes:
        size: tokens of the vocabulary: their ids are below it.
        end: the token that ends a text, where the tokenizer names one.
        chat: its template for chats, where it brings one that can be used.
    Raises: ModelUnusable if the tokenizer has no fast form, or no vocabulary (transformers makes an empty one where
        its files are missing).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, limit: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ModelUnusable(f"plm: its tokenizer ({type(tokenizer).__name__}) has no fast form (tokenizer.json)")
        self.vocabulary: Mapping[str, int] = backend.get_vocab()
        if not self.vocabulary.keys() - set(tokenizer.all_special_tokens):
            raise ModelUnusable(f"plm: its tokenizer knows no word: {sorted(self.vocabulary)} (no tokenizer.json?)")
        self.size = 1 + max(self.vocabulary.values())
        self.limit = min(limit, tokenizer.model_max_length)
        self.end: int | None = tokenizer.eos_token_id
        self.chat = chat_template_of(tokenizer)
        self._tells_pairs = "token_type_ids" in tokenizer.model_input_names
        self._whole = _copied(backend)
        self._whole.no_truncation()
        self._whole.no_padding()
        self._cut_at_start = tokenizer.truncation_side == "left"
        self._cut = _copied(self._whole)
        self._cut.enable_truncation(self.limit, strategy="longest_first", direction=tokenizer.truncation_side)

    def encode(self, texts: Sequence[tuple[str, str | None]], *, truncate: bool = False) -> list[TokenizedText]:
        """Token lists as long as the texts are, or cut to ``limit`` (of a pair the longer side first) at the end, or at
        the start if the tokenizer's ``truncation_side`` says so."""
        pairs = [text if pair is None else (text, pair) for text, pair in texts]
        backend = self._cut if truncate else self._whole
        return [self._tokenized(encoding) for encoding in backend.encode_batch_fast(pairs)]

    def enough_of(self, text: str) -> str:
        """The text, or a beginning of it that has more than twice the tokens that the model takes: the rest changes
        neither the first of them nor that there are too many, and megabytes of it take seconds and gigabytes. Of a text
        that has so few tokens in `_READ_MOST` characters, those. Where texts are cut at their start, an end of it."""
        most = max(_READ_MOST, _READ_MOST_PER_TOKEN * self.limit)
        characters = max(_READ_WHOLE, _READ_PER_TOKEN * self.limit)
        while characters < min(len(text), most):
            part = self._part(text, characters)
            if len(self._whole.encode_batch_fast([part], add_special_tokens=False)[0]) > 2 * self.limit:
                return part
            characters *= 4
        return self._part(text, most)

    def _part(self, text: str, characters: int) -> str:
        return text[-characters:] if self._cut_at_start else text[:characters]

    def encode_bare(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Token lists without special tokens, as long as the texts are."""
        return [self._tokenized(each) for each in self._whole.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_behind(self, texts: Sequence[str]) -> list[TokenizedText]:
        """Token lists without special tokens, of texts that stand behind another: those that put a space before every
        text (Llama 2) put none there. One that melts into whatever it stands behind is as `encode_bare` has it."""
        found = self.encode_bare(texts)
        for place, (text, tokens) in enumerate(zip(texts, found, strict=True)):
            if self._written_behind(tokens) != text:
                found[place] = self._without_neighbour(text) or tokens
        return found

    @cached_property
    def beginning(self) -> int:
        """Special tokens that it puts before a text."""
        return int(np.argmin(self._whole.encode("a").special_tokens_mask))

    @cached_property
    def texts(self) -> TokenTexts:
        """What each token adds to a text. Raises: ModelUnusable if that cannot be told token by token."""
        return TokenTexts(self._whole)

    def _tokenized(self, encoding: Encoding) -> TokenizedText:
        """A second text is marked only for a model that takes marks, as transformers hands them over."""
        ids = np.array(encoding.ids, np.int32)
        return TokenizedText(ids, np.array(encoding.type_ids, np.int32) if self._tells_pairs else np.zeros_like(ids))

    def _written_behind(self, tokens: TokenizedText) -> str:
        parts = [self.texts.part(int(token)) for token in tokens.ids]
        return b"".join(part.encode() if isinstance(part, str) else part for part in parts).decode(errors="replace")

    def _without_neighbour(self, text: str) -> TokenizedText | None:
        """None if it melts into whatever stands before it."""
        for neighbour in _NEIGHBOURS:
            before, both = self.encode_bare([neighbour, neighbour + text])
            count = len(before)
            if len(both) > count and np.array_equal(both.ids[:count], before.ids):
                return TokenizedText(both.ids[count:], both.type_ids[count:])
        return None

    def token_text(self, token: int) -> TokenText:
        """The text and the bytes that a token adds to a text, a special token's name."""
        return self.texts.told(token)

    def is_special(self, token: int) -> bool:
        """Whether it adds nothing to a text, and has a name only."""
        return token in self.texts.special


def _copied(tokenizer: Tokenizer) -> Tokenizer:
    """With what its JSON does not tell: whether special tokens that stand in a text are split like any word."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.encode_special_tokens = tokenizer.encode_special_tokens
    return copy
