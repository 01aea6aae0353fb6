"""What the fuzzers began with and what they found, replayed; and a round of each where there is Atheris."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import xpeft_profiles
from xpeft_profiles import decode_record

HERE = Path(__file__).parent
KINDS = ("record", "profile_file")
SEEDS = [path.relative_to(HERE / "corpus") for kind in KINDS for path in sorted((HERE / "corpus" / kind).iterdir())]
LIMIT = "-max_total_time=300" if os.environ.get("NIGHTLY") == "1" else "-runs=5000"


def rule_of(kind: str) -> Callable[[bytes], None]:
    rule: Callable[[bytes], None] = runpy.run_path(str(HERE / f"fuzz_{kind}.py"))["check"]
    return rule


@pytest.mark.parametrize("seed", SEEDS, ids=str)
def test_what_lies_in_a_corpus_keeps_the_rule(seed: Path, corpus: Path) -> None:
    rule_of(seed.parts[0])((corpus / seed).read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_a_corpus_has_what_is_valid(kind: str, valid_seeds: Callable[[str], list[bytes]]) -> None:
    assert len(valid_seeds(kind)) >= 7


def test_what_a_fuzzer_found_once_is_damage(corpus: Path) -> None:
    for path in (corpus / "record").glob("crash-*"):
        with pytest.raises(xpeft_profiles.RecordDamaged):
            decode_record(path.read_bytes())


@pytest.mark.parametrize(
    ("kind", "reader", "error"),
    [("record", "decode_record", KeyError), ("profile_file", "read_profile_file", UnicodeError)],
)
def test_an_error_that_a_reader_must_not_raise_breaks_the_rule(
    kind: str,
    reader: str,
    error: type[Exception],
    monkeypatch: pytest.MonkeyPatch,
    valid_seeds: Callable[[str], list[bytes]],
) -> None:
    def fail(data: bytes, **options: object) -> None:
        raise error

    monkeypatch.setattr(xpeft_profiles, reader, fail)
    with pytest.raises(error):
        rule_of(kind)(valid_seeds(kind)[0])


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="Atheris has no wheel for this Python")
@pytest.mark.parametrize("kind", KINDS)
def test_a_fuzzer_finds_nothing(kind: str, corpus: Path, tmp_path: Path) -> None:
    known = tmp_path / "corpus"
    shutil.copytree(corpus / kind, known)
    program = [sys.executable, str(HERE / f"fuzz_{kind}.py"), str(known), LIMIT, "-max_len=4096", "-timeout=5"]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
    crashes = {path.name: path.read_bytes() for path in tmp_path.glob("*-*") if path.is_file()}
    assert done.returncode == 0, f"{done.stderr[-4000:]}\nfor the corpus: {crashes}"
    assert crashes == {}
    runs = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    assert runs is not None
    assert int(runs[1]) >= 5000
