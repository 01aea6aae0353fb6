"""The prompt, as a client that asks for it is sent it before the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from xpeft_server.model.tokens.tokenizing import TextTokenizer

from ..requests import ChosenToken, Echo
from .sequence import Sequence
from .text_stream import TextStream
from .told_token import told_token

AT_ONCE: Final = 256
"""Tokens; telling more of them would keep the event loop from its other work."""


def prompt_echo(tokenizer: TextTokenizer, sequence: Sequence, text: str | None) -> Iterator[Echo]:
    """The whole prompt, `AT_ONCE` tokens at a time.

    Args:
        sequence: must have its first token.
        text: the prompt as it was sent; None if token ids were sent.
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
