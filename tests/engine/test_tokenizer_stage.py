"""Who is tokenised on which thread."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from xpeft_server.engine.requests import ChatMessage, Prompt
from xpeft_server.engine.tokenizer_stage import SHORT, TokenizerStage
from xpeft_server.model.tokenizing import TokenizedText


class NamesThread:
    """A tokenizer with a template; it remembers the thread that it worked on."""

    def __init__(self) -> None:
        self.chat = self
        self.thread = ""

    def render(self, messages: Any) -> str:
        return "".join(content for _, content in messages)

    def encode(self, texts: Any, *, truncate: bool = False) -> list[TokenizedText]:
        self.thread = threading.current_thread().name
        return [TokenizedText(np.zeros(1, np.int32), np.zeros(1, np.int32)) for _ in texts]

    encode_bare = encode


@pytest.mark.parametrize(
    ("prompt", "long"),
    [
        ("a" * SHORT, False),
        ("a" * (SHORT + 1), True),
        ((ChatMessage("user", "a" * (SHORT // 2)),), False),
        ((ChatMessage("user", "a" * SHORT),), True),
        ((ChatMessage("user", ""),) * 100, False),
        ((ChatMessage("user", ""),) * 2000, True),
    ],
)
async def test_what_takes_long_has_a_thread_of_its_own(prompt: Prompt, long: bool) -> None:
    tokenizer = NamesThread()
    stage = TokenizerStage(tokenizer)  # type: ignore[arg-type]
    await stage.encode_prompt(prompt)
    stage.close()
    assert tokenizer.thread.startswith("tokenizer-long") is long
