"""Checks on a request before it may wait for the device."""

from __future__ import annotations

from typing import Final

from xpeft_server.model.tokens.tokenizing import TokenizedText

from .errors import InputTooLong, InvalidInput, ProfileHasNoHead
from .profiles.cache import CachedProfile
from .requests import ClassifyRequest

_ENDLESS: Final = "has more characters than are read of one, and few tokens in those that are"


def check_inputs(request: ClassifyRequest) -> None:
    if not request.inputs:
        raise InvalidInput("input is empty: give at least one text", param="input")
    for index, (text, pair) in enumerate(request.inputs):
        if not text or pair == "":
            raise InvalidInput(f"input {index} is an empty text", param="input")


def check_lengths(request: ClassifyRequest, texts: list[TokenizedText], limit: int) -> None:
    for index, text in enumerate(texts):
        if not len(text):
            raise InvalidInput(f"input {index} has no tokens: {request.inputs[index].text[:40]!r}", param="input")
        if len(text) > limit:
            raise InputTooLong(
                f"input {index} has {_counted(text)} tokens, the model takes {limit}; shorten it or set truncate",
                param="input",
            )
        if not (text.is_whole or request.truncate):
            raise InputTooLong(f"input {index} {_ENDLESS}; shorten it or set truncate", param="input")


def check_prompt(tokens: TokenizedText, limit: int, *, least: int = 1) -> None:
    """Args: least: tokens that the answer has at least."""
    if not len(tokens):
        raise InvalidInput("prompt has no tokens", param="prompt")
    if len(tokens) + least > limit:
        raise InputTooLong(
            f"prompt has {_counted(tokens)} tokens; prompt and answer together have room for {limit}", param="prompt"
        )
    if not tokens.is_whole:
        raise InputTooLong(f"prompt {_ENDLESS}; shorten it", param="prompt")


def _counted(text: TokenizedText) -> str:
    return f"{len(text)}" if text.is_whole else f"more than {len(text)}"


def check_head(profile: CachedProfile) -> None:
    if profile.labels is None:
        raise ProfileHasNoHead(f"profile {profile.key.name!r} has no head and cannot classify", param="profile")
