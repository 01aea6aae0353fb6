"""gpu.sh is for machines that tests rarely see: here at least its words are right, and it says what failed."""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xpeft_server.cli.main import app

COMMANDS = 53


@pytest.fixture
def script(project_root: Path) -> Path:
    return project_root / "benchmarks" / "gpu.sh"


def test_its_options_are_those_of_the_commands(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    commands = re.findall(r"^ +bench \S+ (\w+) (.*)", text, re.MULTILINE)
    assert {name for name, _ in commands} == {"shapes", "engine", "tune", "serve", "tenants"}
    for name, rest in commands:
        shown = CliRunner().invoke(app, ["bench", name, "--help"], env={"COLUMNS": "200"}).output
        for option in (*re.findall(r"--[a-z-]+", rest), "--device", "--json", "--rounds"):
            assert option in shown, (name, option)


def test_a_model_can_be_named_for_all_that_reads_one() -> None:
    for name in ("engine", "tune", "serve", "tenants"):
        assert "XPEFT_PLM" in CliRunner().invoke(app, ["bench", name, "--help"], env={"COLUMNS": "200"}).output


def test_its_tests_are_there(script: Path, project_root: Path) -> None:
    named = re.findall(r"tests/[\w/]+(?:\.py)?", script.read_text(encoding="utf-8"))
    assert len(named) == 6
    assert all((project_root / each).exists() for each in named)


def call(
    script: Path, tmp_path: Path, *, python: int = 0, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """With a Python that only says how it was called, leaves a line of JSON where it is told to, and fails."""
    programs = tmp_path / "bin"
    programs.mkdir(exist_ok=True)
    (programs / "python").write_text(
        f"""#!/bin/sh
if [ "$2" = -c ]; then exit {python}; fi
echo "python $@, $XPEFT_PLM"
while [ "$#" != 0 ]; do
    if [ "$1" = --json ]; then echo '{{"name": "'$2'"}}' >"$2"; fi
    shift
done
exit 3
"""
    )
    (programs / "nvidia-smi").write_text("#!/bin/sh\necho 'no GPU'\nexit 1\n")
    for each in programs.iterdir():
        each.chmod(0o755)
    environment = {**os.environ, **variables, "PATH": f"{programs}:{os.environ['PATH']}"}
    return subprocess.run(
        [script, tmp_path / "out"], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


def test_commands_that_fail_are_counted_and_the_others_are_run(script: Path, tmp_path: Path) -> None:
    done = call(script, tmp_path)
    assert done.returncode == COMMANDS, done.stderr
    assert done.stdout.count("python -P -m pytest") == 10
    assert f"{COMMANDS} commands failed" in done.stdout
    said = (tmp_path / "out" / "files" / "bert-base-48-512.txt").read_text()
    assert said.startswith("python -P -m xpeft_server.cli bench shapes --shape bert-base --width 48 --tokens 512 ")


def test_all_of_it_lies_in_three_files_too(script: Path, tmp_path: Path) -> None:
    first = call(script, tmp_path, PARTS="shapes", NAMES="minilm-48-512")
    second = call(script, tmp_path, PARTS="tests engine", NAMES="*m*-1-2048", FILES=str(tmp_path / "files"))
    out = tmp_path / "out"
    assert sorted(each.name for each in out.iterdir()) == ["all.jsonl", "all.tgz", "all.txt", "files"]
    assert (out / "all.txt").read_text() == first.stdout + second.stdout
    assert [Path(each).name for each in re.findall(r'[^"]+jsonl', (out / "all.jsonl").read_text())] == [
        "minilm-48-512.jsonl",
        "engine-minilm-1-2048.jsonl",
    ]
    with tarfile.open(out / "all.tgz") as archive:
        kept = sorted(each.name for each in archive if each.isfile())
    assert kept == ["./engine-minilm-1-2048.jsonl", "./engine-minilm-1-2048.txt"]


def test_only_what_is_named_is_run(script: Path, tmp_path: Path) -> None:
    done = call(script, tmp_path, PARTS="shapes engine", NAMES="*minilm-*-2048")
    assert done.returncode == 3, done.stderr
    assert sorted(each.name for each in (tmp_path / "out" / "files").glob("*.txt")) == [
        "engine-minilm-1-2048.txt",
        "engine-minilm-32-2048.txt",
        "minilm-48-2048.txt",
    ]


def test_its_options_can_be_added_to(script: Path, tmp_path: Path) -> None:
    done = call(script, tmp_path, PARTS="tune", NAMES="tune-65536-float32", EXTRA="--rounds 2 --epochs 3")
    assert re.search(r"bench tune .*--json \S+ --rounds 2 --epochs 3,", done.stdout)


def test_a_model_is_found_from_where_it_is_called(script: Path, tmp_path: Path) -> None:
    (tmp_path / "here" / "model").mkdir(parents=True)
    done = call(script, tmp_path, cwd=tmp_path / "here", PARTS="tune", NAMES="tune-65536-float32", XPEFT_PLM="model")
    assert f", {tmp_path}/here/model\n" in done.stdout


def test_packages_are_those_of_the_checkout(script: Path, tmp_path: Path, project_root: Path) -> None:
    """Even where none is installed, and wherever a command runs."""
    (tmp_path / "python").write_text("#!/bin/sh\necho $PYTHONPATH\n")
    (tmp_path / "python").chmod(0o755)
    done = call(script, tmp_path, cwd=tmp_path, PARTS="tests", NAMES="kernels", PYTHON="./python", PYTHONPATH="/more")
    roots = [str(project_root / each) for each in ("kernels", "profiles_store", "server", "tuning", "benchmarks")]
    assert f"\n{':'.join([*roots, '/more'])}\n" in done.stdout


def test_what_is_not_installed_is_said_at_once(script: Path, tmp_path: Path) -> None:
    done = call(script, tmp_path, python=1)
    assert done.returncode == 2
    assert done.stderr.startswith("gpu.sh: install the project with its tests first")
    assert not (tmp_path / "out").exists()


def test_without_a_folder_it_says_how_it_is_called(script: Path) -> None:
    done = subprocess.run([script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "usage: benchmarks/gpu.sh OUT\n")
