from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from xpeft_benchmarks.profile_lines import ADAPTERS, BLOCKS, CHOSEN, profile_key, write_profile_lines
from xpeft_profiles import read_profile_file
from xpeft_profiles.transfer import Entry, open_source
from xpeft_server.cli.bench.commands import app

VARIANTS = [
    "read",
    "import",
    "put_many",
    "get_many 1000",
    "versions 32",
    "versions of the same 32",
    "page of 100",
    "prefix",
]


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["stores", *map(str, words)])


@pytest.fixture
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/profiles.db"
    server: Any = request.getfixturevalue("own_redis")
    return str(server.url)


@pytest.mark.parametrize("store_url", ["sqlite", "redis"], indirect=True)
def test_a_store_is_filled_and_asked(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["xpeft", "bench", "stores", "--store", store_url])
    out = tmp_path / "stores.jsonl"
    words = ["--store", store_url, "--profiles", 500, "--tenants", 3, "--rounds", 1, "--json", out]
    done = run(*words)
    assert done.exit_code == 0, done.output
    lines = {line["variant"]: line for line in map(json.loads, out.read_text(encoding="utf-8").splitlines())}
    assert list(lines) == VARIANTS
    assert all(line["per_second"] > 0 for line in lines.values())
    assert 200 < lines["import"]["details"]["bytes_per_profile"] < 1500
    assert lines["import"]["details"]["peak_rss_mb"] > 10
    assert lines["versions 32"]["details"]["p95_ms"] >= lines["versions 32"]["details"]["median_ms"]
    assert lines["import"]["settings"]["profiles"] == 500
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    again = run(*words)
    assert again.exit_code == 1
    assert "the store has profiles of this benchmark already" in again.output


@pytest.mark.parametrize(
    ("store", "says"), [("memory://", "none that keeps profiles"), ("nowhere", "is not a store URL")]
)
def test_a_store_that_cannot_be_measured_is_told_in_one_line(store: str, says: str) -> None:
    done = run("--store", store, "--profiles", 10)
    assert done.exit_code == 1
    assert says in done.output.strip().splitlines()[-1]


def test_the_lines_are_different_valid_profiles_under_the_names_that_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    write_profile_lines(path, profiles=1100, tenants=7, seed=1)
    source = open_source(path, max_bytes=2000)
    entries = [entry for entry in source.entries() if isinstance(entry, Entry)]
    source.close()
    assert [(entry.tenant, entry.name) for entry in entries] == [profile_key(n, tenants=7) for n in range(1100)]
    profiles = [read_profile_file(entry.file) for entry in entries[::50]]
    assert {(profile.mask_a.shape, profile.k) for profile in profiles} == {((BLOCKS, ADAPTERS), CHOSEN)}
    assert len({entry.file for entry in entries}) == 1100
