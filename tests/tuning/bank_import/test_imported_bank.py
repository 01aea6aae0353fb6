from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from xpeft_server.model.banks.file import read_bank_file, write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_tuning.bank_import.errors import CheckpointsDiffer
from xpeft_tuning.bank_import.fit_texts import FitTexts
from xpeft_tuning.bank_import.imported_bank import import_bank


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_sources_of_both_libraries_become_one_bank_in_their_order(
    make_source: Any, save: Any, fit_texts: FitTexts, tmp_path: Path
) -> None:
    source = make_source()
    lora, other = save.lora("one", source=source), save.lora("three", source=source, blocks=(1,))
    bottleneck = save.bottleneck("two")
    bank, adapters = import_bank([lora, bottleneck, other], source.plm, fit_texts=fit_texts, min_fit=0.0)
    assert (bank.blocks, bank.adapters, bank.hidden, bank.width) == (3, 3, 32, 8)
    assert json.loads(bank.provenance) == {
        "imported": [
            {
                "kind": "peft",
                "name": "one",
                "sha256": sha256(lora / "adapter_model.safetensors"),
                "fit": round(sum(adapters[0].fits.values()) / 3, 4),
            },
            {"kind": "adapters", "name": "two", "sha256": sha256(bottleneck / "pytorch_adapter.bin")},
            {
                "kind": "peft",
                "name": "three",
                "sha256": sha256(other / "adapter_model.safetensors"),
                "fit": round(adapters[2].fits[1], 4),
            },
        ]
    }
    for number, adapter in enumerate(adapters):
        for block, part in adapter.blocks.items():
            assert bank.down[block, number].equal(part.down)
            assert bank.up[block, number].equal(part.up)
    write_bank_file(bank, tmp_path / "bank.safetensors")
    assert open_bank(str(tmp_path / "bank.safetensors"), source.plm.facts).fingerprint == bank.fingerprint
    assert read_bank_file(tmp_path / "bank.safetensors").provenance == bank.provenance


def test_the_same_sources_give_the_same_bank(make_source: Any, save: Any, fit_texts: FitTexts) -> None:
    source = make_source()
    folders = [save.lora(source=source), save.bottleneck()]
    first, second = (import_bank(folders, source.plm, fit_texts=fit_texts, min_fit=0.0).bank for _ in range(2))
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("other", ["relu", "lora"])
def test_sources_of_different_activations_are_refused_by_name(make_source: Any, save: Any, other: str) -> None:
    source = make_source()
    gelu = save.bottleneck("gelu", non_linearity="gelu")
    relu = save.lora(source=source) if other == "lora" else save.bottleneck("relu")
    with pytest.raises(CheckpointsDiffer) as refused:
        import_bank([gelu, relu], source.plm)
    assert str(refused.value).startswith(f"{gelu} has gelu and {relu} has relu ")


def test_a_bank_of_a_decoder_pools_the_last_token(make_source: Any, save: Any) -> None:
    source = make_source("gpt2")
    folder = save.bottleneck(family="gpt2", path="transformer.h.{}.output_adapters.adapters.")
    assert import_bank([folder], source.plm).bank.pooling == "last"
