"""The README's sections, so that nothing of it has to be said twice."""

from __future__ import annotations

import re
from pathlib import Path


def section(readme: Path, title: str) -> str:
    """What stands below ``## title``, without the heading. Raises: ValueError if there is no such heading."""
    for text in re.split(r"^## ", readme.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        heading, _, rest = text.partition("\n")
        if heading.strip() == title:
            return rest.strip("\n")
    raise ValueError(f"{readme.name} has no section {title!r}")
