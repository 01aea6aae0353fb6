"""Examples as the device reads them: tokenised once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from xpeft_server.model.batches.packing import PackedRows
from xpeft_server.model.plm import Plm
from xpeft_server.model.tokens.tokenizing import TokenizedText

from .dataset import Example
from .errors import DatasetInvalid
from .token_runs import token_runs


class LabelledTexts:
    """Tokenised texts and what each one's answer is.

    Args:
        examples: any number of rows, also none; every label is among ``labels``, or is a number.

    Attributes:
        targets: ``[Q]`` on the CPU: int64 places in ``labels``; float32 where labels are numbers; the tokens of each
            text that are its prompt, int64 ≥ 1, where they are completions.
        first_position: the model's.
        cut: how many texts were longer than the model takes and were cut.
    Raises: DatasetInvalid for a text without tokens.
    """

    def __init__(self, plm: Plm, examples: Sequence[Example], labels: Sequence[str], *, completions: bool) -> None:
        limit = plm.tokenizer.limit
        self.first_position = plm.first_position
        pairs = [(row.text, row.text_pair) for row in examples]
        texts = plm.tokenizer.encode(pairs)
        _check_tokens([row.text for row in examples], texts)
        if completions:
            answers = _answers(plm, examples)
            self.cut = sum(len(text) + len(answer) > limit for text, answer in zip(texts, answers, strict=True))
            beginning = plm.tokenizer.beginning
            joined = [_joined(text, answer, limit, beginning) for text, answer in zip(texts, answers, strict=True)]
            self.texts = [text for text, _ in joined]
            self.targets = torch.tensor([prompt for _, prompt in joined], dtype=torch.int64)
            return
        self.cut = sum(len(text) > limit for text in texts)
        self.texts = plm.tokenizer.encode(pairs, truncate=True) if self.cut else texts
        self.targets = _targets(examples, labels)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """``[Q]`` tokens of each text."""
        return np.array([len(text) for text in self.texts], np.int64)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """``[Q]`` where each text begins in `end_to_end`."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def end_to_end(self) -> PackedRows:
        """All of them, to take rows from at once; there must be one."""
        return PackedRows.of(self.texts, first_position=self.first_position)

    def by_length(self) -> NDArray[np.intp]:
        """Places in an order that packs well."""
        return np.argsort(self.lengths, kind="stable")

    def within(self, places: NDArray[np.integer], tokens: int) -> Iterator[NDArray[np.integer]]:
        """``places`` in `token_runs`."""
        return (places[run] for run in token_runs((len(self.texts[place]) for place in places), tokens))


def _check_tokens(texts: Sequence[str], tokens: Sequence[TokenizedText]) -> None:
    for text, each in zip(texts, tokens, strict=True):
        if not len(each):
            raise DatasetInvalid(f"{text[:40]!r} has no tokens")


def _targets(examples: Sequence[Example], labels: Sequence[str]) -> torch.Tensor:
    values = [row.label for row in examples]
    if any(isinstance(value, float) for value in values):
        return torch.tensor(values, dtype=torch.float32)
    index = {label: number for number, label in enumerate(labels)}
    return torch.tensor([index[str(value)] for value in values], dtype=torch.int64)


def _answers(plm: Plm, examples: Sequence[Example]) -> list[NDArray[np.int32]]:
    """Tokens of each completion, with one at which the server ends a text."""
    end = [plm.tokenizer.end] if plm.tokenizer.end in plm.ends else sorted(plm.ends)[:1]
    texts = plm.tokenizer.encode_behind([str(row.label) for row in examples])
    _check_tokens([str(row.label) for row in examples], texts)
    return [np.concatenate([text.ids, np.array(end, np.int32)]) for text in texts]


def _joined(prompt: TokenizedText, answer: NDArray[np.int32], limit: int, beginning: int) -> tuple[TokenizedText, int]:
    """Prompt and answer in one row of at most ``limit`` tokens, and how many of them are the prompt's.

    What is too long loses the answer's end down to half of the row, and then the prompt's first words, which stand
    behind ``beginning`` special tokens.
    """
    kept = answer[: max(limit - len(prompt), limit // 2)]
    lost = max(0, len(prompt) + len(kept) - limit)
    given = np.delete(prompt.ids, slice(beginning, beginning + lost))
    ids = np.concatenate([given, kept])
    return TokenizedText(ids, np.zeros_like(ids)), len(given)
