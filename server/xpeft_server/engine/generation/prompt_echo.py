"""A prompt as its client is told it before the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xpeft_server.model.tokens.tokenizing import TextTokenizer

from ..requests import ChosenToken, Echo
from .sequence import Sequence
from .text_stream import TextStream
from .told_token import told_token

AT_ONCE: Final = 256
"""Tokens: more would keep the event loop from what else it has to do."""


def prompt_echo(tokenizer: TextTokenizer, sequence: Sequence, text: str | None) -> Iterator[Echo]:
    """All of the prompt, some tokens at a time.

    Args:
        sequence: one whose answer has started.
        text: of the prompt as it came; None where tokens came.
    """
    spelled = TextStream(tokenizer, ())
    for start in range(0, sequence.prompt_length, AT_ONCE):
        end = min(start + AT_ONCE, sequence.prompt_length)
        if text is None:
            told = "".join(spelled.push(token) for token in sequence.ids[start:end])
        else:
            told = "" if start else text
        yield Echo(told, tuple(_tokens(tokenizer, sequence, start, end)))


def _tokens(tokenizer: TextTokenizer, sequence: Sequence, start: int, end: int) -> Iterator[ChosenToken]:
    if sequence.wants_prompt_logprobs:
        for place in range(start, end):
            yield told_token(tokenizer, sequence.ids[place], sequence.prompt_logprobs[place - 1] if place else None)
