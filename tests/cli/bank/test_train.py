from __future__ import annotations

import errno
import gzip
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from xpeft_server.cli import out_option
from xpeft_server.cli.bank.commands import app
from xpeft_server.model.banks.file import read_bank_file, write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import open_plm_facts
from xpeft_tuning.bank_training.mixture import MixtureTrainer
from xpeft_tuning.bank_training.settings import BankTrainingSettings

runner = CliRunner()
Call = Callable[..., Result]

_TINY = {"adapters": "4", "width": "4", "lr-bank": "0.01", "std-down": "0.3", "std-up": "0.1"}
_TINY_VARIABLES = {"XPEFT_BANK_TRAIN_LR_HEAD": "0.03"}  # not of every method, so no option


def rows(count: int, *, user: str = "ann", swapped: bool = False, **more: Any) -> list[dict[str, Any]]:
    """Two topics with a label each; every fourth row only measures."""
    labels = ("no", "yes") if swapped else ("yes", "no")
    return [
        {
            "text": " ".join(f"w{10 * (row % 2) + (row * step) % 9}" for step in (1, 3, 5, 7)),
            "label": labels[row % 2],
            "user": user,
            "split": "test" if row % 8 in (3, 6) else "train",
            **more,
        }
        for row in range(count)
    ]


def write(path: Path, data: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in data).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two users of opposite tastes, and a guest who brings a label of his own but no train rows."""
    guest = [{"text": "w5", "label": "no", "user": "guest", "split": "dev"}]
    return write(tmp_path / "data.jsonl", [*rows(48), *rows(48, user="bob", swapped=True), *guest])


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "made"
    folder.mkdir()
    return folder / "bank.safetensors"


@pytest.fixture
def train(tiny_bert: Path, data: Path, out: Path) -> Call:
    def call(*arguments: str | Path, data: Path = data, out: Path = out, **variables: str) -> Result:
        given = ["train", "--plm", str(tiny_bert), "--device", "cpu", "--data", str(data), "--out", str(out)]
        tiny = [part for name, value in _TINY.items() for part in (f"--{name}", value)]
        return runner.invoke(
            app, [*given, *tiny, *map(str, arguments)], env={"COLUMNS": "400", **_TINY_VARIABLES, **variables}
        )

    return call


def table(result: Result) -> dict[str, str]:
    lines = (line.rstrip().split("  ", 1) for line in result.stdout.splitlines())
    return {parts[0]: parts[1].strip() for parts in lines if len(parts) == 2}


def test_with_by_a_bank_is_trained_on_users_and_says_what_was_asked(
    train: Call, out: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    result = train("--by", "user", "--epochs", "2", "--k", "2", "--head", "polar", "--biases", "--activation", "gelu")
    assert result.exit_code == 0, result.output
    bank = open_bank(str(out), open_plm_facts(str(tiny_bert)))
    assert (bank.adapters, bank.width, bank.activation, bank.layer_norm) == (4, 4, "gelu", True)
    assert bank.up_bias is not None
    assert bank.heads["polar"].labels == ("yes", "no")
    told = json.loads(bank.provenance)
    assert (told["method"], told["settings"]["k"], told["data"]["users"], told["data"]["rows"]) == (
        *("warm start", 2, 2),
        72,
    )
    assert not any(word in bank.provenance for word in ("ann", str(tmp_path), "w5"))
    shown = table(result)
    assert result.stdout.startswith(f"wrote {out}\n")
    assert (shown["fingerprint"], shown["adapters (N)"], shown["shared heads"]) == (
        *(bank.fingerprint, "4"),
        "polar (yes, no)",
    )
    assert bank.provenance.startswith(shown["provenance"])
    assert shown["rows"] == "72 trained on"
    accuracy, loss = told["held_out"]["accuracy"], told["held_out"]["loss"]
    assert shown["on held-out rows"] == f"accuracy {accuracy:.3f}, loss {loss:.4g} (24 rows)"
    assert result.stdout.endswith("Users that are left out because they have no train row: 1.\n")


def test_rows_of_users_who_teach_nothing_do_not_measure_and_this_is_said(train: Call, tmp_path: Path) -> None:
    learn = [row for row in rows(48) if row["split"] == "train"]
    unseen = [{**row, "split": "test", "user": "bob"} for row in rows(8)]
    result = train("--by", "user", "--epochs", "1", data=write(tmp_path / "unseen.jsonl", [*learn, *unseen]))
    assert result.exit_code == 0, result.output
    assert table(result)["on held-out rows"] == "not measured: no row's split is dev or test, but of users left out"


def test_without_by_a_mixture_is_trained_on_all_rows(train: Call, out: Path, tiny_bert: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "one.jsonl.gz", rows(64))
    result = train("--epochs", "8", "--batch-rows", "8", "--share-up", data=file)
    assert result.exit_code == 0, result.output
    bank = open_bank(str(out), open_plm_facts(str(tiny_bert)))
    told = json.loads(bank.provenance)
    assert (told["method"], told["settings"]["share_up"]) == ("mixture", True)
    assert (told["data"]["rows"], told["held_out"]["rows"]) == (48, 16)
    assert told["held_out"]["accuracy"] > 0.9
    assert table(result)["on held-out rows"].startswith("accuracy ")
    assert f"fields of {file} that nobody reads: 'user'\n" in result.stderr


def test_branches_go_on_from_an_adapter_that_all_users_share(
    train: Call, out: Path, data: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    one = tmp_path / "one.safetensors"
    assert train("--by", "user", "--adapters", "1", out=one).exit_code == 0
    start = read_bank_file(one)
    branches = ("--by", "user", "--method", "branches", "--start", one)
    result = train(*branches, "--adapters", "2", "--epochs", "1")
    assert result.exit_code == 0, result.output
    bank = open_bank(str(out), open_plm_facts(str(tiny_bert)))
    told = json.loads(bank.provenance)
    assert (told["method"], told["start"], told["data"]["users"]) == ("branches", start.fingerprint, 2)
    assert (bank.adapters, bank.heads["shared"].labels) == (2, ("yes", "no"))
    assert table(result)["on held-out rows"].endswith("(24 rows)")
    for arguments, message in (
        (("--adapters", "3"), "adapters is 3, and 2 users have train rows"),
        (
            ("--adapters", "2", "--lr-head", "0.1"),
            "--lr-head is of the methods users and mixture, and this is branches",
        ),
        (("--adapters", "2", "--head", "polar"), "the bank to start from has no head 'polar'"),
        (("--adapters", "2", "--width", "8"), "width is 8, and the bank to start from has 4"),
    ):
        refused = train(*branches, *arguments, "--force")
        assert (refused.exit_code, message in refused.stderr) == (1, True), refused.output


def test_numbers_make_a_regression_and_rows_without_a_split_measure_nothing(train: Call, tmp_path: Path) -> None:
    numbers = [{**row, "label": {"yes": 1.5, "no": -0.5}[row["label"]]} for row in rows(32)]
    result = train("--epochs", "1", "--labels", "stars", data=write(tmp_path / "n.jsonl", numbers))
    assert result.exit_code == 0, result.output
    assert "correlation" in table(result)["on held-out rows"]
    assert "mean squared error" in table(result)["on held-out rows"]
    assert table(result)["shared heads"] == "shared (stars)"
    for row in numbers:
        del row["split"]
    result = train("--epochs", "1", "--force", data=write(tmp_path / "n.jsonl", numbers))
    assert table(result)["on held-out rows"] == "not measured: no row's split is dev or test"
    assert table(result)["rows"] == "32 trained on"
    assert table(result)["shared heads"] == "shared (value)"


def test_users_get_the_labels_of_all_in_one_order_or_in_the_one_that_is_asked_for(train: Call, tmp_path: Path) -> None:
    one, other = rows(16), rows(16, user="bob")
    for row in other:
        row["label"] = {"yes": "maybe", "no": "no"}[row["label"]]
    file = write(tmp_path / "ragged.jsonl", [*one, *other])
    assert table(train("--by", "user", "--epochs", "1", data=file))["shared heads"] == "shared (yes, no, maybe)"
    asked = train("--by", "user", "--epochs", "1", "--labels", "maybe,no,yes", "--force", data=file)
    assert table(asked)["shared heads"] == "shared (maybe, no, yes)"


def test_bfloat16_is_the_models_number_format_and_not_the_banks(train: Call, out: Path, tiny_bert: Path) -> None:
    result = train("--by", "user", "--epochs", "1", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.output
    assert str(open_bank(str(out), open_plm_facts(str(tiny_bert))).dtype) == "torch.float32"


def test_variables_stand_for_options_also_those_of_the_other_method(train: Call, out: Path) -> None:
    result = train(XPEFT_BANK_TRAIN_EPOCHS="1", XPEFT_BANK_TRAIN_BATCH_ROWS="5", XPEFT_BANK_TRAIN_BATCH_USERS="3")
    assert result.exit_code == 0, result.output
    settings = json.loads(read_bank_file(out).provenance)["settings"]
    assert (settings["epochs"], settings["batch_rows"], settings["batch_users"]) == (1, 5, 3)


def test_a_misspelt_variable_is_refused_with_the_nearest_one(train: Call, out: Path) -> None:
    result = train(XPEFT_BANK_TRAIN_EPOCH="1", XPEFT_TUNE_EPOCH="1")
    said = "xpeft: XPEFT_BANK_TRAIN_EPOCH is not a setting; the nearest is XPEFT_BANK_TRAIN_EPOCHS\n"
    assert (result.exit_code, result.stderr, out.exists()) == (1, said, False)


def test_the_seed_decides_the_file(train: Call, out: Path) -> None:
    files = []
    for seed in ("4", "4", "5"):
        assert train("--by", "user", "--epochs", "1", "--seed", seed, "--force").exit_code == 0
        files.append(out.read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "users"), "--method users is without --by: give --by FIELD, the field that says whose row it is"),
        (
            ("--method", "mixture", "--by", "user"),
            "--by user and --method mixture contradict each other: a mixture knows no users",
        ),
        (("--batch-users", "3"), "--batch-users is of the methods users and branches, and this is mixture"),
        (("--method", "branches"), "--method branches is without --by: give --by FIELD"),
        (("--by", "user", "--method", "branches"), "--method branches is without --start: give a bank of one adapter"),
        (("--gumbel", "1"), "--gumbel is of the method users, and this is mixture"),
        (("--by", "user", "--no-share-up"), "--share-up is of the method mixture, and this is users"),
        (("--epochs", "0"), "epochs is 0, it must be from 1 to 2147483647"),
        (("--by", "user", "--k", "5"), "k is 5, it must be from 1 to 4"),
        (("--by", "nobody"), "line 1 has no nobody"),
        (("--labels", "yes"), "line 2: label is 'no', it must be one of yes"),
        (("--labels", "yes,no,maybe"), "label 'maybe' has no train row to learn it from"),
        (("--head", "a/b"), "shared head 'a/b': a name is a letter or digit"),
        (("--lr-bank", "1e38", "--batch-rows", "4"), ": try a lower one (--lr-bank)"),
        (("--by", "user", "--lr-bank", "1e38", "--batch-users", "1"), ": try a lower one (--lr-bank)"),
        (("--plm", "/nowhere"), "plm: '/nowhere' cannot be loaded"),
        (("--data", "/nowhere"), "/nowhere cannot be read: No such file or directory"),
        (("--device", "cuda"), "device = 'cuda' cannot be used: torch sees no CUDA device"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_no_file(
    train: Call, out: Path, arguments: tuple[str, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    result = train(*arguments)
    assert result.exit_code == 1
    said = result.stderr.splitlines()[-1]
    assert said.startswith("xpeft: ")
    assert message in said
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([{"prompt": "w1", "completion": "w2", "user": "ann"}], "the rows have completions: a bank is trained on"),
        ([{**row, "split": "test"} for row in rows(8)], "there are no train rows"),
        ([{**row, "label": "only"} for row in rows(8)], "the train rows have 1 label ('only')"),
    ],
)
@pytest.mark.parametrize("by", [(), ("--by", "user")])
def test_rows_that_teach_nothing_are_refused(
    train: Call, out: Path, tmp_path: Path, data: list[dict[str, Any]], message: str, by: tuple[str, ...]
) -> None:
    result = train(*by, data=write(tmp_path / "bad.jsonl", data))
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]
    assert list(out.parent.iterdir()) == []


def _no_training(*_: object) -> None:
    pytest.fail("trained although nothing can be written")


def test_where_nothing_can_be_written_is_found_out_before_anything_is_trained(
    train: Call, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MixtureTrainer, "train", _no_training)
    there = tmp_path / "nowhere" / "bank"
    assert train(out=there).stderr == f"xpeft: {there} cannot be written: No such file or directory\n"
    assert train(out=tmp_path).stderr == f"xpeft: {tmp_path} cannot be written: it is a folder\n"
    below = tmp_path / "data.jsonl" / "bank"
    assert train(out=below).stderr == f"xpeft: {below} cannot be written: Not a directory\n"


def test_a_bank_for_which_there_is_no_room_is_not_trained(
    train: Call, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MixtureTrainer, "train", _no_training)
    needed: list[int] = []

    def check(path: Path, size: int) -> None:
        needed.append(size)
        if len(needed) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(out_option, "check_writable", check)
    refused = train("--biases").stderr
    assert refused.splitlines()[-1] == f"xpeft: {out} cannot be written: No space left on device"
    monkeypatch.undo()
    assert train("--biases", "--epochs", "1").exit_code == 0
    bank = read_bank_file(out)
    assert needed[1] == sum(each.nbytes for each in bank.adapter_tensors().values())


def test_a_bank_that_cannot_be_written_in_the_end_is_in_a_file_that_is_named(
    train: Call, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = MixtureTrainer.train

    def trained(self: MixtureTrainer, *arguments: Any) -> Any:
        out.write_bytes(b"somebody else's")
        return learn(self, *arguments)

    monkeypatch.setattr(MixtureTrainer, "train", trained)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = train("--epochs", "1")
    assert result.exit_code == 1
    assert out.read_bytes() == b"somebody else's"
    (kept,) = tmp_path.glob("xpeft-*/bank.safetensors")
    said = result.stderr.splitlines()[-1]
    assert said == f"xpeft: {out} cannot be written: it is there already; what was made is in {kept}"
    assert read_bank_file(kept).adapters == 4


def test_a_file_is_never_replaced_without_force(train: Call, out: Path) -> None:
    out.write_bytes(b"precious")
    refused = train("--epochs", "1")
    assert refused.exit_code == 1
    assert refused.stderr == f"xpeft: {out} is there already: give another --out, or --force to replace it\n"
    assert out.read_bytes() == b"precious"
    assert train("--epochs", "1", "--force").exit_code == 0
    assert b"xpeft-bank-1" in out.read_bytes()


def test_a_training_that_is_interrupted_leaves_what_was_there(
    train: Call, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MixtureTrainer, "_score", interrupted)
    out.write_bytes(b"precious")
    assert train("--epochs", "1", "--force").exit_code != 0
    assert [file.name for file in out.parent.iterdir()] == [out.name]
    assert out.read_bytes() == b"precious"


def test_texts_beyond_the_models_length_are_told(train: Call, tmp_path: Path) -> None:
    long = [*rows(8), {**rows(1)[0], "text": "w1 " * 100}]
    result = train("--epochs", "1", data=write(tmp_path / "long.jsonl", long))
    assert result.stdout.endswith("1 texts were longer than the model takes; what was beyond its limit was not read.\n")


def test_every_setting_has_an_option_that_the_help_explains() -> None:
    result = runner.invoke(app, ["train", "--help"], env={"COLUMNS": "400"})
    shown = " ".join(result.stdout.split())
    for setting in fields(BankTrainingSettings):
        assert f"--{setting.name.replace('_', '-')} " in shown
        assert setting.metadata["help"][1:] in shown
    assert "--resume" not in shown
    assert shown.count("Example: xpeft bank train") == 3


def test_training_starts_from_another_bank(train: Call, out: Path, tmp_path: Path) -> None:
    first = tmp_path / "one.safetensors"
    assert train("--by", "user", "--adapters", "1", out=first).exit_code == 0
    still = ("--lr-bank", "0", "--lr-head", "0", "--weight-decay", "0", "--start-apart", "0")
    result = train("--by", "user", "--start", first, *still)
    assert result.exit_code == 0, result.output
    one, many = read_bank_file(first), read_bank_file(out)
    assert (one.adapters, many.adapters) == (1, 4)
    for number in range(4):
        assert (many.down[:, number] == one.down[:, 0]).all()
    assert (many.heads["shared"].weight == one.heads["shared"].weight).all()
    assert json.loads(many.provenance)["start"] == one.fingerprint


def test_rows_that_bring_the_labels_in_another_order_go_on_with_the_head_to_start_from(
    train: Call, out: Path, tmp_path: Path
) -> None:
    first = tmp_path / "one.safetensors"
    assert train("--by", "user", "--adapters", "1", out=first).exit_code == 0
    later = write(tmp_path / "later.jsonl", rows(48, swapped=True))
    still = ("--lr-bank", "0", "--lr-head", "0", "--weight-decay", "0")
    result = train("--by", "user", "--start", first, *still, data=later)
    assert result.exit_code == 0, result.output
    one, many = (read_bank_file(file).heads["shared"] for file in (first, out))
    assert many.labels == one.labels == ("yes", "no")
    assert (many.weight == one.weight).all()
    other = write(tmp_path / "other.jsonl", [*rows(48, swapped=True), *rows(8, label="maybe")])
    refused = train("--by", "user", "--start", first, "--force", data=other)
    assert refused.exit_code == 1
    assert "has the labels ['yes', 'no'], and the rows have ['no', 'yes', 'maybe']" in refused.output


def test_a_head_that_the_bank_to_start_from_has_not_is_told_to_start_from_zero(
    train: Call, out: Path, tmp_path: Path
) -> None:
    first = tmp_path / "one.safetensors"
    assert train("--by", "user", "--adapters", "1", out=first).exit_code == 0
    still = ("--lr-bank", "0", "--lr-head", "0", "--weight-decay", "0")
    result = train("--by", "user", "--start", first, "--head", "other", *still)
    assert result.exit_code == 0, result.output
    assert "the bank to start from has no head 'other' (it has: shared): it starts from zero\n" in result.stderr
    assert not read_bank_file(out).heads["other"].weight.any()
    refused = train("--by", "user", "--method", "branches", "--start", first, "--head", "other", "--force")
    assert refused.exit_code == 1
    assert "from zero" not in refused.stderr


def test_a_bank_that_names_no_pooling_has_the_models(train: Call, out: Path, tmp_path: Path) -> None:
    named, unnamed = tmp_path / "named.safetensors", tmp_path / "unnamed.safetensors"
    assert train("--by", "user", "--pooling", "cls", out=named).exit_code == 0
    write_bank_file(replace(read_bank_file(named), pooling="cls", pooling_by_default=True), unnamed)
    refused = train("--by", "user", "--pooling", "cls", "--start", unnamed)
    assert refused.exit_code == 1
    assert "pooling is cls, and the bank to start from has mean" in refused.output
    assert train("--by", "user", "--start", unnamed).exit_code == 0
    assert read_bank_file(out).pooling == "mean"


def test_a_bank_to_start_from_that_is_missing_or_too_wide_is_said_before_training(
    train: Call, out: Path, tmp_path: Path
) -> None:
    missing = train("--start", tmp_path / "none.safetensors")
    assert missing.exit_code == 1
    assert "none.safetensors: no such file" in missing.output
    wide = tmp_path / "wide.safetensors"
    assert train("--width", "8", out=wide).exit_code == 0
    refused = train("--start", wide)
    assert refused.exit_code == 1
    assert "width is 4, and the bank to start from has 8" in refused.output
    assert not out.exists()
