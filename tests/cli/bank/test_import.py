from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from xpeft_server.cli.bank.commands import app
from xpeft_server.model.banks.file import read_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.plm import open_plm_facts

runner = CliRunner(env={"XPEFT_PLM": None})
Call = Callable[..., Result]


def save_bottleneck(folder: Path, *, blocks: tuple[int, ...] = (0, 1), **config: Any) -> Path:
    """What the adapters library saves of an adapter "task" on the tiny BERT."""
    folder.mkdir()
    fitting = {"mh_adapter": False, "output_adapter": True, "non_linearity": "relu", "original_ln_before": False}
    settings = {
        "config": {**fitting, **config},
        "model_type": "bert",
        "hidden_size": 32,
        "name": "task",
        "version": "1",
    }
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    places = [f"bert.encoder.layer.{block}.output.adapters.task" for block in blocks]
    shapes = {"adapter_down.0.weight": (4, 32), "adapter_up.weight": (32, 4)}
    tensors = {f"{place}.{part}": torch.ones(shape) for place in places for part, shape in shapes.items()}
    torch.save(tensors, folder / "pytorch_adapter.bin")
    return folder


def save_lora(folder: Path) -> Path:
    """What PEFT saves of a LoRA on the last matrix of block 1's feed-forward."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 2}))
    random = torch.Generator().manual_seed(3)
    place = "base_model.model.bert.encoder.layer.1.output.dense"
    tensors = {
        f"{place}.lora_A.weight": torch.randn(2, 64, generator=random),
        f"{place}.lora_B.weight": torch.randn(32, 2, generator=random),
        "base_model.model.classifier.weight": torch.ones(2, 32),
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    path = tmp_path / "texts.txt"
    path.write_text("".join(" ".join(f"w{word}" for word in rng.integers(0, 100, 20)) + "\n" for _ in range(60)))
    return path


@pytest.fixture
def bank_import(tiny_bert: Path, tmp_path: Path) -> Call:
    def call(*arguments: str | Path) -> Result:
        given = ["import", "--plm", str(tiny_bert), "--out", str(tmp_path / "bank.safetensors")]
        return runner.invoke(app, [*given, *map(str, arguments)])

    return call


def test_folders_and_files_become_a_bank_with_a_row_for_each(
    bank_import: Call, tiny_bert: Path, tmp_path: Path, texts: Path
) -> None:
    bottleneck, lora = save_bottleneck(tmp_path / "sst2", blocks=(1,), leave_out=[0]), save_lora(tmp_path / "mnli")
    file = lora / "adapter_model.safetensors"
    result = bank_import(bottleneck, file, "--fit-texts", texts, "--min-fit", "0.01")
    assert result.exit_code == 0, result.output
    bank = open_bank(str(tmp_path / "bank.safetensors"), open_plm_facts(str(tiny_bert)))
    assert (bank.adapters, bank.width, bank.activation, bank.layer_norm) == (2, 4, "relu", False)
    assert f"wrote {tmp_path / 'bank.safetensors'}" in result.stdout
    assert bank.fingerprint in result.stdout
    sources = json.loads(bank.provenance)["imported"]
    assert [(source["kind"], source["name"]) for source in sources] == [("adapters", "sst2"), ("peft", "mnli")]
    rows = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert rows[-3] == "adapter source kind width blocks explained variance by block skipped"
    assert rows[-2] == "0 sst2 adapters 4 1 of 2 exact nothing"
    assert rows[-1] == f"1 mnli peft 4 1 of 2 - {sources[1]['fit']:.3f} prediction head"
    assert str(tmp_path) not in bank.provenance


def test_a_file_is_never_replaced_without_force(bank_import: Call, tmp_path: Path) -> None:
    out, folder = tmp_path / "bank.safetensors", save_bottleneck(tmp_path / "sst2")
    out.write_bytes(b"precious")
    refused = bank_import(folder)
    assert refused.exit_code == 1
    assert refused.stderr == f"xpeft: {out} is there already: give another --out, or --force to replace it\n"
    assert out.read_bytes() == b"precious"
    assert bank_import(folder, "--force").exit_code == 0
    assert read_bank_file(out).adapters == 1


def test_what_cannot_be_imported_is_one_line_and_no_file(bank_import: Call, tmp_path: Path) -> None:
    folder = save_bottleneck(tmp_path / "sst2", mh_adapter=True)
    result = bank_import(folder)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"xpeft: {folder}: mh_adapter is true ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "bank.safetensors").exists()


def test_a_lora_asks_for_texts_and_refuses_a_fit_below_what_is_asked(
    bank_import: Call, tmp_path: Path, texts: Path
) -> None:
    folder = save_lora(tmp_path / "mnli")
    without = bank_import(folder)
    assert without.exit_code == 1
    assert "is fitted over texts (--fit-texts, a file with a text a line)" in without.stderr
    poor = bank_import(folder, "--fit-texts", texts, "--min-fit", "1")
    assert poor.exit_code == 1
    assert poor.stderr.startswith(f"xpeft: {folder}: block 1: an adapter at the feed-forward's output explains 0.")
    assert poor.stderr.endswith("it must be 1 (--min-fit) at least\n")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder, out = save_bottleneck(tmp_path / "sst2"), tmp_path / "bank.safetensors"
    result = runner.invoke(app, ["import", "--plm", str(tmp_path / "no-model"), "--out", str(out), str(folder)])
    assert result.exit_code == 1
    assert "no-model" in result.stderr


def test_the_help_has_an_example() -> None:
    result = runner.invoke(app, ["import", "--help"])
    assert result.exit_code == 0
    assert "Example: xpeft bank import" in result.stdout
