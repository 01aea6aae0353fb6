"""A page's blocks, and a reader who types them in a folder of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import httpx
import pytest

LANGUAGES: Final = frozenset({"sh", "bash", "console", "python"})
SECONDS: Final = 240
"""A block, or the start of a server, takes less."""
_FENCE: Final = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)$")
_PORT: Final = re.compile(r"(?:(?:127\.0\.0\.1|localhost|0\.0\.0\.0):|--port[ =])(\d{4,5})\b")
# Tuning takes the time of a test. A server knows none of these.
_BRIEF: Final = {"XPEFT_TUNE_EPOCHS": "1", "XPEFT_BANK_TRAIN_EPOCHS": "1"}


class Block(NamedTuple):
    """A fenced block. ``line`` is that of its first line of text, ``words`` what stands behind the language."""

    page: str
    line: int
    language: str
    words: tuple[str, ...]
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> list[tuple[str, str]]:
        """Of a console: each command, and what it says."""
        parts = re.split(r"^\$ ", self.text, flags=re.MULTILINE)
        assert not parts[0].strip(), f"{self.place}: a console begins with a line behind '$ '"
        found = []
        for part in parts[1:]:
            command = re.match(r"(?:[^\n]*\\\n)*[^\n]*\n", part)
            assert command is not None
            found.append((command[0], part[command.end() :]))
        return found


def _read_blocks(page: Path, name: str) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        opened = _FENCE.match(lines[number])
        number += 1
        if opened is None:
            continue
        start, fence = number, opened["fence"]
        while number < len(lines) and not re.fullmatch(rf" *{fence[0]}{{{len(fence)},}} *", lines[number]):
            number += 1
        assert number < len(lines), f"{name}:{start}: the block is never closed"
        language, *words = opened["info"].split() or [""]
        text = "\n".join(line.removeprefix(opened["indent"]) for line in lines[start:number])
        yield Block(name, start + 1, language, tuple(words), text + "\n")
        number += 1


class Reader:
    """Types blocks of one page, one after the other.

    Args:
        folder: empty; what is typed runs in a folder in it.
        blocks: all that will be typed; ports that they name become free ones.
        words: in a block → what a reader puts there.
        model: what stands in place of the default language model.
        programs: a folder of programs that are taken before those of the environment.
    """

    def __init__(
        self,
        folder: Path,
        blocks: Iterable[Block],
        *,
        examples: Path,
        words: Mapping[str, str],
        free_port: Callable[[], int],
        model: Path,
        programs: Path,
    ) -> None:
        self.here = folder / "here"
        self.here.mkdir()
        (self.here / "examples").symlink_to(examples)
        self._folder = folder
        self._variables = folder / "variables"
        self._variables.touch()
        (folder / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
        path = os.pathsep.join([str(programs), str(Path(sys.executable).parent), os.environ["PATH"]])
        places = {"PATH": path, "HOME": str(folder), "CURL_HOME": str(folder)}
        small = {"XPEFT_PLM": str(model), "XPEFT_BANK": "random:N=8,R=8,seed=0,std=0.1"}
        self._environment = {**os.environ, **places, **small, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        named = {port for block in blocks for port in _PORT.findall(block.text)}
        self._words = {**words, **{port: str(free_port()) for port in sorted(named)}}
        self._servers: list[tuple[Block, subprocess.Popen[bytes]]] = []

    def type(self, block: Block) -> None:
        if block.language == "console":
            for command, expected in block.commands():
                self._check_output(block, self.run(command, block.place), expected)
        elif block.language == "python":
            program = self._folder / f"block-{block.line}.py"
            program.write_text(self._filled(block.text), encoding="utf-8")
            self.run(f"python {shlex.quote(str(program))}", block.place)
        elif "serve" in block.words:
            self._serve(block)
        else:
            self.run(block.text, block.place, fails="fails" in block.words)

    def run(self, command: str, place: str, *, fails: bool = False) -> str:
        """What it says, on both streams. What it sets is there for the next."""
        variables = shlex.quote(str(self._variables))
        script = f". {variables}\nset -a\n{self._filled(command)}\nset +a\nexport -p > {variables}\n"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.here,
            env={**self._environment, **_BRIEF},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        said = f"{place}:\n{command}\nended with {done.returncode} and said\n{done.stdout}"
        assert (done.returncode != 0) is fails, said
        return done.stdout

    def end(self) -> None:
        """Stop what was left running. A server of ours must end with 0, and nothing may have ended before."""
        ends = [(block, server, server.poll()) for block, server in self._servers]
        for _, server, _ in ends:
            server.send_signal(signal.SIGTERM)
        for block, server, ended in ends:
            code = server.wait(30)
            assert ended is None, f"{block.place} ended by itself, with {ended}:\n{self._log(block)}"
            assert code == 0 or "xpeft serve" not in block.text, f"{block.place} ended with {code}:\n{self._log(block)}"

    def _serve(self, block: Block) -> None:
        text = self._filled(block.text)
        script = f". {shlex.quote(str(self._variables))}\nunset {' '.join(_BRIEF)}\nexec {text}"
        with (self._folder / f"serve-{block.line}.log").open("wb") as log:
            server = subprocess.Popen(
                ["bash", "-euo", "pipefail", "-c", script],
                cwd=self.here,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._servers.append((block, server))
        port = re.search(r"(?:--port[ =]|:)(\d{4,5})\b", text)
        assert port is not None, f"{block.place}: name the port"
        deadline = time.monotonic() + SECONDS
        while not _answers(int(port[1]), text):
            assert server.poll() is None, f"{block.place} ended with {server.returncode}:\n{self._log(block)}"
            assert time.monotonic() < deadline, f"{block.place} does not answer:\n{self._log(block)}"
            time.sleep(0.05)

    def _check_output(self, block: Block, said: str, expected: str) -> None:
        wanted = re.escape(self._filled(expected).strip()).replace("…", ".*")
        lines = "\n".join(line.rstrip() for line in said.splitlines()).strip()
        assert re.fullmatch(wanted, lines, re.DOTALL), f"{block.place} shows\n{expected}\nbut it says\n{said}"

    def _filled(self, text: str) -> str:
        for word, value in self._words.items():
            text = re.sub(rf"\b{word}\b", lambda _, value=value: value, text)  # type: ignore[misc]
        return text

    def _log(self, block: Block) -> str:
        return (self._folder / f"serve-{block.line}.log").read_text(encoding="utf-8", errors="replace")


def _answers(port: int, command: str) -> bool:
    """Whether the server is there: ours once it is ready, any other once it takes connections."""
    try:
        if "xpeft serve" not in command:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return True
        scheme = "https" if "--tls-certificate" in command else "http"
        anybody = ssl.create_default_context()
        anybody.check_hostname, anybody.verify_mode = False, ssl.CERT_NONE
        return httpx.get(f"{scheme}://127.0.0.1:{port}/ready", timeout=5, verify=anybody).status_code == 200
    except (OSError, httpx.TransportError):
        return False


@pytest.fixture(scope="session")
def commands_of(project_root: Path) -> Callable[[str], list[Block]]:
    """The blocks of a page that a reader would type, in their order. Args: the page's path in the repository."""

    def commands(page: str) -> list[Block]:
        return [block for block in _read_blocks(project_root / page, page) if block.language in LANGUAGES]

    return commands


@pytest.fixture
def reader_of(
    tmp_path: Path,
    project_root: Path,
    tiny_bert: Path,
    warm_programs: Path,
    free_port: Callable[[], int],
    request: pytest.FixtureRequest,
) -> Callable[[list[Block]], contextlib.AbstractContextManager[Reader]]:
    """A reader of these blocks; what it leaves running ends with it."""

    @contextlib.contextmanager
    def reading(blocks: list[Block]) -> Iterator[Reader]:
        words = {}
        if any("PATH_OR_HUB_ID" in block.text for block in blocks):
            words["PATH_OR_HUB_ID"] = str(request.getfixturevalue("tiny_llama"))
        examples = project_root / "examples"
        reader = Reader(
            tmp_path,
            blocks,
            examples=examples,
            words=words,
            free_port=free_port,
            model=tiny_bert,
            programs=warm_programs,
        )
        try:
            yield reader
        finally:
            reader.end()

    return reading
