"""Prompts to go on with: token ids of real texts, each as long as it was drawn."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

from ..texts import TextsInvalid


def cut_prompts(texts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[list[int]]:
    """A prompt of each length: texts one behind the other, cut where there is enough of them.

    Every prompt begins with the text behind the last one that was used; after the last text comes the first again.

    Args:
        texts: token ids of each.
    Raises: TextsInvalid if none has a token.
    """
    filled = [list(text) for text in texts if len(text)]
    if not filled:
        raise TextsInvalid(f"none of {len(texts)} texts has a token to begin a prompt with")
    endless = cycle(filled)
    prompts: list[list[int]] = []
    for length in lengths:
        prompt: list[int] = []
        while len(prompt) < length:
            prompt += next(endless)
        prompts.append(prompt[:length])
    return prompts
