from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from xpeft_profiles import Profile, encode_record
from xpeft_server.cli.bank.commands import app
from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.file import read_bank_file, write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.errors import ModelUnusable
from xpeft_server.model.plm_facts import PlmFacts
from xpeft_server.model.slots import SlotBuffers

FACTS = PlmFacts("sha256:" + "ab" * 32, "bert", 2, 8, 100, decoder=False)
SPEC = "random:N=3,R=4,seed=5"

runner = CliRunner(env={"XPEFT_PLM": None, "XPEFT_BANK": None})


def open_plm_facts(name: str) -> PlmFacts:
    if name != "tiny":
        raise ModelUnusable(f"plm: {name!r} cannot be loaded")
    return FACTS


@pytest.fixture(autouse=True)
def _tiny_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xpeft_server.model.plm", SimpleNamespace(open_plm_facts=open_plm_facts))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.safetensors"


def test_create_writes_the_bank_that_the_spec_describes(path: Path) -> None:
    result = runner.invoke(app, ["create", "--plm", "tiny", "--bank", SPEC, "--out", str(path)])
    assert result.exit_code == 0, result.output
    bank = read_bank_file(path)
    assert bank.fingerprint == open_bank(SPEC, FACTS).fingerprint
    assert f"wrote {path}" in result.stdout
    assert bank.fingerprint in result.stdout


def test_create_reads_its_options_from_the_environment(path: Path) -> None:
    result = runner.invoke(app, ["create", "--out", str(path)], env={"XPEFT_PLM": "tiny", "XPEFT_BANK": SPEC})
    assert result.exit_code == 0, result.output
    assert read_bank_file(path).adapters == 3


def test_create_never_replaces_a_file_without_force(path: Path) -> None:
    path.write_bytes(b"precious")
    arguments = ["create", "--plm", "tiny", "--bank", SPEC, "--out", str(path)]
    refused = runner.invoke(app, arguments)
    assert refused.exit_code == 1
    assert refused.stderr == f"xpeft: {path} is there already: give another --out, or --force to replace it\n"
    assert path.read_bytes() == b"precious"
    assert runner.invoke(app, [*arguments, "--force"]).exit_code == 0
    assert read_bank_file(path).adapters == 3


@pytest.mark.parametrize(
    ("plm", "spec", "message"),
    [
        ("tiny", "random:N=0", "N is '0', it must be a whole number from 1 to 1024"),
        ("tiny", "bank.safetensors", "does not start with 'random:'"),
        ("huge", SPEC, "plm: 'huge' cannot be loaded"),
    ],
)
def test_create_says_what_it_cannot_use_in_one_line(plm: str, spec: str, message: str, path: Path) -> None:
    result = runner.invoke(app, ["create", "--plm", plm, "--bank", spec, "--out", str(path)])
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not path.exists()


def _no_model(_: str) -> None:
    pytest.fail("looked at the model although nothing can be written")


@pytest.mark.parametrize("command", [["create", "--bank", SPEC], ["import", "adapter"]])
@pytest.mark.parametrize(
    ("out", "reason"), [("nowhere/bank", "No such file or directory"), ("folder", "it is a folder")]
)
def test_where_nothing_can_be_written_is_found_out_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], out: str, reason: str
) -> None:
    no_model = SimpleNamespace(open_plm_facts=_no_model, load_plm=_no_model)
    monkeypatch.setitem(sys.modules, "xpeft_server.model.plm", no_model)
    (tmp_path / "folder").mkdir()
    result = runner.invoke(app, [*command, "--plm", "tiny", "--out", str(tmp_path / out), "--force"])
    assert result.exit_code == 1
    assert result.stderr == f"xpeft: {tmp_path / out} cannot be written: {reason}\n"


def bank_with_heads() -> Bank:
    return Bank(
        down=torch.ones(2, 3, 8, 4, dtype=torch.bfloat16),
        up=torch.ones(2, 3, 4, 8, dtype=torch.bfloat16),
        up_bias=torch.ones(2, 3, 8, dtype=torch.bfloat16),
        heads={"mood": SharedHead(torch.ones(2, 8), torch.ones(2), ("[bold]good", "b\x1b[31mad"))},
        plm=FACTS.fingerprint,
        activation="gelu",
        pooling="cls",
        provenance="trained on tests",
    )


def test_info_shows_what_is_in_a_bank(path: Path) -> None:
    bank = bank_with_heads()
    write_bank_file(bank, path)
    result = runner.invoke(app, ["info", str(path)])
    assert result.exit_code == 0, result.output
    shown = dict(line.rstrip().split("  ", 1) for line in result.stdout.splitlines())
    assert {name: value.strip() for name, value in shown.items()} == {
        "fingerprint": bank.fingerprint,
        "model": FACTS.fingerprint,
        "blocks (L)": "2",
        "adapters (N)": "3",
        "hidden (H)": "8",
        "width (R)": "4",
        "dtype": "bfloat16",
        "bytes": "936",
        "biases": "up_bias",
        "activation": "gelu",
        "layer norm": "yes",
        "pooling": "cls",
        "shared heads": "mood ([bold]good, b [31mad)",
        "provenance": "trained on tests",
        "a profile's masks": "4 bytes hard, 24 soft",
        "its LayerNorm affine": "32 bytes",
        "its slot": "640 bytes in float32, 320 bytes in bfloat16",
        "slots in 1 GiB": "1,677,721 in float32, 3,355,443 in bfloat16",
    }


def test_info_as_json_is_one_object(path: Path) -> None:
    bank = bank_with_heads()
    write_bank_file(bank, path)
    result = runner.invoke(app, ["info", str(path), "--json"])
    assert json.loads(result.stdout) == {
        "fingerprint": bank.fingerprint,
        "plm": FACTS.fingerprint,
        "blocks": 2,
        "adapters": 3,
        "hidden": 8,
        "width": 4,
        "dtype": "bfloat16",
        "bytes": 936,
        "activation": "gelu",
        "layer_norm": True,
        "pooling": "cls",
        "biases": True,
        "heads": {"mood": ["[bold]good", "b\x1b[31mad"]},
        "provenance": "trained on tests",
        "slot_bytes": {"float32": 640, "bfloat16": 320},
        "record_bytes": {"hard_masks": 4, "soft_masks": 24, "layer_norm": 32},
    }


def test_a_bank_says_what_its_slots_and_records_really_take(path: Path) -> None:
    bank = bank_with_heads()
    write_bank_file(bank, path)
    told = json.loads(runner.invoke(app, ["info", str(path), "--json"]).stdout)
    ones, halves = np.ones((2, 3), np.uint8), np.full((2, 3), 1 / 3, np.float16)
    affine = np.ones((2, 4), np.float16)
    least = encode_record(Profile(bank=bank.fingerprint, mask_a=ones, mask_b=ones))
    bare = len(least) - told["record_bytes"]["hard_masks"]
    for words, arrays in (
        (["soft_masks"], {"mask_a": halves, "mask_b": halves}),
        (["hard_masks", "layer_norm"], {"mask_a": ones, "mask_b": ones, "ln_weight": affine}),
    ):
        record = encode_record(Profile(bank=bank.fingerprint, **arrays))
        assert len(record) - bare == sum(told["record_bytes"][word] for word in words)
    for name, size in told["slot_bytes"].items():
        buffers = SlotBuffers(bank, slots=1, head_rows=1, device=torch.device("cpu"), dtype=getattr(torch, name))
        assert buffers.adapters[:, 0].nbytes == size


def test_info_of_what_is_no_bank_is_one_line_and_exit_code_1(path: Path) -> None:
    path.write_bytes(b"\x1b]0;owned\x07 not a bank")
    result = runner.invoke(app, ["info", str(path)])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"xpeft: {path}: not a safetensors file")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["create", "info"])
def test_the_help_has_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: xpeft bank {command}" in result.stdout
