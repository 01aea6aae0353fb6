from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from xpeft_profiles import Profile, ProfileKey, open_store, read_profile_file
from xpeft_server.cli.profiles import commands as profiles
from xpeft_server.cli.profiles.client import Answer, ClientError, ServerRefused
from xpeft_server.cli.tune import commands as tune
from xpeft_server.cli.tune import many as tune_many
from xpeft_server.cli.tune import sinks as tune_sinks
from xpeft_server.client_tls import ClientTls
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import open_plm_facts
from xpeft_tuning.mask_tuner import tune_profiles

SPEC = "random:N=6,R=4,seed=3"
USERS = ("ann", "bob", "rt:corey-hall")

runner = CliRunner()
Call = Callable[..., Result]
Row = dict[str, Any]


def rows_of(user: str, number: int = 12, **more: Any) -> list[Row]:
    """Words of the first ten are good, of the next ten bad; each user's own texts."""
    shift = len(user)
    return [
        {
            "text": f"w{10 * (row % 2) + (row + shift) % 10} w{10 * (row % 2) + row % 7}",
            "label": "bad" if row % 2 else "good",
            "user": user,
            **more,
        }
        for row in range(number)
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    write_rows(path, [row for rows in zip(*map(rows_of, USERS), strict=True) for row in rows])
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def xpeft(tiny_bert: Path, data: Path) -> Call:
    def call(*arguments: str, **variables: str) -> Result:
        fixed = ["--plm", str(tiny_bert), "--bank", SPEC, "--device", "cpu", "--by", "user", "--data", str(data)]
        return runner.invoke(tune.app, [*fixed, "--epochs", "1", *arguments], env=variables)

    return call


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the profiles that are really tuned, or refused, from now on."""
    names: list[str] = []

    def spy(plm: Any, bank: Any, tasks: Any, settings: Any, **options: Any) -> Iterator[Any]:
        for outcome in tune_profiles(plm, bank, tasks, settings, **options):
            names.append(outcome.name)
            yield outcome

    monkeypatch.setattr(tune_many, "tune_profiles", spy)
    return names


def lines(journal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in journal.read_text().splitlines()]


def facts(result: Result) -> dict[str, str]:
    shown = [line.strip() for line in result.stdout.splitlines() if "  " in line.strip()]
    return {line.split("  ")[0]: line.rsplit("  ", 1)[1] for line in shown}


def files(folder: Path) -> dict[str, Profile]:
    return {path.stem: read_profile_file(path.read_bytes()) for path in folder.glob("*.safetensors")}


def test_every_value_of_the_field_gets_a_file_and_a_line(xpeft: Call, out: Path, tiny_bert: Path) -> None:
    result = xpeft("--out", str(out))
    assert result.exit_code == 0, result.output
    profiles, journal = files(out), {line["name"]: line for line in lines(out / ".journal.jsonl")}
    assert {path.name for path in out.iterdir()} == {
        ".journal.jsonl",
        *(f"{name}.safetensors" for name in ("ann", "bob", "rt-corey-hall")),
    }
    geometry = open_bank(SPEC, open_plm_facts(str(tiny_bert))).geometry
    for name, profile in profiles.items():
        profile.check_fits(geometry)
        line = journal[name]
        assert line["version"] == profile.version
        assert profile.labels == ("good", "bad")
        assert (line["train"]["rows"], line["held_out"]["rows"], line["epoch"], line["cut"]) == (10, 2, 1, 0)
        assert 0 <= line["held_out"]["accuracy"] <= 1
        assert line["majority"] == 0.5
        assert line["seconds"] > 0
    assert {name: line["value"] for name, line in journal.items()} == {
        "ann": "ann",
        "bob": "bob",
        "rt-corey-hall": "rt:corey-hall",
    }


def test_the_summary_counts_and_averages(xpeft: Call, out: Path) -> None:
    result = xpeft("--out", str(out))
    shown = facts(result)
    held_out = [line["held_out"] for line in lines(out / ".journal.jsonl")]
    mean = sum(score["accuracy"] * score["rows"] for score in held_out) / sum(score["rows"] for score in held_out)
    assert (shown["profiles tuned"], shown["skipped, done before"], shown["refused"]) == ("3", "0", "0")
    assert shown["held-out rows"] == "6, of 3 profiles"
    assert shown["mean accuracy"] == f"{mean:.3f}"
    assert shown["always the most frequent label"] == "0.500"
    assert "correlation" not in result.stdout
    assert float(shown["profiles a second"]) > 0
    assert "3/3 profiles" in result.stderr
    assert "100 % of steps" in result.stderr
    assert "nobody reads" not in result.stderr


def test_a_template_names_the_profiles(xpeft: Call, out: Path) -> None:
    assert xpeft("--out", str(out), "--profile", "critic.{user}").exit_code == 0
    assert set(files(out)) == {"critic.ann", "critic.bob", "critic.rt-corey-hall"}


def test_packed_rows_are_read(xpeft: Call, out: Path, data: Path) -> None:
    packed = data.with_name("data.jsonl.gz")
    packed.write_bytes(gzip.compress(data.read_bytes()))
    assert xpeft("--out", str(out), "--data", str(packed)).exit_code == 0
    assert len(files(out)) == 3


def test_labels_that_are_numbers_are_averaged_by_correlation_and_error(xpeft: Call, out: Path, data: Path) -> None:
    rows = [{"text": f"w{row % 9} w{row % 9}", "label": row % 9, "user": row % 2} for row in range(80)]
    write_rows(data, rows)
    result = xpeft("--out", str(out), "--profile", "user-{user}")
    assert result.exit_code == 0, result.output
    journal, shown = lines(out / ".journal.jsonl"), facts(result)
    assert [line["value"] for line in journal] == ["0", "1"]
    assert all(line["majority"] is None and "accuracy" not in line["held_out"] for line in journal)
    error = sum(line["held_out"]["loss"] * line["held_out"]["rows"] for line in journal) / 16
    assert shown["mean squared error"] == f"{error:.4g}"
    assert float(shown["mean correlation"]) > 0.8
    assert "mean accuracy" not in shown


async def stored(url: str, tenant: str, names: Sequence[str]) -> dict[str, str]:
    store = open_store(url)
    await store.open()
    try:
        found = await store.get_many([ProfileKey(tenant, name) for name in names])
    finally:
        await store.close()
    return {name: each.decode().version for name, each in zip(names, found, strict=True) if each is not None}


def test_a_store_gets_every_profile_and_skips_those_that_it_has(xpeft: Call, tmp_path: Path, tuned: list[str]) -> None:
    url, journal = f"sqlite:///{tmp_path / 'profiles.db'}", tmp_path / "journal.jsonl"
    arguments = ("--store", url, "--tenant", "critics", "--journal", str(journal))
    names = ["ann", "bob", "rt-corey-hall"]
    result = xpeft(*arguments)
    assert result.exit_code == 0, result.output
    assert asyncio.run(stored(url, "critics", names)) == {line["name"]: line["version"] for line in lines(journal)}
    assert asyncio.run(stored(url, "default", names)) == {}
    assert sorted(tuned) == names
    again = xpeft(*arguments)
    assert (again.exit_code, len(tuned)) == (0, 3)
    assert facts(again)["skipped, done before"] == "3"
    other = xpeft("--store", url, "--tenant", "others", "--journal", str(journal))
    assert (other.exit_code, len(tuned)) == (0, 6)
    assert "3 of the journal's profiles are tuned again, as they are not where they were put" in other.stderr


def refusal(status: int, code: str) -> ServerRefused:
    return ServerRefused(f"{status} ({code})", status=status, code=code, reason=code, retry_after=None)


class Server:
    """Stands for the client of a server: keeps what is put until it is told to refuse."""

    def __init__(self, bank: str) -> None:
        self.profiles: dict[str, str] = {"zoe": "sha256:0"}
        self.most = 100
        self.failure = ClientError("507 Insufficient Storage")
        self.fingerprint = bank

    def connect(self, url: str, api_key: str | None, tls: ClientTls) -> Server:
        assert (url, api_key) == ("http://host", "xp_1")
        return self

    def bank(self) -> str:
        return self.fingerprint

    def list(self, *, prefix: str, limit: int | None) -> Iterator[dict[str, Any]]:
        found = [{"name": name, "version": version} for name, version in self.profiles.items()]
        yield from [each for each in found if each["name"].startswith(prefix)][:limit]

    def put(self, name: str, file: bytes, *, if_match: str | None, if_none_match: str | None) -> Answer:
        if name == "base":
            raise refusal(422, "reserved_name")
        if len(self.profiles) > self.most:
            raise self.failure
        self.profiles[name] = read_profile_file(file).version
        return Answer(201, {"etag": f'"{self.profiles[name]}"'}, b"{}")

    def close(self) -> None:
        pass


@pytest.fixture
def server(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(open_bank(SPEC, open_plm_facts(str(tiny_bert))).fingerprint)
    monkeypatch.setattr(tune_sinks, "KeptProfilesClient", server.connect)
    return server


def test_a_server_gets_what_it_does_not_have(xpeft: Call, tmp_path: Path, server: Server, tuned: list[str]) -> None:
    journal = tmp_path / "journal.jsonl"
    arguments = ("--url", "http://host", "--api-key", "xp_1", "--journal", str(journal))
    assert xpeft(*arguments).exit_code == 0
    versions = {line["name"]: line["version"] for line in lines(journal)}
    assert server.profiles == {"zoe": "sha256:0", **versions}
    server.profiles["bob"] = "sha256:1"
    tuned.clear()
    assert xpeft(*arguments).exit_code == 0
    assert tuned == ["bob"]
    assert server.profiles["bob"] == versions["bob"]


def test_a_server_that_fails_ends_the_run_which_goes_on_later(
    xpeft: Call, tmp_path: Path, server: Server, tuned: list[str]
) -> None:
    journal = tmp_path / "journal.jsonl"
    arguments = ("--url", "http://host", "--api-key", "xp_1", "--journal", str(journal), "--batch-profiles", "1")
    server.most = 2
    result = xpeft(*arguments)
    assert (result.exit_code, [line["name"] for line in lines(journal)]) == (1, ["ann", "bob"])
    assert result.stderr.splitlines()[-1] == (
        f"xpeft: 507 Insufficient Storage; 2 of 3 profiles are done and in {journal},"
        " the same command goes on from there"
    )
    server.most = 100
    tuned.clear()
    assert xpeft(*arguments).exit_code == 0
    assert tuned == ["rt-corey-hall"]


def test_a_server_that_refuses_for_good_is_no_reason_to_give_the_command_again(
    xpeft: Call, tmp_path: Path, server: Server
) -> None:
    journal = tmp_path / "journal.jsonl"
    arguments = ("--url", "http://host", "--api-key", "xp_1", "--journal", str(journal), "--batch-profiles", "1")
    server.most, server.failure = 2, refusal(409, "bank_mismatch")
    result = xpeft(*arguments)
    assert result.exit_code == 1
    said = f"xpeft: 409 (bank_mismatch); 2 of 3 profiles are done and in {journal}"
    assert result.stderr.splitlines()[-1] == said


def test_a_server_with_another_bank_is_found_out_before_anything_is_tuned(
    xpeft: Call, tmp_path: Path, server: Server, tuned: list[str]
) -> None:
    server.fingerprint = "sha256:other"
    journal = tmp_path / "journal.jsonl"
    result = xpeft("--url", "http://host", "--api-key", "xp_1", "--journal", str(journal))
    assert (result.exit_code, tuned, journal.exists()) == (1, [], False)
    assert "the server has sha256:other: give its --plm and --bank" in result.stderr


def test_a_second_run_tunes_only_what_is_missing(xpeft: Call, out: Path, tuned: list[str]) -> None:
    xpeft("--out", str(out))
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    tuned.clear()
    again = xpeft("--out", str(out))
    assert (again.exit_code, tuned) == (0, [])
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert facts(again)["profiles a second"] == "-"
    assert facts(again)["held-out rows"] == "6, of 3 profiles"
    assert "3 of the journal's profiles are done and skipped" in again.stderr
    (out / "ann.safetensors").unlink()
    (out / "bob.safetensors").write_bytes(b"damaged")
    result = xpeft("--out", str(out))
    assert (result.exit_code, sorted(tuned)) == (0, ["ann", "bob"])
    assert "2 of the journal's profiles are tuned again, as they are not where they were put" in result.stderr
    assert set(files(out)) == {"ann", "bob", "rt-corey-hall"}


def test_what_depends_on_something_else_now_is_tuned_again(
    xpeft: Call, out: Path, data: Path, tuned: list[str]
) -> None:
    def changed(*arguments: str) -> tuple[int, list[str]]:
        tuned.clear()
        result = xpeft("--out", str(out), *arguments)
        assert result.exit_code == 0, result.output
        told = "profiles are tuned again, as what they depend on has changed"
        counts = [line.split()[0] for line in result.stderr.splitlines() if line.endswith(told)]
        return int(counts[0]) if counts else 0, sorted(tuned)

    everyone = ["ann", "bob", "rt-corey-hall"]
    assert changed() == (0, everyone)
    with data.open("a") as file:
        file.write(json.dumps(rows_of("bob")[0]) + "\n")
    assert changed() == (1, ["bob"])
    assert changed("--seed", "1") == (3, everyone)
    assert changed("--seed", "1", "--dtype", "bfloat16") == (3, everyone)
    assert changed("--seed", "1", "--dtype", "bfloat16", "--batch-profiles", "1") == (0, [])


def test_force_tunes_everything_again(xpeft: Call, out: Path, tuned: list[str]) -> None:
    xpeft("--out", str(out))
    tuned.clear()
    assert xpeft("--out", str(out), "--force").exit_code == 0
    assert sorted(tuned) == ["ann", "bob", "rt-corey-hall"]
    assert len(lines(out / ".journal.jsonl")) == 6


def test_a_journal_that_was_begun_in_sight_is_gone_on_with(xpeft: Call, out: Path, tuned: list[str]) -> None:
    assert xpeft("--out", str(out)).exit_code == 0
    (out / ".journal.jsonl").rename(out / "journal.jsonl")
    tuned.clear()
    again = xpeft("--out", str(out))
    assert (again.exit_code, tuned) == (0, [])
    assert "3 of the journal's profiles are done and skipped" in again.stderr
    assert not (out / ".journal.jsonl").exists()


def test_a_folder_of_tuned_profiles_is_imported_as_it_is(xpeft: Call, out: Path, tmp_path: Path) -> None:
    assert xpeft("--out", str(out)).exit_code == 0
    place = ["--store", f"sqlite:///{tmp_path / 'p.db'}", "--tenant", "critics"]
    imported = runner.invoke(profiles.app, ["import", str(out), *place])
    assert imported.exit_code == 0, imported.output
    assert imported.stdout.startswith("3 created, 0 replaced, 0 identical, 0 refused")


def test_a_torn_line_counts_as_not_written(xpeft: Call, out: Path, tuned: list[str]) -> None:
    xpeft("--out", str(out))
    journal = out / ".journal.jsonl"
    *whole, last = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(whole) + last[: len(last) // 2])
    tuned.clear()
    assert xpeft("--out", str(out)).exit_code == 0
    assert tuned == [json.loads(last)["name"]]
    assert {line["name"] for line in lines(journal)} == {"ann", "bob", "rt-corey-hall"}


def test_who_cannot_be_tuned_is_refused_and_disturbs_nobody(
    xpeft: Call, out: Path, data: Path, tuned: list[str]
) -> None:
    with data.open("a") as file:
        file.write(json.dumps({"text": "w1", "label": "good", "user": "lone"}) + "\n")
    result = xpeft("--out", str(out))
    reason = "the train rows have 1 label ('good'): tuning needs two at least"
    assert result.exit_code == 1
    assert f"refused lone: {reason}" in result.stdout
    assert (facts(result)["profiles tuned"], facts(result)["refused"]) == ("3", "1")
    assert set(files(out)) == {"ann", "bob", "rt-corey-hall"}
    [line] = [line for line in lines(out / ".journal.jsonl") if "refused" in line]
    assert (line["name"], line["value"], line["refused"]) == ("lone", "lone", reason)
    tuned.clear()
    again = xpeft("--out", str(out))
    assert (again.exit_code, tuned, facts(again)["refused"]) == (1, [], "1")
    with data.open("a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows_of("lone")))
    assert xpeft("--out", str(out)).exit_code == 0
    assert tuned == ["lone"]


def test_the_first_few_that_are_refused_are_told_with_their_reasons(xpeft: Call, out: Path, data: Path) -> None:
    write_rows(data, [{"text": "w1", "label": "good", "user": f"u{number}"} for number in range(7)])
    result = xpeft("--out", str(out))
    told = [line for line in result.stdout.splitlines() if line.startswith("refused u")]
    assert (result.exit_code, len(told), set(files(out))) == (1, 5, set())
    assert f"refused 2 more: see {out / '.journal.jsonl'}" in result.stdout
    assert len([line for line in lines(out / ".journal.jsonl") if "refused" in line]) == 7


@pytest.mark.parametrize(("asked", "places"), [((), 3), (("--batch-profiles", "2"), 2), (("--batch-profiles", "9"), 3)])
def test_profiles_are_tuned_together_as_far_as_there_are_any(
    asked: tuple[str, ...], places: int, xpeft: Call, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []

    def spy(*arguments: Any, **options: Any) -> Iterator[Any]:
        seen.append(options)
        return tune_profiles(*arguments, **options)

    monkeypatch.setattr(tune_many, "tune_profiles", spy)
    assert xpeft("--out", str(out), *asked).exit_code == 0
    assert [(options["places"], options["classes"]) for options in seen] == [(places, 2)]


def test_a_device_without_enough_memory_is_no_riddle(xpeft: Call, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spent(*_: Any, **__: Any) -> Iterator[Any]:
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    monkeypatch.setattr(tune_many, "tune_profiles", spent)
    result = xpeft("--out", str(out))
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "xpeft: tried to allocate 2.00 GiB; with a smaller --batch-profiles it may fit; 0 of 3 profiles are done"
        f" and in {out / '.journal.jsonl'}, the same command goes on from there"
    )


@pytest.mark.parametrize(
    ("users", "arguments", "message"),
    [
        (USERS, (), "there is nowhere to put the profiles: give --out, --url or --store"),
        (USERS, ("--store", "sqlite:///s"), "which a run goes on from: give --journal FILE"),
        (USERS, ("--store", "memory://", "--journal", "j"), "store is 'memory://': nothing would be left"),
        (USERS, ("--out", "x", "--tenant", "t"), "--tenant t goes with --store"),
        (USERS, ("--out", "x", "--profile", "critic"), "profile is 'critic', it must have {user} in it"),
        (USERS, ("--out", "x", "--by", "name"), "data.jsonl: line 1 has no name"),
        (("a:b", "ann", "a/b"), ("--out", "x"), "user 'a:b' and user 'a/b' would both be profile a-b"),
        (("ann", "-"), ("--out", "x"), "user '-': name: '-' is not a name"),
        (("base", "ann"), ("--out", "x"), "user 'base': name: 'base' stands for the bare model"),
        (USERS, ("--out", "data.jsonl"), "data.jsonl cannot be made: File exists"),
        (USERS, ("--out", "x", "--journal", "data.jsonl"), "data.jsonl: line 1 is no line of a journal"),
        (USERS, ("--out", "x", "--journal", "no/j"), "no/j cannot be opened: No such file or directory"),
        (USERS, ("--out", "x", "--k", "7"), "k is 7, the bank has N=6 adapters to choose from"),
        (USERS, ("--out", "x", "--description", "x" * 1025), "has 1025 bytes, at most 1024 are allowed"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_is_tuned(
    users: Sequence[str],
    arguments: tuple[str, ...],
    message: str,
    xpeft: Call,
    tmp_path: Path,
    data: Path,
    tuned: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(data, [row for user in users for row in rows_of(user)])
    before = data.read_bytes()
    result = xpeft(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert tuned == []
    assert data.read_bytes() == before
    assert list(tmp_path.rglob("*.safetensors")) == []
    assert list(tmp_path.rglob("*journal.jsonl")) == []


def test_files_that_no_journal_tells_of_are_not_replaced(xpeft: Call, out: Path, tuned: list[str]) -> None:
    out.mkdir()
    (out / "bob.safetensors").write_bytes(b"precious")
    result = xpeft("--out", str(out))
    assert (result.exit_code, tuned) == (1, [])
    assert f"{out / 'bob.safetensors'} is there already" in result.stderr
    assert (out / "bob.safetensors").read_bytes() == b"precious"
    assert not (out / ".journal.jsonl").exists()
    assert xpeft("--out", str(out), "--force").exit_code == 0
    assert set(files(out)) == {"ann", "bob", "rt-corey-hall"}


def test_fields_that_nobody_reads_are_told_once_and_the_users_field_is_none(xpeft: Call, out: Path, data: Path) -> None:
    write_rows(data, [row for user in USERS for row in rows_of(user, stars=3)])
    result = xpeft("--out", str(out))
    assert [line for line in result.stderr.splitlines() if "nobody reads" in line] == [
        f"fields of {data} that nobody reads: 'stars'"
    ]
