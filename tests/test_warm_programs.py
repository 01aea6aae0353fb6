"""Programs that need not load PyTorch again do what they would do alone."""

from __future__ import annotations

import os
import runpy
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

THREAD = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
SCRIPT = "import sys; print('torch' in sys.modules, *sys.argv[1:]); sys.exit(5)"


@pytest.fixture
def started(project_root: Path) -> Callable[..., AbstractContextManager[Path]]:
    found: Callable[..., AbstractContextManager[Path]] = runpy.run_path(
        str(project_root / "tests" / "warm_programs.py")
    )["started"]
    return found


def run(*command: str | Path) -> tuple[str, int]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout, done.returncode


def test_a_program_has_what_was_loaded(warm_programs: Path, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert run(warm_programs / "python", tmp_path / "script.py", "a b", "-c") == ("True a b -c\n", 5)


def test_so_has_a_module(warm_programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``timeit`` runs what it is given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "timeit.py").write_text("raise SystemExit('a module of the folder')")
    words = ["-n", "1", "-r", "1", "import sys; assert 'torch' in sys.modules; print(sys.argv[1:3])"]
    told, status = run(warm_programs / "python", "-P", "-m", "timeit", *words)
    assert (told.splitlines()[0], status) == ("['-n', '1']", 0)


def test_where_a_fork_would_lack_a_thread_programs_start_from_nothing(
    started: Callable[..., AbstractContextManager[Path]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "warm").mkdir()
    # Read at the start of a Python, before all else.
    (tmp_path / "sitecustomize.py").write_text(THREAD)
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    with started(tmp_path / "warm", PYTHONPATH=path) as folder:
        assert run(folder / "python", tmp_path / "script.py", "a b", "-c") == ("False a b -c\n", 5)
        told, status = run(folder / "xpeft", "--help")
        assert status == 0
        assert "serve" in told
    assert "a fork would have one of 2 threads" in capfd.readouterr().err
