"""``xpeft profiles export`` out of a store: files that are there whole or not at all."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from xpeft_profiles import Profile, ProfileKey, open_store
from xpeft_server.cli.profiles.commands import app

pytestmark = pytest.mark.usefixtures("no_progress")

KEYS = [ProfileKey(tenant, name) for tenant in ("acme", "zeta") for name in ("a", "b.1", "c")]


# Goes on behind the first profile once it is told to, or after a while.
PROGRAM = """
import select, sys
from xpeft_profiles.transfer import targets
from xpeft_server.cli import main

def held(add):
    def first(*arguments, **options):
        add(*arguments, **options)
        if "begun" not in globals():
            globals()["begun"] = True
            print("begun", flush=True)
            select.select([sys.stdin], [], [], 30)
    return first

for target in (targets.FolderTarget, targets.TarTarget):
    target.add = held(target.add)
main.app()
"""


def profile(seed: int) -> Profile:
    rng = np.random.default_rng(seed)
    masks = rng.permuted(np.tile(np.arange(16) < 4, (4, 1)), axis=1)
    return Profile(bank="sha256:" + "ab" * 32, mask_a=masks[:2], mask_b=masks[2:])


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of two tenants."""
    found = f"sqlite:///{tmp_path}/profiles.db"

    async def fill() -> None:
        store = open_store(found)
        await store.open()
        for seed, key in enumerate(KEYS):
            await store.put(key, profile(seed))
        await store.close()

    asyncio.run(fill())
    return found


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An empty folder, so that a test sees all that was left in it."""
    path = tmp_path / "out"
    path.mkdir()
    return path


def call(command: str, *arguments: object) -> Result:
    env: dict[str, str | None] = {"XPEFT_URL": None, "XPEFT_STORE": None, "XPEFT_API_KEY": None}
    return CliRunner().invoke(app, [command, *map(str, arguments)], env=env)


@pytest.mark.parametrize("name", ["profiles", "p.tar", "p.tar.gz", "p.tgz", "p.jsonl", "p.jsonl.gz"])
@pytest.mark.parametrize("tenant", [None, "zeta"])
def test_an_export_is_imported_as_the_same_versions(url: str, out: Path, name: str, tenant: str | None) -> None:
    options = [] if tenant is None else ["--tenant", tenant]
    done = call("export", out / name, "--store", url, *options)
    assert (done.exit_code, done.stderr) == (0, "")
    count = 6 if tenant is None else 3
    assert f"{name}: {count} profiles (" in done.stdout
    assert [path.name for path in out.iterdir()] == [name]
    again = call("import", out / name, "--store", url, *options)
    assert again.stdout.startswith(f"0 created, 0 replaced, {count} identical, 0 refused")
    assert again.exit_code == 0
    fresh = call("import", out / name, "--store", f"sqlite:///{out}/new.db", *options)
    assert fresh.stdout.startswith(f"{count} created, 0 replaced, 0 identical, 0 refused")


def test_a_file_that_is_there_is_replaced_only_when_forced(url: str, out: Path) -> None:
    path = out / "p.jsonl"
    path.write_text("precious")
    done = call("export", path, "--store", url)
    assert (done.exit_code, path.read_text()) == (1, "precious")
    assert "is there already: give another target, or --force to replace it" in done.stderr
    assert call("export", path, "--store", url, "--force").exit_code == 0
    assert len(path.read_text().splitlines()) == 6


def test_a_folder_with_something_in_it_is_never_replaced(url: str, out: Path) -> None:
    (out / "profiles").mkdir()
    assert call("export", out / "profiles", "--store", url).exit_code == 0
    for target in (out / "profiles", out):
        done = call("export", target, "--store", url, "--force")
        assert done.exit_code == 1
        assert "is there already and not an empty folder" in done.stderr
    (out / "x.tar").mkdir()
    assert "is there already: give another target" in call("export", out / "x.tar", "--store", url, "--force").stderr


@pytest.mark.parametrize("name", ["profiles", "p.tar", "p.jsonl.gz"])
def test_a_store_that_fails_leaves_nothing(out: Path, name: str, tmp_path: Path) -> None:
    database = tmp_path / "broken.db"
    database.write_bytes(b"no database at all " * 300)
    done = call("export", out / name, "--store", f"sqlite:///{database}")
    assert done.exit_code == 1
    assert "not a database; nothing was written" in done.stderr
    assert list(out.iterdir()) == []


def test_a_target_that_cannot_be_written_is_said(url: str, out: Path) -> None:
    for name in ("no/p.jsonl", "no/profiles"):
        done = call("export", out / name, "--store", url)
        assert done.exit_code == 1
        assert f"{name} cannot be written: No such file or directory" in done.stderr


def test_a_damaged_record_is_left_out_and_named(url: str, out: Path) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE profiles SET record = x'00' WHERE tenant = 'zeta' AND name = 'a'")
    connection.close()
    done = call("export", out / "p.jsonl", "--store", url)
    assert done.exit_code == 1
    first, last = done.stderr.splitlines()
    assert first.startswith("refused zeta/a: the record has 1 bytes")
    assert last == "xpeft: 1 profiles were left out"
    assert len((out / "p.jsonl").read_text().splitlines()) == 5


def test_a_store_that_another_process_writes_to_is_exported(url: str, out: Path) -> None:
    other = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    done = call("export", out / "p.jsonl", "--store", url)
    other.close()
    assert (done.exit_code, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["profiles", "p.tar.gz"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_an_export_leaves_nothing(url: str, out: Path, name: str, number: signal.Signals) -> None:
    command = [sys.executable, "-c", PROGRAM, "profiles", "export", str(out / name), "--store", url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        assert len(list(out.iterdir())) == 1
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    assert list(out.iterdir()) == []


def test_an_export_that_shall_outlive_its_terminal_does(url: str, out: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, "profiles", "export", str(out / "p.tar"), "--store", url]
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGHUP, ignored)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGHUP)
        said, _ = process.communicate("on\n")
    assert process.returncode == 0
    assert "p.tar: 6 profiles" in said


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_is_written_where_a_link_leads(url: str, out: Path, there: bool) -> None:
    (out / "link").symlink_to(out / "profiles")
    if there:
        (out / "profiles").mkdir()
    done = call("export", out / "link", "--store", url)
    assert (done.exit_code, done.stderr) == (0, "")
    assert (out / "link").is_symlink()
    assert sorted(path.name for path in (out / "profiles").iterdir()) == ["acme", "zeta"]
    assert {path.name for path in out.iterdir()} == {"link", "profiles"}


def test_the_folder_that_one_is_in_is_no_target(url: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new one would take its place, and who is in it would still see the old one."""
    monkeypatch.chdir(out)
    for target in (".", out):
        done = call("export", target, "--store", url)
        assert (done.exit_code, done.stdout) == (1, "")
        assert done.stderr == f"xpeft: {target} is the folder that this command runs in: give another target\n"
    assert call("export", "new", "--store", url).exit_code == 0
    assert [path.name for path in out.iterdir()] == ["new"]


@pytest.mark.parametrize("name", ["profiles", "p.tar", "p.jsonl"])
def test_what_is_called_by_no_name_is_left_out(url: str, out: Path, tmp_path: Path, name: str) -> None:
    strange = [("acme", "../../up"), ("acme", f"{tmp_path}/absolute"), ("acme", 'a","file":"'), ("../up", "a")]
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.executemany(
            "INSERT INTO profiles SELECT ?, ?, version, created, updated, record FROM profiles LIMIT 1",
            strange,
        )
    connection.close()
    before = {path for path in tmp_path.rglob("*") if out not in path.parents}
    done = call("export", out / name, "--store", url)
    assert done.exit_code == 1
    refused = [line for line in done.stderr.splitlines() if line.startswith("refused ")]
    assert len(refused) == 4
    assert all("is not a name" in line for line in refused)
    assert refused[0].startswith("refused ../up/a: tenant: '../up' is not a name")
    assert done.stderr.splitlines()[-1] == "xpeft: 4 profiles were left out"
    assert {path for path in tmp_path.rglob("*") if out not in path.parents} == before
    again = call("import", out / name, "--store", f"sqlite:///{out}/new.db")
    assert again.stdout.startswith("6 created, 0 replaced, 0 identical, 0 refused")


@pytest.mark.parametrize("name", ["profiles", "p.tar.gz", "p.jsonl"])
def test_a_tenant_without_profiles_is_no_export(url: str, out: Path, name: str) -> None:
    done = call("export", out / name, "--store", url, "--tenant", "nobody")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"xpeft: there are no profiles in {url} of the tenant 'nobody'; nothing was written\n"
    assert list(out.iterdir()) == []


def test_an_export_of_nothing_replaces_nothing(url: str, out: Path) -> None:
    (out / "p.jsonl").write_text("precious")
    done = call("export", out / "p.jsonl", "--store", url, "--tenant", "nobody", "--force")
    assert (done.exit_code, (out / "p.jsonl").read_text()) == (1, "precious")
    assert [path.name for path in out.iterdir()] == ["p.jsonl"]


def test_an_export_of_damaged_records_alone_says_so(url: str, out: Path) -> None:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE profiles SET record = x'00'")
    connection.close()
    done = call("export", out / "p.tar", "--store", url)
    assert done.exit_code == 1
    assert f"6 profiles were left out, and there are no others in {url}; nothing was written" in done.stderr
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("file", ["profils.db", "no/profiles.db"])
def test_a_file_that_is_no_store_is_named_and_not_made(out: Path, file: str) -> None:
    done = call("export", out / "p.tar.gz", "--store", f"sqlite:///{out}/{file}")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"there is no store in {out}/{file}" in done.stderr
    assert list(out.iterdir()) == []


def test_an_empty_file_is_no_store_either(out: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    done = call("export", out / "p.tar", "--store", f"sqlite:///{tmp_path}/empty.db")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"there is no store in {tmp_path}/empty.db" in done.stderr
    assert (tmp_path / "empty.db").read_bytes() == b""


@pytest.mark.parametrize("name", ["b.zip", "b.7z", "b.tar.xz", "b.tar.bz2", "b.json", "b.tar.gz2"])
def test_a_name_of_another_form_is_refused(url: str, out: Path, name: str) -> None:
    done = call("export", out / name, "--store", url)
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"{name} has none of the known forms: a file ends in one of .tar, .tar.gz, .tgz, .jsonl" in done.stderr
    assert list(out.iterdir()) == []
    (out / name).mkdir()
    assert call("export", out / name, "--store", url).exit_code == 0
    assert len([path for path in (out / name).rglob("*") if path.is_file()]) == 6


def test_the_help_has_an_example() -> None:
    assert "Example: xpeft profiles export" in call("export", "--help").stdout
