"""deploy/load-test.sh, with a program in xpeft's place that says what it was called with."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from xpeft_server.cli.bench.commands import app


@pytest.fixture
def called(tmp_path: Path, project_root: Path):
    (tmp_path / "xpeft").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 7\n')
    (tmp_path / "xpeft").chmod(0o755)

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
        script = project_root / "deploy" / "load-test.sh"
        return subprocess.run([script, *words], env=environment, capture_output=True, text=True, check=False)

    return call


def test_the_load_test_of_a_deployment_calls_bench_load_with_options_that_there_are(called) -> None:
    done = called("two words", "http://127.0.0.1:8000", "--data", "a b.jsonl")
    words = done.stdout.splitlines()
    assert done.returncode == 7
    assert words[:6] == ["bench", "load", "--url", "http://127.0.0.1:8000", "--name", "two words"]
    assert words[-6:] == ["--json", "load-two words.jsonl", "--plot", "load-two words.png", "--data", "a b.jsonl"]
    load = get_command(app).commands["load"]  # type: ignore[attr-defined]
    options = {option for parameter in load.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options


def test_the_load_test_of_a_deployment_says_what_it_wants(called) -> None:
    done = called("compose")
    assert done.returncode == 2
    assert done.stderr == "usage: load-test.sh NAME URL [OPTION...]\n"
    assert done.stdout == ""
