"""What stands behind a block's language tells the tests what to do with it, and readers what it needs."""

from __future__ import annotations

import re
from typing import Final

_OPENING: Final = re.compile(r"^(?P<fence> *(?:`{3,}|~{3,})) *(?P<language>[\w+-]+)(?P<words> [^`\n]+)$", re.MULTILINE)
_SAID: Final = {
    "serve": "Leave it running",
    "write-serve": "Leave it running",
    "fails": "Is refused",
    "needs-docker": "Needs Docker",
    "needs-kubernetes": "Needs a Kubernetes cluster",
    "needs-gpu": "Needs a GPU",
    "needs-network": "Needs the network",
    "needs-time": "Takes its time",
}


def told_fences(markdown: str) -> str:
    """Words behind a language become a title, where they tell the reader something."""

    def told(found: re.Match[str]) -> str:
        titles = [title for word in found["words"].split() if (title := _title(word)) is not None]
        shown = f' title="{", ".join(titles)}"' if titles else ""
        return f"{found['fence']}{found['language']}{shown}"

    return _OPENING.sub(told, markdown)


def _title(word: str) -> str | None:
    package = word.removeprefix("needs-package:")
    return f"Needs the package {package}" if package != word else _SAID.get(word)
