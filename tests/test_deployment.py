"""What the Makefile, CI and the hooks say is so."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
_GIVEN = {"MAKEFLAGS", "ARGS", "ONCE", "PLM", "WORKERS"}  # to the make that runs these tests
TARGETS = ("setup", "demo", "test", "nightly", "lint", "audit", "docs", "serve", "clean", "help")


@pytest.mark.parametrize("target", TARGETS)
def test_make_lists_every_target_with_what_it_does(target: str) -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.search(rf"^make {target} +\w", listed, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["demo"], ".venv/bin/python examples/demo.py"),
        (["demo", "ONCE=1"], ".venv/bin/python examples/demo.py --once"),
        (["demo", "ONCE=1", "PLM=a/b"], ".venv/bin/python examples/demo.py --once --plm 'a/b'"),
        (["test", "ARGS=-x"], "OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile -x"),
        (["nightly", "ARGS=-x"], "NIGHTLY=1 OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --dist loadfile -x"),
        (["serve", "ARGS=--port 9000"], "exec .venv/bin/xpeft serve --port 9000"),
    ],
)
def test_make_passes_on_what_it_is_told(arguments: list[str], command: str) -> None:
    told = {name: value for name, value in os.environ.items() if name not in _GIVEN}
    planned = subprocess.run(["make", "-n", *arguments], cwd=ROOT, env=told, capture_output=True, text=True, check=True)
    assert command in [line.rstrip() for line in planned.stdout.splitlines()]


def test_ci_runs_the_demo_lint_the_audit_the_documentation_and_then_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    steps = re.findall(r"^step (.+)$", script.read_text(encoding="utf-8"), re.MULTILINE)
    assert steps == ["make demo ONCE=1", "make setup", "make lint", "make audit", "make docs", "make test"]


def test_the_public_ci_runs_the_same_script_on_both_pythons() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert [step["run"] for step in job["steps"] if "run" in step] == [".ci/run"]


def test_the_public_ci_runs_the_long_tests_each_night_on_both_pythons() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "nightly.yml").read_text(encoding="utf-8"))
    # YAML takes the key "on" for a truth.
    assert set(workflow[True]) == {"schedule", "workflow_dispatch"}
    job = workflow["jobs"]["nightly"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make nightly"]


def test_the_hooks_before_a_commit_are_the_tools_of_make_lint() -> None:
    config = ROOT / ".pre-commit-config.yaml"
    subprocess.run([sys.executable, "-m", "pre_commit", "validate-config", config], check=True)
    hooks = yaml.safe_load(config.read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "ruff-format", "mypy"]
