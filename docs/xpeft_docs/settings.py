"""Every setting of ``xpeft serve``."""

from __future__ import annotations

from collections.abc import Iterator

from xpeft_server.settings import Settings
from xpeft_server.settings_source import describe_settings

from .table import code, table


def settings_table() -> str:
    """A row for each, whose anchor is the option's name without its dashes."""
    rows = (
        (
            f'<span id="{each.option[2:]}"></span>{code(each.option)}<br>{code(each.variable)}',
            code(each.default),
            " or ".join(_bounds(each.name)),
            each.help,
        )
        for each in describe_settings()
    )
    return table(("option and variable", "default", "numbers", "meaning"), rows)


def _bounds(name: str) -> Iterator[str]:
    schema = Settings.model_json_schema()["properties"][name]
    for part in schema.get("anyOf", [schema]):
        least = part.get("minimum", part.get("exclusiveMinimum"))
        above = "above " if "exclusiveMinimum" in part else ""
        if least is not None and "maximum" in part:
            yield f"{above}{least:,} to {part['maximum']:,}"
        elif least is not None:
            yield f"{above}{least:,}" if above else f"from {least:,}"
