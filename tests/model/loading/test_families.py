"""Every family against its original model: one text at a time, in float64, with hooks for adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xpeft_server.model.batches.packing import pack
from xpeft_server.model.errors import UnsupportedModel
from xpeft_server.model.loading.families import FAMILIES, family_of, first_position, position_limit
from xpeft_server.model.plm import Plm, load_plm

TOLERANCE = 2e-4
KINDS: list[dict[str, Any]] = [
    {},
    {"activation": "gelu", "biases": True},
    {"layer_norm": False, "biases": True, "pooling": "cls"},
    {"activation": "gelu", "layer_norm": False, "pooling": "mean"},
]


def bare(plm: Plm, texts: list[Any]) -> list[torch.Tensor]:
    with torch.inference_mode():
        hidden = plm.forward(pack(texts, None, first_position=plm.first_position))
    return list(hidden[: sum(map(len, texts))].split([len(text) for text in texts]))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_of_32_profiles_is_what_each_would_get_from_the_original_model(lab: Any, family: str) -> None:
    plm = lab.plm(family)
    bank = lab.bank(plm, **KINDS[list(FAMILIES).index(family) % len(KINDS)])
    crowd, original = lab.crowd(plm, bank, 32), lab.one_at_a_time(plm.name, bank)
    rng = np.random.default_rng(3)
    lengths = [1, 2, lab.limit, *rng.integers(1, 50, 29)]
    texts = [lab.text(rng, int(length), types=plm.facts.model_type in ("bert", "electra")) for length in lengths]
    served = crowd.classifier.logits([crowd.input(i, text) for i, text in enumerate(texts)])
    for text, profile, logits in zip(texts, crowd.profiles, served, strict=True):
        expected = original.logits(text, profile)
        found = torch.from_numpy(logits).double()
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(found.softmax(0), expected.softmax(0), rtol=0, atol=TOLERANCE)
    stranger = original.logits(texts[5], crowd.profiles[12])
    assert (torch.from_numpy(served[5]) - stranger).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_without_adapters_a_packed_row_is_what_the_original_model_says_of_each_text(lab: Any, family: str) -> None:
    plm = lab.plm(family)
    original = lab.one_at_a_time(plm.name, lab.bank(plm))
    rng = np.random.default_rng(5)
    texts = [lab.text(rng, length) for length in (9, 1, 40, 40, lab.limit, 3)]
    for text, found in zip(texts, bare(plm, texts), strict=True):
        torch.testing.assert_close(found.double(), original.hidden(text), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("layer_norm", [True, False])
@pytest.mark.parametrize("biases", [True, False])
def test_every_kind_of_bank_is_served_as_it_says(
    lab: Any, pooling: str, activation: str, layer_norm: bool, biases: bool
) -> None:
    plm = lab.plm("bert")
    bank = lab.bank(plm, pooling=pooling, activation=activation, layer_norm=layer_norm, biases=biases)
    crowd, original = lab.crowd(plm, bank, 4), lab.one_at_a_time(plm.name, bank)
    texts = [lab.text(np.random.default_rng(9), length) for length in (12, 5, 30, 18)]
    served = crowd.classifier.logits([crowd.input(i, text) for i, text in enumerate(texts)])
    for text, profile, logits in zip(texts, crowd.profiles, served, strict=True):
        expected = original.logits(text, profile)
        torch.testing.assert_close(torch.from_numpy(logits).double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"num_key_value_heads": 4}),
        ("mistral", {"sliding_window": None}),
        ("mistral", {"sliding_window": 1}),
        ("qwen2", {"use_sliding_window": False}),
        ("modernbert", {"local_attention": 2}),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
        ("gpt2", {"scale_attn_weights": False}),
        ("roberta", {"pad_token_id": 0, "max_position_embeddings": 81}),
        ("electra", {"embedding_size": 64}),
        ("bert", {"hidden_act": "relu"}),
        ("distilbert", {"sinusoidal_pos_embds": True}),
    ],
    ids=str,
)
def test_what_a_configuration_changes_is_changed_in_the_packed_row_too(
    lab: Any, tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    plm = load_plm(str(lab.saved(family, tmp_path / family, **changes)))
    original = lab.one_at_a_time(plm.name, lab.bank(plm))
    rng = np.random.default_rng(11)
    texts = [lab.text(rng, length) for length in (17, 1, 50, 50)]
    for text, found in zip(texts, bare(plm, texts), strict=True):
        torch.testing.assert_close(found.double(), original.hidden(text), rtol=0, atol=TOLERANCE)


def test_a_roberta_whose_tokenizer_marks_the_second_text_has_no_segments_all_the_same(lab: Any, tmp_path: Path) -> None:
    plm = load_plm(str(lab.saved("roberta", tmp_path / "roberta", lab.tokenizer())))
    text = plm.tokenizer.encode([("w1 w2", "w3 w4 w5")])[0]
    original = lab.one_at_a_time(plm.name, lab.bank(plm))
    torch.testing.assert_close(bare(plm, [text])[0].double(), original.hidden(text), rtol=0, atol=TOLERANCE)


def test_a_robertas_padding_that_stands_in_a_text_is_not_counted(lab: Any) -> None:
    plm = lab.plm("roberta")
    text = plm.tokenizer.encode([("w1 <pad> w2 w3 <pad> <pad> w4", None)])[0]
    assert list(text.ids).count(plm.model.config.pad_token_id) == 3
    original = lab.one_at_a_time(plm.name, lab.bank(plm))
    torch.testing.assert_close(bare(plm, [text])[0].double(), original.hidden(text), rtol=0, atol=TOLERANCE)


def test_a_family_that_is_not_supported_is_named_beside_those_that_are() -> None:
    with pytest.raises(UnsupportedModel, match=r"model type 't5' is not supported \(supported: bert, roberta, .*gemma"):
        family_of("t5")


def test_roberta_counts_positions_from_behind_its_padding_index(lab: Any) -> None:
    config = lab.plm("roberta").model.config
    assert (first_position(config), position_limit(config)) == (2, 80)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "roberta"])
def test_the_others_count_from_zero(lab: Any, family: str) -> None:
    config = lab.plm(family).model.config
    assert (first_position(config), position_limit(config)) == (0, 80)
