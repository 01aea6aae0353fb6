"""An answer's tokens to pieces of its text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from xpeft_server.model.tokens.token_texts import TokenTexts
from xpeft_server.model.tokens.tokenizing import TextTokenizer

from .stop_strings import StopStrings

_UNKNOWN = "\ufffd"
_LONGEST_HALF = 3
"""Bytes of a character's longest beginning."""

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """The pieces together are the text that the tokenizer makes of all tokens at once, behind the prompt.

    Only whole characters come out. A character spelt by several tokens comes with the last of them, bytes that cannot
    become a character any more are U+FFFD, and a character that the answer leaves unfinished is dropped. Special tokens
    add no text.

    One difference: if a run of byte tokens has an invalid byte, Llama 2's decoder replaces the whole run. Doing
    so here would hold back every byte token, such as a line's end, until its run is over, and find a stop string in it
    too late.

    Args:
        prompt: tokens before the answer: its first space is kept, and a character that they began comes whole.
        stop: see `StopStrings`; the stop string is not part of the answer.
    Raises: ModelUnusable if the tokenizer's texts cannot be streamed (see `TokenTexts`); ValueError of `StopStrings`.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        texts = tokenizer.texts
        self._part = texts.part
        self._characters = _Characters(_last_bytes(texts, prompt))
        self._drop_space = texts.drops_first_space and not any(texts.part(token) for token in reversed(prompt))
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come: the text ends before it."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        """The text that can be shown now, "" if none can yet."""
        return self._show(self._characters.push(_bytes(self._part(token))))

    def end(self) -> str:
        """The text that was held back: nothing more comes."""
        return self._stop.end()

    def _show(self, text: str) -> str:
        if not text:
            return ""
        if self._drop_space:
            self._drop_space = False
            text = text.removeprefix(" ")
        return self._stop.push(text)


class _Characters:
    """Bytes to characters; invalid bytes are replaced as a byte-level tokenizer's own decoder does.

    Args:
        before: bytes before the first one.
    """

    def __init__(self, before: bytes) -> None:
        self._decoder = _Utf8Decoder("replace")
        self._decode(before)
        self._is_half = bool(self._decoder.getstate()[0])

    def push(self, some: bytes) -> str:
        text = self._decode(some)
        if self._is_half and text:
            self._is_half = False
            return text.removeprefix(_UNKNOWN)
        return text

    def _decode(self, some: bytes) -> str:
        text = self._decoder.decode(some)
        return text + self._decoder.decode(b"", final=True) if _waits_in_vain(self._decoder) else text


def _last_bytes(texts: TokenTexts, tokens: Sequence[int]) -> bytes:
    """The last bytes of the tokens: enough to hold the beginning of a character."""
    last = b""
    for token in reversed(tokens):
        if len(last) >= _LONGEST_HALF:
            break
        last = _bytes(texts.part(token)) + last
    return last


def _waits_in_vain(decoder: codecs.IncrementalDecoder) -> bool:
    """Python's decoder waits for a surrogate's last byte, though no surrogate is a character."""
    pending = decoder.getstate()[0]
    return len(pending) == 2 and pending >= b"\xed\xa0" and pending < b"\xee"


def _bytes(part: str | bytes) -> bytes:
    return part.encode() if isinstance(part, str) else part
