from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from xpeft_profiles import ProfileKey, open_store, read_profile_file
from xpeft_server.cli.profiles.client import Answer, ClientError, ServerRefused
from xpeft_server.cli.tune import commands as tune
from xpeft_server.cli.tune import one as tune_one
from xpeft_server.cli.tune import sinks as tune_sinks
from xpeft_server.client_tls import ClientTls
from xpeft_server.model.banks.bank import SharedHead
from xpeft_server.model.banks.file import read_bank_file, write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import open_plm_facts
from xpeft_tuning.settings import TuningSettings

SPEC = "random:N=6,R=4,seed=3"

runner = CliRunner()
Call = Callable[..., Result]


class Server:
    """Stands for the client of a server: keeps what is put, refuses what it is told to."""

    def __init__(self, bank: str) -> None:
        self.profiles: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        self.refusal: dict[str, str] = {}
        self.fingerprint = bank
        self.role = (422, "reserved_name")

    def connect(self, url: str, api_key: str | None, tls: ClientTls) -> Server:
        self.asked.append((url, api_key))
        return self

    def bank(self) -> str:
        if "bank" in self.refusal:
            raise ClientError(self.refusal["bank"])
        return self.fingerprint

    def put(self, name: str, file: bytes, *, if_match: str | None, if_none_match: str | None) -> Answer:
        assert (if_match, if_none_match) == (None, None)
        if name == "base":
            status, code = self.role
            raise ServerRefused(f"{status} ({code})", status=status, code=code, reason=code, retry_after=None)
        if "put" in self.refusal:
            raise ClientError(self.refusal["put"])
        status = 200 if name in self.profiles else 201
        self.profiles[name] = file
        return Answer(status, {"etag": f'"{read_profile_file(file).version}"'}, b"{}")

    def close(self) -> None:
        pass


@pytest.fixture
def server(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server(open_bank(SPEC, open_plm_facts(str(tiny_bert))).fingerprint)
    monkeypatch.setattr(tune_sinks, "KeptProfilesClient", server.connect)
    return server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    rows = [
        (f"w{10 * (row % 2) + row % 7} w{10 * (row % 2) + row % 5}", "no" if row % 2 else "yes") for row in range(40)
    ]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


@pytest.fixture
def xpeft(tiny_bert: Path, data: Path) -> Call:
    def call(*arguments: str, bank: str = SPEC, **variables: str) -> Result:
        given = ["--plm", str(tiny_bert), "--bank", bank, "--device", "cpu", "--data", str(data), *arguments]
        return runner.invoke(tune.app, given, env=variables)

    return call


def test_a_file_is_written_that_fits_the_bank_and_says_what_was_asked(
    xpeft: Call, tmp_path: Path, tiny_bert: Path
) -> None:
    out = tmp_path / "p.safetensors"
    result = xpeft("--out", str(out), "--epochs", "2", "--description", "yes or no", "--k", "2")
    assert result.exit_code == 0, result.output
    profile = read_profile_file(out.read_bytes())
    profile.check_fits(open_bank(SPEC, open_plm_facts(str(tiny_bert))).geometry)
    assert (profile.k, profile.labels, profile.description) == (2, ("yes", "no"), "yes or no")
    assert f"wrote {out} ({out.stat().st_size} bytes)" in result.stdout


def test_accuracies_of_the_majority_of_a_head_alone_and_of_the_profile_are_printed(xpeft: Call, tmp_path: Path) -> None:
    result = xpeft("--out", str(tmp_path / "p"), "--epochs", "2")
    shown = _facts(result)
    assert shown["rows"] == "32 tuned on, 8 held out"
    assert shown["always the most frequent label"] == "0.500"
    assert float(shown["this profile"]) > 0.8
    assert float(shown["a head alone, without masks"]) > 0.8
    assert shown["version"].startswith("sha256:")
    assert "On these rows the masks add no accuracy" in result.stdout
    assert "epoch 2/2" in result.stderr


def _facts(result: Result) -> dict[str, str]:
    lines = [line.strip() for line in result.stdout.splitlines() if "  " in line.strip()]
    return {line.split("  ")[0]: line.rsplit("  ", 1)[1] for line in lines}


def test_rows_that_are_not_held_out_are_said_to_be_none(xpeft: Call, tmp_path: Path) -> None:
    result = xpeft("--out", str(tmp_path / "p"), "--epochs", "1", "--held-out", "0")
    assert "40 tuned on, none held out" in result.stdout
    assert "the rows it was tuned on" in result.stdout


def test_the_same_seed_writes_the_same_bytes(xpeft: Call, tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))
    for out, seed in ((one, "4"), (two, "4"), (other, "5")):
        assert xpeft("--out", str(out), "--epochs", "1", "--seed", seed).exit_code == 0
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()


def test_labels_on_the_command_line_decide_the_order(xpeft: Call, tmp_path: Path) -> None:
    out = tmp_path / "p"
    assert xpeft("--out", str(out), "--epochs", "1", "--labels", "no,yes").exit_code == 0
    assert read_profile_file(out.read_bytes()).labels == ("no", "yes")


@pytest.fixture
def bank_with_a_head(tiny_bert: Path, tmp_path: Path) -> Path:
    facts = open_plm_facts(str(tiny_bert))
    file = tmp_path / "bank.safetensors"
    head = SharedHead(torch.eye(2, facts.hidden), torch.zeros(2), ("no", "yes"))
    write_bank_file(replace(open_bank(SPEC, facts), heads={"polar": head}), file, overwrite=False)
    return file


def test_soft_masks_and_a_head_of_the_bank_are_taken_by_option(
    xpeft: Call, tmp_path: Path, bank_with_a_head: Path
) -> None:
    out = tmp_path / "p"
    arguments = ("--out", str(out), "--epochs", "1", "--soft", "--head", "shared:polar")
    result = xpeft(*arguments, bank=str(bank_with_a_head))
    assert result.exit_code == 0, result.output
    profile = read_profile_file(out.read_bytes())
    profile.check_fits(read_bank_file(bank_with_a_head).geometry)
    assert (profile.hard, profile.shared_head, profile.labels) == (False, "polar", None)
    assert "head alone" not in result.stdout


def test_a_head_of_its_own_may_start_as_one_of_the_bank(xpeft: Call, tmp_path: Path, bank_with_a_head: Path) -> None:
    out = tmp_path / "p"
    bank = str(bank_with_a_head)
    result = xpeft("--out", str(out), "--epochs", "1", "--head", "shared+own:polar", bank=bank)
    assert result.exit_code == 0, result.output
    profile = read_profile_file(out.read_bytes())
    assert (profile.shared_head, profile.labels) == (None, ("no", "yes"))
    assert xpeft("--out", str(out), "--epochs", "1", "--head", "own", "--force", bank=bank).exit_code == 0
    assert read_profile_file(out.read_bytes()).labels == ("yes", "no")


def test_labels_that_are_numbers_are_reported_by_correlation_and_error(xpeft: Call, tmp_path: Path, data: Path) -> None:
    rows = [{"text": f"w{row % 10} w{row % 10}", "label": row % 10} for row in range(50)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "p"
    result = xpeft("--out", str(out), "--epochs", "2", "--labels", "stars")
    assert result.exit_code == 0, result.output
    assert read_profile_file(out.read_bytes()).labels == ("stars",)
    shown = _facts(result)
    assert shown["correlation on"] == "held-out rows"
    for row in ("this profile", "a head alone, without masks"):
        correlation, error = re.fullmatch(r"(\S+), mean squared error (\S+)", shown[row]).groups()  # type: ignore[union-attr]
        assert float(correlation) > 0.8
        assert 0 < float(error) < 4
    assert re.search(r"epoch 2/2 .* correlation [01]\.[0-9]{3} ", result.stderr)
    assert "accuracy" not in result.output
    assert "most frequent label" not in result.stdout


def test_bfloat16_is_another_profile_than_float32(xpeft: Call, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert xpeft("--out", str(one), "--epochs", "1").exit_code == 0
    assert xpeft("--out", str(two), "--epochs", "1", "--dtype", "bfloat16").exit_code == 0
    assert read_profile_file(one.read_bytes()).version != read_profile_file(two.read_bytes()).version


def test_fields_that_nobody_reads_are_told_once(xpeft: Call, tmp_path: Path, data: Path) -> None:
    told = "that nobody reads"
    assert told not in xpeft("--out", str(tmp_path / "one"), "--epochs", "1").output
    rows = [json.loads(line) | {"lable": "x", "user": 3} for line in data.read_text().splitlines()]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = xpeft("--out", str(tmp_path / "two"), "--epochs", "1")
    assert result.exit_code == 0, result.output
    assert [line for line in result.stderr.splitlines() if told in line] == [
        f"fields of {data} that nobody reads: 'lable', 'user'"
    ]


def test_a_store_gets_the_profile_without_any_server(xpeft: Call, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'profiles.db'}"
    arguments = ("--store", url, "--profile", "polar", "--epochs", "1")
    results = [xpeft(*arguments, "--tenant", "air"), xpeft(*arguments, "--tenant", "air"), xpeft(*arguments)]
    assert [result.exit_code for result in results] == [0, 0, 0], results[0].output

    async def versions() -> list[str | None]:
        store = open_store(url)
        await store.open()
        try:
            return await store.versions([ProfileKey("air", "polar"), ProfileKey("default", "polar")])
        finally:
            await store.close()

    version, same = asyncio.run(versions())
    assert version == same is not None
    assert [result.stdout.splitlines()[-1] for result in results] == [
        f"created polar {version}",
        f"stored polar {version}",
        f"created polar {version}",
    ]


def test_a_url_and_a_name_upload_the_profile_and_print_its_version(xpeft: Call, server: Server) -> None:
    arguments = ("--url", "http://host", "--api-key", "xp_1", "--profile", "polar", "--epochs", "1")
    first, second = xpeft(*arguments), xpeft(*arguments)
    version = read_profile_file(server.profiles["polar"]).version
    assert first.stdout.splitlines()[-1] == f"created polar {version}"
    assert second.stdout.splitlines()[-1] == f"stored polar {version}"
    assert server.asked == [("http://host", "xp_1")] * 2


def test_variables_stand_for_options(xpeft: Call, server: Server) -> None:
    result = xpeft(
        "--profile", "polar", XPEFT_URL="http://there", XPEFT_API_KEY="xp_2", XPEFT_TUNE_EPOCHS="1", XPEFT_TUNE_K="1"
    )
    assert result.exit_code == 0, result.output
    assert server.asked == [("http://there", "xp_2")]
    assert read_profile_file(server.profiles["polar"]).k == 1


def test_a_misspelt_variable_is_refused_with_the_nearest_one(xpeft: Call, tmp_path: Path) -> None:
    out = tmp_path / "p"
    result = xpeft("--out", str(out), XPEFT_TUNE_EPOCH="1", XPEFT_BANK_TRAIN_EPOCH="1")
    said = "xpeft: XPEFT_TUNE_EPOCH is not a setting; the nearest is XPEFT_TUNE_EPOCHS\n"
    assert (result.exit_code, result.stderr, out.exists()) == (1, said, False)


def test_a_server_and_a_store_in_the_environment_get_nothing_without_a_name(
    xpeft: Call, server: Server, tmp_path: Path
) -> None:
    store = tmp_path / "s.db"
    variables = {"XPEFT_URL": "http://there", "XPEFT_TUNE_STORE": f"sqlite:///{store}"}
    assert xpeft("--out", str(tmp_path / "p"), "--epochs", "1", **variables).exit_code == 0
    assert server.asked == []
    assert not store.exists()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"XPEFT_URL": "http://there"}, "XPEFT_URL"),
        ({"XPEFT_URL": "http://there", "XPEFT_TUNE_STORE": "sqlite:///s"}, "XPEFT_URL or XPEFT_TUNE_STORE"),
    ],
)
@pytest.mark.parametrize("arguments", [(), ("--by", "user")])
def test_a_variable_that_does_not_count_is_named_where_there_is_no_other_place(
    xpeft: Call, arguments: tuple[str, ...], variables: dict[str, str], named: str
) -> None:
    result = xpeft(*arguments, **variables)
    assert result.exit_code == 1
    assert "there is nowhere to put the profile" in result.stderr
    assert result.stderr.endswith(f"; without --profile nothing goes where {named} says\n")


def test_what_cannot_be_uploaded_is_still_in_the_file(xpeft: Call, server: Server, tmp_path: Path) -> None:
    server.refusal["put"] = "409 Conflict (bank_mismatch): another bank"
    out = tmp_path / "p"
    result = xpeft("--url", "http://host", "--profile", "polar", "--epochs", "1", "--out", str(out))
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        "xpeft: 409 Conflict (bank_mismatch): another bank",
    )
    assert out.exists()


def test_what_cannot_be_uploaded_and_has_no_file_is_in_one_that_is_named(
    xpeft: Call, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.refusal["put"] = "http://host cannot be reached"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = xpeft("--url", "http://host", "--profile", "polar", "--epochs", "1")
    (kept,) = tmp_path.glob("xpeft-*/polar.safetensors")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        1,
        f"xpeft: http://host cannot be reached; what was made is in {kept}",
    )
    assert read_profile_file(kept.read_bytes()).version in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is nowhere to put the profile: give --out FILE, or --profile NAME with --url or --store"),
        (("--profile", "polar"), "--profile polar needs a server or a store: give --url, or XPEFT_URL, or --store"),
        (("--url", "http://host", "--out", "x"), "--url needs a name to upload to: give --profile"),
        (("--store", "sqlite:///s", "--out", "x"), "--store needs a name to upload to: give --profile"),
        (("--url", "http://host", "--profile", "a/b"), "name: 'a/b' is not a name"),
        (("--store", "sqlite:///s", "--profile", "base"), "name: 'base' stands for the bare model"),
        (("--store", "memory://", "--profile", "polar"), "store is 'memory://': nothing would be left"),
        (("--store", "file:///s", "--profile", "polar"), "store: 'file:///s' is not a store URL"),
        (("--store", "sqlite:///no/s", "--profile", "polar"), "there is no folder"),
        (("--out", "no/x"), "no/x cannot be written: No such file or directory"),
        (("--store", "sqlite:///s", "--profile", "polar", "--tenant", "a b"), "tenant: 'a b' is not a name"),
        (("--out", "x", "--tenant", "a"), "--tenant a goes with --store"),
        (("--out", "x", "--journal", "j"), "--journal j is for many profiles: give --by"),
        (("--out", "x", "--head", "polar"), "head is 'polar', it must be own, shared:NAME or shared+own:NAME"),
        (("--out", "x", "--head", "shared:"), "head is 'shared:', it must be own, shared:NAME or shared+own:NAME"),
        (("--out", "x", "--head", "shared:polar"), "shared_head is 'polar', the bank's heads are: none"),
        (("--out", "x", "--head", "shared+own:polar"), "shared_head is 'polar', the bank's heads are: none"),
        (("--out", "x", "--epochs", "0"), "epochs is 0, it must be from 1 to 2147483647"),
        (("--out", "x", "--k", "7"), "k is 7, the bank has N=6 adapters to choose from"),
        (("--out", "x", "--plm", "/nowhere", "--description", "ü" * 513), "has 1026 bytes, at most 1024 are allowed"),
        (("--out", "x", "--labels", "yes"), "line 2: label is 'no', it must be one of yes"),
        (("--out", "x", "--labels", "yes,no,maybe"), "label 'maybe' has no train row"),
        (("--out", "x", "--plm", "/nowhere", "--labels", "yes,no,maybe"), "label 'maybe' has no train row"),
        (("--out", "x", "--soft", "--k", "3"), "k is 3, but soft masks choose none"),
        (("--out", "x", "--bank", "random:Q=1"), "unknown key in 'Q=1'"),
        (("--out", "x", "--plm", "/nowhere"), "plm: '/nowhere' cannot be loaded"),
        (("--out", "x", "--data", "/nowhere"), "/nowhere cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_1(
    arguments: tuple[str, ...],
    message: str,
    xpeft: Call,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = xpeft(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert not (tmp_path / "x").exists()
    assert server.profiles == {}


def test_a_file_is_never_replaced_without_force(xpeft: Call, tmp_path: Path) -> None:
    out = tmp_path / "p"
    out.write_bytes(b"precious")
    result = xpeft("--out", str(out), "--epochs", "1")
    assert "is there already" in result.stderr
    assert out.read_bytes() == b"precious"
    assert xpeft("--out", str(out), "--epochs", "1", "--force").exit_code == 0


def test_a_server_that_refuses_is_found_out_before_anything_is_tuned(
    xpeft: Call, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_one, "tune_profile", lambda *_: pytest.fail("tuned although nothing can be uploaded"))
    arguments = ("--url", "http://host", "--profile", "polar")
    fingerprint, server.fingerprint = server.fingerprint, "sha256:other"
    said = f"bank is {fingerprint}, the server has sha256:other: give its --plm and --bank"
    assert xpeft(*arguments).stderr == f"xpeft: {said}\n"
    server.role = (403, "forbidden")
    assert xpeft(*arguments).stderr == "xpeft: 403 (forbidden)\n"
    server.refusal["bank"] = "401 Unauthorized (invalid_key): no such key"
    result = xpeft(*arguments)
    assert (result.exit_code, result.stderr) == (1, "xpeft: 401 Unauthorized (invalid_key): no such key\n")


def test_every_setting_has_an_option_that_the_help_explains() -> None:
    shown = " ".join(runner.invoke(tune.app, ["--help"], env={"COLUMNS": "400"}).stdout.split())
    by_hand = {"kind": "--soft ", "shared_head": "--head ", "own_head": "--head "}
    for setting in fields(TuningSettings):
        if setting.name not in by_hand:
            assert setting.metadata["help"][1:] in shown
        assert by_hand.get(setting.name, f"--{setting.name.replace('_', '-')} ") in shown
    assert "--shared-head" not in shown
    assert "--own-head" not in shown


def test_the_help_has_an_example_of_one_profile_and_one_of_many() -> None:
    shown = runner.invoke(tune.app, ["--help"], env={"COLUMNS": "120"}).stdout
    examples = [line.strip() for line in shown.splitlines() if line.strip().startswith("Example: xpeft tune ")]
    assert len(examples) == 2
    assert ["--by user" in example for example in examples] == [False, True]
    assert max(map(len, shown.splitlines())) <= 120
