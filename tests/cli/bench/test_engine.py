from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xpeft_benchmarks.engine.closed_loop import ClosedLoop
from xpeft_server.cli.bench.commands import app

BRIEF = "--adapters 8 --width 4 --dtype float32 --device cpu --batch-tokens 64 --text-tokens 16 --in-flight 2"


def test_engine_shows_a_table_and_writes_lines(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "engine.jsonl"
    # However slow the machine: the 8 requests before the measured ones are all that slots can answer, and many follow.
    wait = ClosedLoop._answers
    monkeypatch.setattr(ClosedLoop, "_answers", lambda loop, texts: wait(loop, max(texts, 100)))
    options = "--profiles 1,40 --popularity distinct --slots 8 --rounds 1 --turn-seconds 0.1 --inputs 2"
    words = ["engine", "--plm", str(tiny_bert), *BRIEF.split(), *options.split(), "--json", str(out)]
    monkeypatch.setattr(sys, "argv", ["xpeft", "bench", *words])
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "engine 40 profiles" in done.output
    lines = {line["variant"]: line for line in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    name = f"{tiny_bert.name} T=64"
    assert lines.keys() == {
        f"{name} {each}" for each in ("bare", "engine 1 profiles", "engine 40 profiles", "engine warm", "engine cold")
    }
    asked = lines[f"{name} engine 40 profiles"]
    assert asked["benchmark"] == "engine"
    assert asked["ratios"][0]["to"] == f"{name} bare"
    assert (asked["details"]["slots"], asked["details"]["in_flight"]) == (8, 4)
    assert asked["details"]["made_share"] > 0.1
    assert asked["settings"]["plm"] == tiny_bert.name
    assert (asked["settings"]["seconds"], asked["settings"]["gpu"]) == (0.1, None)
    assert asked["machine"]["cpu"]
    assert asked["date"]
    assert str(tiny_bert.parent) not in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--profiles", "1,0"], "profiles '1,0': '0' is not a whole number"),
        (["--popularity", "pareto"], "popularity 'pareto'"),
        (["--batch-tokens", "100"], "tokens '100': '100' is not a multiple of 16"),
        (["--text-tokens", "2", "--batch-tokens", "64"], "text-tokens is 2, this model's texts have 3 to 64"),
        (["--shape", "bert-base"], "--plm is of a model with weights: leave it out with --shape"),
        (["--json", "gone/x.jsonl"], "there is no folder gone"),
    ],
)
def test_what_cannot_be_measured_is_told_in_one_line(words: list[str], says: str, tiny_bert: Path) -> None:
    done = CliRunner().invoke(app, ["engine", "--plm", str(tiny_bert), *BRIEF.split(), *words])
    assert done.exit_code == 1
    last = done.output.strip().splitlines()[-1]
    assert last.startswith("xpeft: ")
    assert says in last


def test_an_unknown_shape_is_told_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XPEFT_PLM", "of no importance here")
    done = CliRunner().invoke(app, ["engine", "--shape", "gpt9"])
    assert done.exit_code == 1
    assert "shape 'gpt9' is not known (known: bert-base, minilm" in done.output
