from __future__ import annotations

from types import FunctionType

import pytest
from triton import language
from triton.runtime import interpreter


@pytest.fixture(autouse=True)
def one_thread(one_thread: None) -> None:
    """In every test."""


@pytest.fixture(autouse=True)
def language_replaced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter would look through its whole language again at each call of a function within a kernel."""
    replace = interpreter._patch_lang

    def replace_once(function: FunctionType) -> interpreter._LangPatchScope:
        named = [each for each in function.__globals__.values() if each is language or each is language.core]
        if any(language.core.is_builtin(each.load) for each in named):
            return replace(function)
        return interpreter._LangPatchScope()

    monkeypatch.setattr(interpreter, "_patch_lang", replace_once)
