"""Log-probabilities of tokens in the shapes that the routes give them."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from xpeft_server.engine.requests import ChosenToken, LikelyToken, Piece

# JSON has no infinity; in OpenAI's documents this "is used to signify that the token is very unlikely".
_LEAST: Final = -9999.0

LegacyLines = dict[str, list[object]]


def token_documents(tokens: Iterable[ChosenToken], *, ids: bool = False) -> list[dict[str, object]]:
    """The list ``content`` of /v1/chat/completions; with ``ids`` each token has its ``id``, too."""
    return [
        {
            **_token_document(chosen.token, ids=ids),
            "top_logprobs": [_token_document(likely, ids=ids) for likely in chosen.likeliest],
        }
        for chosen in tokens
    ]


def _token_document(token: LikelyToken, *, ids: bool) -> dict[str, object]:
    document = {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.bytes)}
    return {"id": token.id, **document} if ids else document


class LegacyLogprobs:
    """One answer's tokens in the shape of /v1/completions, told a piece at a time.

    ``text_offset`` counts the characters of the answer's text before the token; a token that goes on with a character
    begins where that character does not end yet. ``top_logprobs`` always has the chosen token in it.

    Args:
        stop: the request's texts that end an answer: what may be the beginning of one is text that no piece has yet.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        self._held = ""

    def of(self, piece: Piece) -> LegacyLines:
        """The lists of this piece."""
        lines: LegacyLines = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        text = self._held
        for chosen in piece.tokens:
            lines["tokens"].append(_name(chosen.token))
            lines["token_logprobs"].append(_finite(chosen.token.logprob))
            lines["top_logprobs"].append(_by_name(chosen))
            lines["text_offset"].append(self._length + len(text))
            if not chosen.special:
                text += self._decoder.decode(chosen.token.bytes)
        self._length += len(piece.text)
        self._held = self._beginning(text)
        return lines

    def of_all(self, pieces: Iterable[Piece]) -> LegacyLines:
        """The lists of all of them in one."""
        lines: LegacyLines = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for piece in pieces:
            for name, line in self.of(piece).items():
                lines[name] += line
        return lines

    def _beginning(self, text: str) -> str:
        """The longest end of the text that a stop text begins with."""
        if self._stop:
            for place in range(len(text)):
                if any(stop.startswith(text[place:]) for stop in self._stop):
                    return text[place:]
        return ""


def _by_name(chosen: ChosenToken) -> Mapping[str, float]:
    return {_name(token): _finite(token.logprob) for token in (*chosen.likeliest, chosen.token)}


def _name(token: LikelyToken) -> str:
    """As OpenAI writes tokens that are no whole characters: two of them would else share the text of one key."""
    try:
        token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.text


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
