"""Chats by the templates that tokenizers bring along."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from xpeft_server.model.tokens.chat_template import ChatRefused, ChatTemplate, chat_template_of

TEXTS = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] | trim }}{% endfor %}<assistant>"
PARTS = (
    "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] %}{% if part['type'] == 'text' %}"
    "{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}<assistant>"
)
SELECTED = (
    "{% for m in messages %}<{{ m['role'] }}>{% for part in m['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] | trim }}{% endfor %}{% endfor %}<assistant>"
)
STRICT = PARTS.replace("{{ part['text'] }}", "{{ part.text.strip() }}")
EITHER = "{% if messages[0]['content'] is string %}" + TEXTS + "{% else %}" + PARTS + "{% endif %}"
SYSTEM_FIRST = "{% if messages[0]['role'] != 'system' %}{{ raise_exception('a system first') }}{% endif %}" + TEXTS
CHAT = [("system", "be brief"), ("user", "how far?")]


def tokenizer(lab: Any, template: Any) -> Any:
    made = lab.tokenizer()
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", [TEXTS, PARTS, SELECTED, STRICT, EITHER, SYSTEM_FIRST, {"default": TEXTS}])
def test_what_is_said_reaches_the_model_whatever_form_the_template_takes_it_in(lab: Any, template: Any) -> None:
    chat = chat_template_of(tokenizer(lab, template))
    assert chat is not None
    assert chat.render(CHAT) == "<system>be brief<user>how far?<assistant>"


def test_without_a_template_there_are_no_chats(lab: Any) -> None:
    assert chat_template_of(tokenizer(lab, None)) is None


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{% for m in messages %}<{{ m['role'] }}>{% endfor %}", "it leaves out what a user says"),
        ("{% for m in messages %}{{ m['content'] + 1 }}{% endfor %}", "can only concatenate str"),
        ({"rag": TEXTS, "tool_use": TEXTS}, "multiple chat templates with no default"),
    ],
)
def test_one_that_cannot_be_used_is_told_once_and_is_none(
    lab: Any, caplog: pytest.LogCaptureFixture, template: Any, reason: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert chat_template_of(tokenizer(lab, template)) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert reason in caplog.text


def test_a_chat_that_the_template_does_not_take_is_refused_in_its_words(lab: Any) -> None:
    chat = ChatTemplate(tokenizer(lab, SYSTEM_FIRST))
    with pytest.raises(ChatRefused, match=r"^a system first$"):
        chat.render([("user", "how far?")])
    odd = ChatTemplate(tokenizer(lab, TEXTS.replace("| trim", "~ [][m['content'] | length - 5].x")))
    with pytest.raises(ChatRefused):
        odd.render([("user", "far")])
