"""A token and its logprobs, with their texts."""

from __future__ import annotations

from xpeft_server.model.sampling.logprobs import RowLogprobs
from xpeft_server.model.tokens.tokenizing import TextTokenizer

from ..requests import ChosenToken, LikelyToken


def told_token(tokenizer: TextTokenizer, token: int, logprobs: RowLogprobs | None) -> ChosenToken:
    """Args: logprobs: None for the first token of a prompt."""
    special = tokenizer.is_special(token)
    if logprobs is None:
        return ChosenToken(_likely(tokenizer, token, None), (), special)
    likeliest = zip(logprobs.ids.tolist(), logprobs.logprobs.tolist(), strict=True)
    return ChosenToken(
        _likely(tokenizer, token, logprobs.chosen), tuple(_likely(tokenizer, *each) for each in likeliest), special
    )


def _likely(tokenizer: TextTokenizer, token: int, logprob: float | None) -> LikelyToken:
    text, exact = tokenizer.token_text(token)
    return LikelyToken(token, text, exact, logprob)
