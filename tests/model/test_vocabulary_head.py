"""A decoder's logits against the whole original model's, one text at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from xpeft_server.model.batches.packing import PackedBatch, pack
from xpeft_server.model.loading.families import FAMILIES
from xpeft_server.model.plm import load_plm
from xpeft_server.model.tokens.tokenizing import TokenizedText
from xpeft_server.model.vocabulary_head import VocabularyHead

DECODERS = [name for name, family in FAMILIES.items() if family.decoder]
LENGTHS = (9, 1, 40, 40, 80, 3)
TOLERANCE = 1e-5


def saved_whole(lab: Any, family: str, path: Path, *, tied: bool) -> Path:
    """The family's small model under the class with the head."""
    base = AutoModel.from_pretrained(lab.saved(family, path, tie_word_embeddings=tied))
    whole = AutoModelForCausalLM.from_config(base.config)
    whole.base_model.load_state_dict(base.state_dict())
    whole.save_pretrained(path)
    return path


def whole_model(path: Path | str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation="eager")
    return model.eval()


def original_logits(model: PreTrainedModel, text: TokenizedText) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.from_numpy(text.ids[None].astype(np.int64))).logits[0]
    return logits


def texts(lab: Any) -> list[TokenizedText]:
    rng = np.random.default_rng(5)
    return [lab.text(rng, length) for length in LENGTHS]


def random_head(*, vocabulary: int = 1000, hidden: int = 64) -> VocabularyHead:
    return VocabularyHead(torch.nn.Parameter(torch.randn(vocabulary, hidden), requires_grad=False))


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_packed_rows_logits_are_those_of_the_whole_original_model(
    lab: Any, tmp_path: Path, family: str, tied: bool
) -> None:
    path = saved_whole(lab, family, tmp_path, tied=tied)
    plm, original = load_plm(str(path)), whole_model(path)
    assert plm.vocabulary_head is not None
    with torch.inference_mode():
        logits = plm.vocabulary_head(plm.forward(pack(texts(lab), None))[: sum(LENGTHS)])
    expected = [original_logits(original, text) for text in texts(lab)]
    for found, each in zip(logits.split(LENGTHS), expected, strict=True):
        torch.testing.assert_close(found, each, rtol=0, atol=TOLERANCE)
    assert (expected[2] - expected[3]).abs().max() > 1e4 * TOLERANCE
    embedding = plm.model.get_input_embeddings().get_parameter("weight")
    assert (plm.vocabulary_head.weight is embedding) is tied
    assert torch.equal(plm.vocabulary_head.weight, embedding) is tied


@pytest.mark.parametrize("family", DECODERS)
def test_a_checkpoint_of_the_model_beneath_has_the_head_that_it_ties_and_no_other(
    lab: Any, tmp_path: Path, family: str
) -> None:
    assert load_plm(str(lab.saved(family, tmp_path / "untied", tie_word_embeddings=False))).vocabulary_head is None
    plm = load_plm(str(lab.saved(family, tmp_path / "tied", tie_word_embeddings=True)))
    assert plm.vocabulary_head is not None
    assert plm.vocabulary_head.weight is plm.model.get_input_embeddings().get_parameter("weight")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in DECODERS])
def test_an_encoder_has_none(lab: Any, family: str) -> None:
    assert lab.plm(family).vocabulary_head is None


def test_gradients_pass_through_the_head_to_the_adapters_and_leave_the_weights_alone(lab: Any, tmp_path: Path) -> None:
    plm = load_plm(str(saved_whole(lab, "llama", tmp_path, tied=False)))
    head = plm.vocabulary_head
    assert head is not None
    shifts = torch.zeros(plm.facts.blocks, plm.facts.hidden, requires_grad=True)
    batch: PackedBatch = pack(texts(lab), None)
    hidden = plm.forward(batch, lambda block, rows, residual, norm: rows + shifts[block])
    hidden.retain_grad()
    rows, targets = batch.ends - 1, torch.arange(batch.sequences)
    loss = torch.nn.functional.cross_entropy(head(hidden[rows]), targets)
    torch.autograd.backward(loss)
    probabilities = (hidden.detach()[rows] @ head.weight.T).softmax(1)
    expected = torch.zeros_like(hidden)
    expected[rows] = (probabilities - torch.eye(len(LENGTHS), plm.facts.vocab_size)) @ head.weight / len(LENGTHS)
    torch.testing.assert_close(hidden.grad, expected)
    assert shifts.grad is not None
    assert (shifts.grad.abs().amax(1) > 1e-3).all()
    frozen = [*plm.model.parameters(), *head.parameters()]
    assert not any(weight.requires_grad or weight.grad is not None for weight in frozen)
    assert not head.training


def test_a_bfloat16_models_logits_are_its_own_in_float32(lab: Any, tmp_path: Path) -> None:
    path = saved_whole(lab, "qwen3", tmp_path, tied=False)
    head = load_plm(str(path), dtype=torch.bfloat16).vocabulary_head
    assert head is not None
    assert head.weight.dtype == torch.bfloat16
    rows = torch.randn(32, head.weight.shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    logits = head(rows)
    assert logits.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(logits, whole_model(path, torch.bfloat16).get_output_embeddings()(rows).float())


@pytest.mark.parametrize("threads", [1, 2, 12])
def test_a_rows_bits_do_not_depend_on_its_company(threads: int) -> None:
    torch.set_num_threads(threads)
    head, rows = random_head(), torch.randn(70, 64)
    alone = torch.cat([head(row[None]) for row in rows])
    for count in (2, 5, 15, 16, 17, 33, 70):
        assert torch.equal(head(rows[:count]), alone[:count])


def test_no_rows_have_no_logits() -> None:
    assert random_head(vocabulary=9)(torch.empty(0, 64)).shape == (0, 9)
