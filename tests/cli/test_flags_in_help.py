"""A flag in the help of any command stands alone, and its paragraphs are as wide as the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from xpeft_server.cli.main import app


def commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from commands(each, *path, name)


def lines(*path: str, columns: int = 200) -> list[str]:
    shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": str(columns)})
    assert shown.exit_code == 0
    return shown.stdout.splitlines()


@pytest.mark.parametrize(
    "path", list(commands(typer.main.get_command(app))), ids=lambda path: " ".join(["xpeft", *path])
)
def test_a_flag_has_no_value_in_the_help(path: tuple[str, ...]) -> None:
    shown = lines(*path)
    assert any("--help" in line for line in shown)
    assert not [line for line in shown if "bool" in line.lower()]


def test_an_option_with_a_value_still_shows_it() -> None:
    (file,) = [line for line in lines("keys", "list") if "--file" in line]
    assert "<path>" in file.lower()
    (flag,) = [line for line in lines("serve") if "--metrics-open" in line]
    assert flag.split("--metrics-open")[1].split()[0] == "Serve"


def test_a_paragraph_of_the_help_is_folded_by_the_terminal_alone() -> None:
    shown = [line.strip() for line in lines("bank", "train", columns=80)]
    start = next(number for number, line in enumerate(shown) if line.startswith("With --by"))
    paragraph = shown[start : shown.index("", start)]
    words = " ".join(paragraph).split()
    assert len(words) > 40
    for line, after in pairwise(paragraph):
        assert len(f"{line} {after.split()[0]}") > 78, line
