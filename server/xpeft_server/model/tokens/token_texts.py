"""What each token adds to a text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from tokenizers.decoders import Decoder

from ..errors import ModelUnusable

_BYTE_LEVEL = {"ByteLevel", "Fuse"}
_TEXTS = {"Replace", "ByteFallback", "Metaspace", "WordPiece", "Fuse", "Strip"}
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
_NEIGHBOUR = "a"


class TokenText(NamedTuple):
    """``bytes`` are the token's own; where they are half a character, ``text`` has U+FFFD."""

    text: str
    bytes: bytes


class TokenTexts:
    """Looked up in a table that fills as tokens come. Safe to use from several threads.

    Of a byte-level vocabulary (GPT-2, Llama 3, Qwen) a text's bytes are those of its tokens. Elsewhere (Llama 2,
    Gemma) a token is text, the same behind any other, and what no token is made for is spelt in tokens of one byte.

    Attributes:
        byte_level: which of the two it is.
        special: names of the special tokens, which add nothing to a text.
        drops_first_space: of a text that begins with a space the tokenizer leaves it out.
    Raises: ModelUnusable if the tokenizer's decoder is one whose tokens mean different texts in different company.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoder = tokenizer.decoder
        steps = [] if decoder is None else _steps(json.loads(decoder.__getstate__()))
        self.byte_level = "ByteLevel" in steps
        if not set(steps) <= (_BYTE_LEVEL if self.byte_level else _TEXTS) or _any_after_fuse(steps):
            raise ModelUnusable(f"plm: texts cannot be streamed from its tokenizer's decoder ({', '.join(steps)})")
        self._decoder: Decoder | None = decoder
        self._byte_fallback = "ByteFallback" in steps
        self._tokenizer = tokenizer
        self.special = {
            id_: token.content for id_, token in tokenizer.get_added_tokens_decoder().items() if token.special
        }
        self._parts: dict[int, str | bytes] = {}
        self.drops_first_space = self._join("▁a") != self._behind_another("▁a")

    def part(self, token: int) -> str | bytes:
        """What it adds behind other tokens: bytes where they may be half a character, and nothing if it is special."""
        part = self._parts.get(token)
        if part is None:
            part = self._parts[token] = self._new_part(token)
        return part

    def told(self, token: int) -> TokenText:
        """What it adds, and a special token's name; nothing for an id that no token has."""
        part = self.special.get(token) or self.part(token)
        if isinstance(part, str):
            return TokenText(part, part.encode())
        return TokenText(part.decode(errors="replace"), part)

    def _new_part(self, token: int) -> str | bytes:
        written = None if token in self.special else self._tokenizer.id_to_token(token)
        if written is None:
            return b"" if self.byte_level else ""
        if self.byte_level:
            return _bytes_of(written)
        byte = _BYTE.fullmatch(written) if self._byte_fallback else None
        return self._behind_another(written) if byte is None else bytes.fromhex(byte[1])

    def _behind_another(self, written: str) -> str:
        return self._join(_NEIGHBOUR, written).removeprefix(_NEIGHBOUR)

    def _join(self, *written: str) -> str:
        return " ".join(written) if self._decoder is None else self._decoder.decode(list(written))


def _steps(decoder: Mapping[str, Any]) -> list[str]:
    """Names of the decoder's steps; one that takes away a text's end is told as such."""
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _steps(part)]
    return ["Strip of the end" if decoder.get("stop") else decoder["type"]]


def _any_after_fuse(steps: list[str]) -> bool:
    """Whether a step sees all of a text at once, other than to strip its start."""
    return "Fuse" in steps and not set(steps[steps.index("Fuse") :]) <= {"Fuse", "Strip"}


def _bytes_of(written: str) -> bytes:
    try:
        return bytes(_BYTE_OF_SIGN[sign] for sign in written)
    except KeyError:
        return written.encode()


def _byte_level_signs() -> dict[str, int]:
    """How GPT-2 writes bytes: those that are printable in Latin-1 as they are, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_SIGN = _byte_level_signs()
