"""Chats to token ids, by the template that a tokenizer brings along."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_WORD: Final = "Hello"


class ChatRefused(Exception):
    """The template does not take these messages; it says why."""


class ChatTemplate:
    """Safe to call from several threads: the template is rendered by transformers, in a sandbox.

    Some templates look for a message's text in a list of parts, and pass over a string without a word. Which kind it
    is shows in what it makes of one message.

    Args:
        tokenizer: one with a template.
    Raises: ChatRefused if no chat's text would reach the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        refused: list[ChatRefused] = []
        for self._takes_parts in (False, True):
            try:
                if _WORD in self.render([("user", _WORD)]):
                    return
                refused.append(ChatRefused("it leaves out what a user says"))
            except ChatRefused as refusal:
                refused.append(refusal)
        if not any(isinstance(refusal.__cause__, TemplateError) for refusal in refused):
            raise refused[0]
        self._takes_parts = False  # it refuses a user's message that stands alone

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The chat as a text that ends where the assistant's answer begins; its special tokens are in it.

        Args:
            messages: (role, content) each.
        Raises: ChatRefused.
        """
        # transformers' types know contents of text only
        chat: list[Any] = [{"role": role, "content": self._content(content)} for role, content in messages]
        try:
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise ChatRefused(str(error)) from error
        return str(text)

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": text}] if self._takes_parts else text


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """None, with a warning, if there is one that cannot be used; None if there is none."""
    if not tokenizer.chat_template:
        return None
    try:
        return ChatTemplate(tokenizer)
    except ChatRefused as refusal:
        log.warning("the tokenizer's template for chats cannot be used, chats are refused: %s", refusal)
        return None
