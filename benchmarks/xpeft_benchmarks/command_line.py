"""The command as it was typed, fit to be published."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

_HIDDEN: Final = ("--api-key", "--against-api-key")
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@]*@")


def shown_command(arguments: Sequence[str]) -> str:
    """``xpeft …`` with keys as ``***`` and every other word as `shown_word` has it.

    Args:
        arguments: what stood behind the program's name.
    """
    words = ["xpeft"]
    hidden = False
    for word in arguments:
        option, equals, value = word.partition("=")
        if hidden:
            words.append("***")
        elif option in _HIDDEN and equals:
            words.append(f"{option}=***")
        elif equals and option.startswith("--"):
            words.append(f"{option}={shown_word(value)}")
        else:
            words.append(shown_word(word))
        hidden = word in _HIDDEN and not hidden
    return shlex.join(words)


def shown_word(word: str) -> str:
    """An absolute path as its last part, a URL without user and password."""
    scheme = "sqlite:///" if word.startswith("sqlite:////") else ""
    path = word.removeprefix(scheme)
    if path.startswith("/"):
        return scheme + PurePath(path).name
    return _CREDENTIALS.sub("***@", word)
