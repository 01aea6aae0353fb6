"""Chats to token ids, by the template that a tokenizer brings along."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase


class ChatRefused(Exception):
    """The template does not take these messages; it says why."""


class ChatTemplate:
    """Safe to call from several threads: the template is rendered by transformers, in a sandbox.

    Args:
        tokenizer: one with a template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The chat as a text that ends where the assistant's answer begins; its special tokens are in it.

        Args:
            messages: (role, content) each.
        Raises: ChatRefused.
        """
        chat = [{"role": role, "content": content} for role, content in messages]
        try:
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            raise ChatRefused(str(error)) from None
        return str(text)
