"""`xpeft tune` on prompts and what follows them, over a decoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from xpeft_profiles import read_profile_file
from xpeft_server.cli.tune import commands as tune

Call = Callable[..., Result]


@pytest.fixture
def xpeft(tiny_llama: Path, tmp_path: Path) -> Call:
    data = tmp_path / "data.jsonl"
    rows = [
        {"prompt": f"w{row} w{row + 1}", "completion": f"w{row + 2} w{row + 3}", "user": user}
        for row in range(12)
        for user in ("ann", "bob")
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*arguments: str) -> Result:
        fixed = ["--plm", str(tiny_llama), "--bank", "random:N=6,R=4,seed=3", "--device", "cpu", "--data", str(data)]
        return CliRunner().invoke(tune.app, [*fixed, "--epochs", "1", *arguments])

    return call


def test_a_profile_that_writes_is_reported_by_its_loss(xpeft: Call, tmp_path: Path) -> None:
    out = tmp_path / "p"
    result = xpeft("--out", str(out))
    assert result.exit_code == 0, result.output
    profile = read_profile_file(out.read_bytes())
    assert (profile.labels, profile.shared_head) == (None, None)
    shown = {line.strip().split("  ")[0]: line.strip().rsplit("  ", 1)[-1] for line in result.stdout.splitlines()}
    assert shown["a token's loss on"] == "held-out rows"
    mine, bare = (float(shown[name].removesuffix(" nats")) for name in ("this profile", "the bare model"))
    assert 0 < mine < 10
    assert 0 < bare < 10
    assert ("the profile's loss is not below the bare model's" in result.stdout) is (mine >= bare)
    assert "accuracy" not in result.output
    assert "correlation" not in result.output


def test_many_profiles_that_write_are_averaged_by_their_loss(xpeft: Call, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = xpeft("--out", str(out), "--by", "user")
    assert result.exit_code == 0, result.output
    entries = [json.loads(line) for line in (out / ".journal.jsonl").read_text().splitlines()]
    assert len(entries) == 2
    for score, line in (("held_out", "a token's mean loss, nats"), ("bare", "that of the bare model")):
        scores = [entry[score] for entry in entries]
        mean = sum(each["loss"] * each["rows"] for each in scores) / sum(each["rows"] for each in scores)
        [shown] = [each.split() for each in result.stdout.splitlines() if line in each]
        assert shown[-1] == f"{mean:.4g}"
    assert all(entry["bare"]["rows"] == entry["held_out"]["rows"] for entry in entries)
    assert "nobody reads" not in result.stderr
    assert "accuracy" not in result.output
