"""Tokens of an answer to the pieces of its text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from xpeft_server.model.token_texts import TokenTexts
from xpeft_server.model.tokenizing import TextTokenizer

from .stop_strings import StopStrings

_UNKNOWN = "\ufffd"
_LONGEST_HALF = 3
"""Bytes of a character's longest beginning."""

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class TextStream:
    """All that is pushed, and the end, are the text that the tokenizer makes of all tokens at once, behind the prompt.

    Only whole characters come out: one that several tokens spell comes with the last of them, bytes that can no longer
    become a character are U+FFFD, and one that the answer leaves unfinished is dropped. Special tokens are no text.

    Args:
        prompt: tokens that the answer stands behind: its first space is kept, a character that they began comes whole.
        stop: see `StopStrings`; what ends the answer is no part of it.
    Raises: ModelUnusable if the tokenizer's texts cannot be streamed (see `TokenTexts`); ValueError of `StopStrings`.
    """

    def __init__(self, tokenizer: TextTokenizer, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        texts = tokenizer.texts
        self._part = texts.part
        self._assembly = _ByteLevelText(texts, prompt) if texts.byte_level else _SpeltText(texts, prompt)
        self._drop_space = texts.drops_first_space and not any(texts.part(token) for token in reversed(prompt))
        self._stop = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """A stop string has come: what was pushed before it is all there is."""
        return self._stop.stopped

    def push(self, token: int) -> str:
        """The text that can be shown now, "" if none can yet."""
        return self._show(self._assembly.push(self._part(token)))

    def end(self) -> str:
        """The text that was held back: nothing more comes. It may have a stop string, too (see ``stopped``)."""
        return self._show(self._assembly.end()) + self._stop.end()

    def _show(self, text: str) -> str:
        if not text:
            return ""
        if self._drop_space:
            self._drop_space = False
            text = text.removeprefix(" ")
        return self._stop.push(text)


class _ByteLevelText:
    """The tokens' bytes one behind the other; what cannot be decoded is replaced as in the tokenizer's own decoder."""

    def __init__(self, texts: TokenTexts, prompt: Sequence[int]) -> None:
        before = b""
        for token in reversed(prompt):
            if len(before) >= _LONGEST_HALF:
                break
            before = _bytes(texts.part(token)) + before
        self._decoder = _Utf8Decoder("replace")
        self._decode(before)
        self._prompt_is_half = bool(self._decoder.getstate()[0])

    def push(self, part: str | bytes) -> str:
        text = self._decode(_bytes(part))
        if self._prompt_is_half and text:
            self._prompt_is_half = False
            return text.removeprefix(_UNKNOWN)
        return text

    def end(self) -> str:
        return ""

    def _decode(self, some: bytes) -> str:
        text = self._decoder.decode(some)
        return text + self._decoder.decode(b"", final=True) if _waits_in_vain(self._decoder) else text


class _SpeltText:
    """Texts, and between them runs of bytes. As in the tokenizer's own decoder a run is UTF-8, or all of it unknown."""

    def __init__(self, texts: TokenTexts, prompt: Sequence[int]) -> None:
        self._decoder = _Utf8Decoder("strict")
        self._start_run()
        run: list[bytes] = []
        for part in map(texts.part, reversed(prompt)):
            if part and isinstance(part, str):
                break
            if part:
                run.append(_bytes(part))
        for byte in reversed(run):
            self._push_byte(byte)
        self._bytes, self._text = 0, ""

    def push(self, part: str | bytes) -> str:
        if isinstance(part, bytes):
            return self._push_byte(part)
        if not part:
            return ""
        run = _UNKNOWN * self._bytes if self._half else self._text
        self._start_run()
        return run + part

    def end(self) -> str:
        text = self._text
        self._start_run()
        return text

    def _start_run(self) -> None:
        """``_bytes`` counts the answer's bytes that nothing was shown for yet, ``_text`` is what they mean so far."""
        self._decoder.reset()
        self._bytes, self._text, self._invalid = 0, "", False

    @property
    def _half(self) -> bool:
        return self._invalid or bool(self._decoder.getstate()[0])

    def _push_byte(self, byte: bytes) -> str:
        self._bytes += 1
        if not self._invalid:
            try:
                self._text += self._decoder.decode(byte)
                self._invalid = _waits_in_vain(self._decoder)
            except UnicodeDecodeError:
                self._invalid = True
            if not self._invalid:
                return ""
            self._text = ""
        shown, self._bytes = _UNKNOWN * self._bytes, 0
        return shown


def _waits_in_vain(decoder: codecs.IncrementalDecoder) -> bool:
    """Python's decoder waits for a surrogate's last byte, though no surrogate is a character."""
    pending = decoder.getstate()[0]
    return len(pending) == 2 and pending >= b"\xed\xa0" and pending < b"\xee"


def _bytes(part: str | bytes) -> bytes:
    assert isinstance(part, bytes)  # noqa: S101
    return part
