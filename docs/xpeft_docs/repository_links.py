"""Links to files of the repository: to their page where the site has one, else the file's path in words."""

from __future__ import annotations

import os.path
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_LINK: Final = re.compile(r"(?<!!)\[(?P<text>[^\[\]]+)\]\((?P<target>[^)\s]+)\)")
_BLOCK: Final = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1[`~]* *$", re.MULTILINE | re.DOTALL)
_ELSEWHERE: Final = re.compile(r"[a-z]+:|#|/")


class RepositoryLinks:
    """Args: pages: path in the repository, with ``#anchor`` for a part of a file → path in the site."""

    def __init__(self, root: Path, pages: Mapping[str, str]) -> None:
        self._root = root
        self._pages = pages

    def resolved(self, markdown: str, *, source: str, page: str) -> str:
        """Links made for the site; those that lead nowhere stay, for the site's builder to complain about.

        Args: source: where the text stands in the repository; page: where it will stand in the site.
        """

        def link(found: re.Match[str]) -> str:
            return self._link(found["text"], found["target"], source, page) or found[0]

        parts, start = [], 0
        for block in _BLOCK.finditer(markdown):
            parts += [_LINK.sub(link, markdown[start : block.start()]), block[0]]
            start = block.end()
        return "".join([*parts, _LINK.sub(link, markdown[start:])])

    def _link(self, text: str, target: str, source: str, page: str) -> str | None:
        if _ELSEWHERE.match(target):
            return None
        path, _, anchor = target.partition("#")
        file = os.path.normpath(Path(source).parent / path)
        there = self._pages.get(f"{file}#{anchor}")
        if there is None and (there := self._pages.get(file)) is not None and anchor:
            there = f"{there}#{anchor}"
        if there is not None:
            return f"[{text}]({os.path.relpath(there, Path(page).parent)})"
        if not (self._root / file).exists():
            return None
        return f"`{file}`" if text.strip("`") in file else f"{text} (`{file}`)"
