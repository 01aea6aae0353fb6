"""gpu.sh is for machines that tests rarely see: here at least its words are right, and it says what failed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xpeft_server.cli.main import app


@pytest.fixture
def script(project_root: Path) -> Path:
    return project_root / "benchmarks" / "gpu.sh"


def test_its_options_are_those_of_the_commands(script: Path) -> None:
    text = script.read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"xpeft bench (\w+) (.*)", text)
    assert {name for name, _ in commands} == {"shapes", "engine", "tune", "serve", "tenants"}
    for name, rest in commands:
        shown = CliRunner().invoke(app, ["bench", name, "--help"], env={"COLUMNS": "200"}).output
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in shown, (name, option)


def test_its_tests_are_there(script: Path, project_root: Path) -> None:
    named = re.findall(r"tests/\S+", script.read_text(encoding="utf-8"))
    assert named
    assert all((project_root / each).exists() for each in named)


def call(script: Path, tmp_path: Path, *, python: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """With programs that only say how they were called, and of which all but ``python`` fail."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in (("xpeft", 3), ("python", python), ("nvidia-smi", 1)):
        (programs / name).write_text(f'#!/bin/sh\necho "{name} $@"\nexit {code}\n')
        (programs / name).chmod(0o755)
    environment = {**os.environ, **variables, "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run([script, tmp_path / "out"], env=environment, capture_output=True, text=True, check=False)


def test_parts_that_fail_are_counted_and_the_others_are_run(script: Path, tmp_path: Path) -> None:
    done = call(script, tmp_path)
    assert done.returncode == 20, done.stderr
    assert done.stdout.count("python -m pytest") == 8
    assert "20 parts failed" in done.stdout
    assert (tmp_path / "out" / "bert-base-48.txt").read_text().startswith("xpeft bench shapes --shape bert-base")


def test_only_what_is_named_is_run(script: Path, tmp_path: Path) -> None:
    done = call(script, tmp_path, PARTS="shapes engine", NAMES="*minilm-*")
    assert done.returncode == 3, done.stderr
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == [
        "engine-minilm-1.txt",
        "engine-minilm-32.txt",
        "minilm-48.txt",
    ]


def test_what_is_not_installed_is_said_at_once(script: Path, tmp_path: Path) -> None:
    done = call(script, tmp_path, python=1)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu.sh: install the project with its tests first")
    assert not (tmp_path / "out").exists()


def test_without_a_folder_it_says_how_it_is_called(script: Path) -> None:
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: benchmarks/gpu.sh OUT\n")
