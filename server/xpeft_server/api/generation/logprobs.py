"""Log-probabilities of tokens in the shapes that the routes give them."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from xpeft_server.engine.requests import ChosenToken, Echo, LikelyToken, Piece

# JSON has no infinity; in OpenAI's documents this "is used to signify that the token is very unlikely".
_LEAST: Final = -9999.0

_AT_ONCE: Final = 256

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
    document: dict[str, object] = {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.bytes)}
    return {"id": token.id, **document} if ids else document


class LegacyLogprobs:
    """One answer's tokens in the shape of /v1/completions, told a piece at a time.

    ``text_offset`` counts the characters of the answer's text before the token; a token that goes on with a character
    begins where that character does not end yet. ``top_logprobs`` always has the chosen token in it. The first token of
    a prompt has null for both.

    Args:
        stop: the request's texts that end an answer: what may be the beginning of one is text that no piece has yet.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._stop = stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0
        self._held = ""
        self._read = 0

    def of(self, piece: Echo | Piece) -> LegacyLines:
        """The lists of this piece."""
        lines = _no_lines()
        offsets = self._in_prompt(piece) if isinstance(piece, Echo) else self._in_answer(piece)
        for chosen, offset in zip(piece.tokens, offsets, strict=True):
            lines["tokens"].append(_name(chosen.token))
            lines["token_logprobs"].append(_finite(chosen.token.logprob))
            lines["top_logprobs"].append(_by_name(chosen))
            lines["text_offset"].append(offset)
        return lines

    async def of_all(self, pieces: Iterable[Echo | Piece]) -> LegacyLines:
        """The lists of all of them in one; the event loop has its turns in between."""
        lines = _no_lines()
        told = 0
        for piece in pieces:
            for name, line in self.of(piece).items():
                lines[name] += line
            told += len(piece.tokens)
            if told >= _AT_ONCE:
                told = 0
                await asyncio.sleep(0)
        return lines

    def _in_prompt(self, piece: Echo) -> list[int]:
        offsets = []
        self._length += len(piece.text)
        for chosen in piece.tokens:
            offsets.append(min(self._read, self._length))
            text = self._spelled(chosen)
            # Some tokenizers put a space before every text.
            self._read += len(text.removeprefix("" if self._read or piece.text.startswith(" ") else " "))
        return offsets

    def _in_answer(self, piece: Piece) -> list[int]:
        offsets = []
        text = self._held
        for chosen in piece.tokens:
            offsets.append(self._length + len(text))
            text += self._spelled(chosen)
        self._length += len(piece.text)
        self._held = self._beginning(text)
        return offsets

    def _spelled(self, chosen: ChosenToken) -> str:
        return "" if chosen.special else self._decoder.decode(chosen.token.bytes)

    def _beginning(self, text: str) -> str:
        """The longest end of the text that a stop text begins with."""
        if self._stop:
            for place in range(len(text)):
                if any(stop.startswith(text[place:]) for stop in self._stop):
                    return text[place:]
        return ""


def _no_lines() -> LegacyLines:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _by_name(chosen: ChosenToken) -> Mapping[str, float | None] | None:
    if chosen.token.logprob is None:
        return None
    return {_name(token): _finite(token.logprob) for token in (*chosen.likeliest, chosen.token)}


def _name(token: LikelyToken) -> str:
    """As OpenAI writes tokens that are no whole characters: two of them would else share the text of one key."""
    try:
        token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
    return token.text


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, _LEAST)
