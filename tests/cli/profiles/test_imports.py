"""``xpeft profiles import`` into a store: what it says, what it refuses, and what is left when it is killed."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
from base64 import b64encode
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from xpeft_profiles import Profile, ProfileKey, encode_record, open_store, write_profile_file
from xpeft_profiles.transfer import BatchReader, StoreTarget
from xpeft_profiles.transfer.batches import Batch
from xpeft_server.cli.profiles.commands import app

pytestmark = pytest.mark.usefixtures("no_progress")

BANK = "sha256:" + "ab" * 32
PROFILES = 400_000 if os.environ.get("NIGHTLY") == "1" else 40_000

# A line for each batch.
PROGRAM = """
from xpeft_server.cli import main
from xpeft_server.cli.profiles import transfer_progress

transfer_progress._LINE_SECONDS = 0.0
main.app()
"""


def profile(seed: int = 0) -> Profile:
    rng = np.random.default_rng(seed)
    masks = rng.permuted(np.tile(np.arange(16) < 4, (4, 1)), axis=1)
    return Profile(bank=BANK, mask_a=masks[:2], mask_b=masks[2:])


def line(name: str, seed: int = 0, **words: str) -> str:
    return json.dumps({**words, "name": name, "file": b64encode(write_profile_file(profile(seed))).decode()})


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/profiles.db"


def call(*arguments: object, env: dict[str, str] | None = None) -> Result:
    clean: dict[str, str | None] = {"XPEFT_URL": None, "XPEFT_STORE": None, "XPEFT_API_KEY": None}
    return CliRunner().invoke(app, ["import", *map(str, arguments)], env={**clean, **(env or {})})


def stored(url: str, tenant: str = "acme") -> dict[str, str]:
    async def read() -> dict[str, str]:
        store = open_store(url)
        await store.open()
        found: dict[str, str] = {}
        cursor = None
        while True:
            page = await store.list(tenant, limit=1000, cursor=cursor)
            found |= {each.name: each.version for each in page.profiles}
            cursor = page.next_cursor
            if cursor is None:
                await store.close()
                return found

    return asyncio.run(read())


def test_an_import_says_what_it_did_and_the_second_finds_all_there(jsonl: Any, url: str) -> None:
    source = jsonl(line("a", 1), line("b", 2, tenant="acme"))
    done = call(source, "--store", url, "--tenant", "acme")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("2 created, 0 replaced, 0 identical, 0 refused (")
    assert stored(url) == {"a": profile(1).version, "b": profile(2).version}
    again = call(jsonl(line("a", 1), line("b", 3)), "--store", url, "--tenant", "acme")
    assert again.stdout.startswith("0 created, 1 replaced, 1 identical, 0 refused (")


def test_keep_existing_leaves_other_versions_alone(jsonl: Any, url: str) -> None:
    call(jsonl(line("a", 1)), "--store", url, "--tenant", "acme")
    done = call(jsonl(line("a", 2), line("b", 3)), "--store", url, "--tenant", "acme", "--keep-existing")
    assert done.stdout.startswith("1 created, 0 replaced, 0 identical, 1 kept, 0 refused (")
    assert stored(url)["a"] == profile(1).version


def test_a_dry_run_says_what_would_be_and_writes_nothing(jsonl: Any, url: str) -> None:
    call(jsonl(line("a", 1)), "--store", url, "--tenant", "acme")
    done = call(jsonl(line("a", 2), line("b", 3), "{"), "--store", url, "--tenant", "acme", "--dry-run")
    assert done.stdout.startswith("would be: 1 created, 1 replaced, 0 identical, 1 refused (")
    assert done.exit_code == 1
    assert stored(url) == {"a": profile(1).version}


def test_a_dry_run_makes_no_file(jsonl: Any, url: str, tmp_path: Path) -> None:
    source = jsonl(line("a", 1), line("b", 2), "{")
    done = call(source, "--store", url, "--tenant", "acme", "--dry-run")
    assert done.exit_code == 1
    first, second = done.stdout.splitlines()
    assert first.startswith("would be: 2 created, 0 replaced, 0 identical, 1 refused (")
    assert second == f"there is no store in {tmp_path}/profiles.db yet; the import would make it"
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]
    assert call(source, "--store", url, "--tenant", "acme").stdout.startswith("2 created, 0 replaced, 0 identical, 1")
    assert "there is no store" not in call(source, "--store", url, "--tenant", "acme", "--dry-run").stdout


def test_a_dry_run_leaves_an_empty_file_empty_and_a_store_as_it_is(jsonl: Any, url: str, tmp_path: Path) -> None:
    source = jsonl(line("a", 1))
    path = tmp_path / "profiles.db"
    path.touch()
    done = call(source, "--store", url, "--tenant", "acme", "--dry-run")
    assert (done.exit_code, path.read_bytes()) == (0, b"")
    assert done.stdout.startswith("would be: 1 created")
    call(source, "--store", url, "--tenant", "acme")
    content = path.read_bytes()
    assert call(source, "--store", url, "--tenant", "acme", "--dry-run").stdout.startswith("would be: 0 created")
    assert path.read_bytes() == content
    assert {each.name for each in tmp_path.iterdir()} == {"p.jsonl", "profiles.db"}


def test_the_bare_models_name_is_refused(jsonl: Any, url: str) -> None:
    done = call(jsonl(line("base", 1), line("basel", 2)), "--store", url, "--tenant", "acme")
    assert done.exit_code == 1
    assert done.stdout.startswith("1 created, 0 replaced, 0 identical, 1 refused")
    assert "name: 'base' stands for the bare model, no profile can have it" in done.stderr
    assert stored(url).keys() == {"basel"}


def test_refused_entries_are_shown_counted_and_written(jsonl: Any, url: str, tmp_path: Path) -> None:
    errors = tmp_path / "errors.jsonl"
    bad = [f'{{"name": "n{n}\x1b[31m", "file": "AAAA"}}'.replace("\x1b", "\\u001b") for n in range(12)]
    done = call(jsonl(line("a"), *bad, line("b")), "--store", url, "--tenant", "acme", "--errors", errors)
    assert done.exit_code == 1
    shown = done.stderr.splitlines()
    assert len([each for each in shown if each.startswith("refused p.jsonl:")]) == 10
    assert shown[-2].startswith("… further ones")
    assert shown[-1] == "xpeft: 12 of 14 entries were refused"
    assert "\x1b" not in done.output
    assert done.stdout.startswith("2 created")
    lines = [json.loads(each) for each in errors.read_text().splitlines()]
    assert [each["where"] for each in lines] == [f"p.jsonl:{n}" for n in range(2, 14)]
    assert lines[0]["name"] == "n0\x1b[31m"
    assert "is not a name" in lines[0]["error"]
    assert stored(url).keys() == {"a", "b"}


@pytest.mark.parametrize("errors", ["p.jsonl", "x/../p.jsonl", "link.jsonl", "hard.jsonl"])
def test_a_source_is_no_place_for_refused_entries(
    jsonl: Any, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    source = jsonl(line("a"), "{")
    content = source.read_bytes()
    (tmp_path / "x").mkdir()
    (tmp_path / "link.jsonl").symlink_to(source)
    (tmp_path / "hard.jsonl").hardlink_to(source)
    monkeypatch.chdir(tmp_path)
    done = call(source, "--store", url, "--tenant", "acme", "--errors", errors)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"xpeft: --errors {errors} is what is imported: give another file\n"
    assert source.read_bytes() == content


def test_nor_is_a_folder_that_is_imported(url: str, tmp_path: Path) -> None:
    source = tmp_path / "profiles"
    source.mkdir()
    (source / "a.safetensors").write_bytes(write_profile_file(profile()))
    for name in ("a.safetensors", "errors.jsonl"):
        done = call(source, "--store", url, "--tenant", "acme", "--errors", source / name)
        assert done.exit_code == 1
        assert f"{name} is what is imported" in done.stderr
    assert [path.name for path in source.iterdir()] == ["a.safetensors"]
    done = call(source, "--store", url, "--tenant", "acme", "--errors", tmp_path / "profiles.errors")
    assert (done.exit_code, (source / "a.safetensors").read_bytes()) == (0, write_profile_file(profile()))


def test_a_full_disk_under_the_refused_entries_is_said(jsonl: Any, url: str) -> None:
    done = call(jsonl(line("a"), "{"), "--store", url, "--tenant", "acme", "--errors", "/dev/full")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == (
        "xpeft: /dev/full cannot be written: No space left on device; 2 entries were done before: begin again to go on"
    )
    assert "Traceback" not in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_file_over_the_limit_is_refused(jsonl: Any, url: str) -> None:
    done = call(jsonl(line("a")), "--store", url, "--tenant", "acme", "--max-profile-bytes", "100")
    assert "at most 100 are allowed" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        ([], {}, "no store or server given: give --store, or --url, or XPEFT_URL"),
        (["--store", "sqlite:///x.db", "--url", "http://x"], {}, "--store and --url are two places"),
        ([], {"XPEFT_STORE": "sqlite:///x.db", "XPEFT_URL": "http://x"}, "XPEFT_STORE and XPEFT_URL are two places"),
        (["--url", "http://127.0.0.1:9", "--tenant", "acme"], {}, "--tenant acme goes with --store"),
        (["--tenant", "acme"], {"XPEFT_URL": "http://127.0.0.1:9"}, "--tenant acme goes with --store"),
        (["--store", "memory://"], {}, "its profiles are in no other process"),
        (["--store", "nonsense"], {}, "is not a store URL"),
        (["--store", "sqlite:///x.db", "--tenant", "../x"], {}, "tenant: '../x' is not a name"),
        (["--store", "sqlite:////nowhere/x.db"], {}, "there is no folder /nowhere"),
        (["--url", "ftp://x"], {}, "it must be like http://"),
        (["--store", "sqlite:///x.db", "--errors", "/nowhere/e"], {}, "/nowhere/e cannot be written"),
    ],
)
def test_a_place_that_is_none_or_two_is_refused(
    jsonl: Any, arguments: list[str], env: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(jsonl(line("a")), *arguments, env=env)
    assert done.exit_code == 1
    assert done.stderr.startswith("xpeft: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_is_typed_counts_before_the_environment(jsonl: Any, url: str) -> None:
    done = call(jsonl(line("a")), "--store", url, "--tenant", "acme", env={"XPEFT_URL": "http://127.0.0.1:9"})
    assert (done.exit_code, done.stderr) == (0, "")
    done = call(jsonl(line("a")), "--tenant", "acme", env={"XPEFT_STORE": url})
    assert done.stdout.startswith("0 created, 0 replaced, 1 identical")


@pytest.mark.parametrize(("name", "message"), [("gone.jsonl", "is not there"), ("p.zip", "is neither a folder")])
def test_a_source_that_is_none_is_said(tmp_path: Path, url: str, name: str, message: str) -> None:
    (tmp_path / "p.zip").touch()
    done = call(tmp_path / name, "--store", url)
    assert done.exit_code == 1
    assert message in done.stderr


def test_an_archive_that_is_cut_off_says_how_far_it_came(tmp_path: Path, url: str, jsonl: Any) -> None:
    path = tmp_path / "p.jsonl.gz"
    text = "".join(line(f"p{n}", n) + "\n" for n in range(3000))
    path.write_bytes(gzip.compress(text.encode())[:-5000])
    done = call(path, "--store", url, "--tenant", "acme")
    assert done.exit_code == 1
    assert re.search(r"p\.jsonl\.gz cannot be read: .*; \d+ entries were done before$", done.stderr.strip())
    (count,) = re.findall(r"(\d+) entries", done.stderr)
    assert len(stored(url)) == int(count) > 0


def test_what_a_killed_import_reported_is_there_and_the_next_one_ends_it(tmp_path: Path, url: str) -> None:
    source = tmp_path / "many.jsonl"
    template = json.loads(line("x"))["file"]
    with source.open("w") as file:
        for n in range(PROFILES):
            file.write(f'{{"name":"p{n:07}","file":"{template}"}}\n')
    command = [sys.executable, "-c", PROGRAM, "profiles", "import", str(source), "--store", url, "--tenant", "acme"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        reported = process.stderr.readline()
        process.send_signal(signal.SIGKILL)
        reported += process.stderr.read()
    assert process.returncode == -signal.SIGKILL
    counts = [int(each) for each in re.findall(r"imported (\d+) profiles", reported)]
    version = profile().version
    before = stored(url)
    assert 0 < counts[-1] <= len(before) < PROFILES
    assert set(before) >= {f"p{n:07}" for n in range(counts[-1])}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = f"{PROFILES - len(before)} created, 0 replaced, {len(before)} identical, 0 refused"
    assert done.stdout.startswith(expected)
    assert stored(url) == {f"p{n:07}": version for n in range(PROFILES)}


def test_the_records_are_those_that_an_upload_stores(jsonl: Any, url: str) -> None:
    call(jsonl(line("a", 5)), "--store", url, "--tenant", "acme")

    async def read() -> bytes:
        store = open_store(url)
        await store.open()
        found = await store.get(ProfileKey("acme", "a"))
        await store.close()
        assert found is not None
        return found.record

    assert asyncio.run(read()) == encode_record(profile(5))


def test_the_help_has_an_example() -> None:
    done = CliRunner().invoke(app, ["import", "--help"])
    assert "Example: xpeft profiles import" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "2 entries are done, and maybe some after them: begin again to go on"),
        (("--dry-run",), "2 entries were checked, and nothing was written"),
    ],
    ids=["import", "dry run"],
)
def test_ctrl_c_says_how_far_it_came(
    url: str, jsonl: Any, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], said: str
) -> None:
    put, batches = StoreTarget.put, []

    async def interrupted_at_the_second(self: StoreTarget, batch: Batch) -> Any:
        batches.append(batch)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return await put(self, batch)

    monkeypatch.setattr(StoreTarget, "put", interrupted_at_the_second)
    monkeypatch.setattr(BatchReader, "__init__", partialmethod(BatchReader.__init__, entries=2))
    result = call(jsonl(*(line(f"p{i}", i) for i in range(5))), "--store", url, "--tenant", "acme", *options)
    assert (result.exit_code, result.stderr) == (130, f"stopped: {said}\n")
    if not options:
        assert [*stored(url)] == ["p0", "p1"]
