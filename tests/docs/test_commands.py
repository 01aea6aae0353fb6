"""What a page tells its reader to type is typed here; "Pages" in tests/README.md says how blocks are marked."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import typer

from xpeft_server.cli.main import app

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = sorted(
    str(page.relative_to(ROOT))
    for pattern in ("docs/*.md", "deploy/**/*.md", "tuning/README.md")
    for page in ROOT.glob(pattern)
)
WANTING: Final = re.compile(r"needs-(?:docker|kubernetes|gpu|network|time|package:[A-Za-z0-9._-]+)")
HOW: Final = frozenset({"serve", "fails"})
_COMMAND: Final = re.compile(r"(?<![\w./-])xpeft +([^|;&)`\n]*)")
_INDENTED: Final = re.compile(r"^ {4}\$? ?(xpeft .*)$", re.MULTILINE)


def _is_run(block: Any) -> bool:
    return all(word in HOW for word in block.words)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_tells_to_type_works(page: str, commands_of: Any, reader_of: Any) -> None:
    blocks = [block for block in commands_of(page) if _is_run(block)]
    if blocks:
        with reader_of(blocks) as reader:
            for block in blocks:
                reader.type(block)


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_says_what_it_needs_or_which_test_runs_it(page: str, commands_of: Any) -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for block in commands_of(page):
        if _is_run(block):
            continue
        named = [word.removeprefix("test:") for word in block.words if word.startswith("test:")]
        for test in named:
            assert re.search(rf"^(?:async )?def {re.escape(test)}\(", tests, re.MULTILINE), f"{block.place}: {test}"
        wanting = any(WANTING.fullmatch(word) for word in block.words)
        assert named or wanting, f"{block.place}: {' '.join(block.words)!r} does not say why it is not run"


def test_the_blocks_of_the_readme_are_run_by_their_names(commands_of: Any) -> None:
    test = (ROOT / "tests" / "test_readme.py").read_text(encoding="utf-8")
    blocks = commands_of("README.md")
    assert len(blocks) >= 8
    for block in blocks:
        (name,) = block.words
        assert f'"{name}"' in test or f"{block.language} {name}" in test, f"{block.place}: no test runs {name!r}"


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", *PAGES])
def test_what_a_page_tells_to_type_is_well_formed(page: str, commands_of: Any) -> None:
    for block in commands_of(page):
        if block.language == "python":
            compile(block.text, block.place, "exec")
            continue
        texts = [command for command, _ in block.commands()] if block.language == "console" else [block.text]
        for text in texts:
            read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
            assert read.returncode == 0, f"{block.place}: {read.stderr}"


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", *PAGES])
def test_every_command_and_option_of_xpeft_that_a_page_shows_exists(page: str, commands_of: Any) -> None:
    for place, command in _shown_commands(page, commands_of):
        missing = _missing(command)
        assert missing is None, f"{place}: there is no {missing}"


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("serve --port 8000 --store memory://", None),
        ("--help", None),
        ("xpeft keys list --file keys.json", None),
        ("keys create --tenant=a --role admin --file keys.json", None),
        ("serv --port 8000", "xpeft serv"),
        ("keys make --tenant a", "xpeft keys make"),
        ("serve --prot 8000", "xpeft serve --prot"),
    ],
)
def test_a_command_or_option_that_does_not_exist_is_found(command: str, missing: str | None) -> None:
    assert _missing(command) == missing


def _shown_commands(page: str, commands_of: Callable[[str], list[Any]]) -> Iterator[tuple[str, str]]:
    """Where it stands, and what stands behind ``xpeft``."""
    for block in commands_of(page):
        if block.language != "python":
            text = block.text
            if block.language == "console":
                text = "".join(command for command, _ in block.commands())
            for line in re.sub(r"\\\n *", " ", text).splitlines():
                for found in _COMMAND.finditer(line):
                    # "-n xpeft" is another program's option; behind a lone "--" comes a command.
                    before = line[: found.start()].split()
                    if not before or before[-1] == "--" or not before[-1].startswith("-"):
                        yield block.place, found[1]
    prose = (ROOT / page).read_text(encoding="utf-8")
    for line in _INDENTED.finditer(prose):
        for found in _COMMAND.finditer(line[1]):
            yield page, found[1]


def _missing(command: str) -> str | None:
    """What of the command does not exist."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # cut off within quotes
        words = command.split()
    if words[:1] == ["xpeft"]:  # docker exec xpeft xpeft …: a container of that name
        words.pop(0)
    here: Any = typer.main.get_command(app)
    path = "xpeft"
    while hasattr(here, "commands") and words and not words[0].startswith("-"):
        path, here = f"{path} {words[0]}", here.commands.get(words.pop(0))
        if here is None:
            return path
    known = {option for parameter in here.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        option = word.partition("=")[0]
        if option.startswith("--") and option != "--" and option not in known | {"--help"}:
            return f"{path} {option}"
    return None
