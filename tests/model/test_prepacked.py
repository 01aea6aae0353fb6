"""Models whose weights are kept in oneDNN's order say what they said before, and a row's bits are its own."""

from __future__ import annotations

import logging
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from xpeft_server.model.batches.packing import pack
from xpeft_server.model.loading.families import FAMILIES
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.model.prepacked import PrepackedLinear, prepack
from xpeft_server.model.vocabulary_head import VocabularyHead

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="oneDNN has no prepacked products here",
)
TOLERANCE = 2e-5
LENGTHS = (9, 1, 40, 40, 3)


def prepacked(name: str, dtype: torch.dtype = torch.float32) -> Plm:
    plm = load_plm(name, dtype=dtype)
    prepack(plm)
    return plm


def texts(lab: Any) -> list[Any]:
    rng = np.random.default_rng(5)
    return [lab.text(rng, length) for length in LENGTHS]


def hidden(plm: Plm, some: list[Any]) -> torch.Tensor:
    with torch.inference_mode():
        return plm.forward(pack(some, None, first_position=plm.first_position))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_is_what_the_original_model_says(lab: Any, family: str) -> None:
    path = lab.plm(family).name
    plm = prepacked(path)
    assert not [each for each in plm.model.modules() if isinstance(each, nn.Linear | Conv1D)]
    assert any(isinstance(each, PrepackedLinear) for each in plm.model.modules())
    original, some = lab.one_at_a_time(path, lab.bank(plm)), texts(lab)
    for text, found in zip(some, hidden(plm, some)[: sum(LENGTHS)].split(LENGTHS), strict=True):
        expected = original.hidden(text)
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)
        assert expected.abs().max() > 1e4 * TOLERANCE


@pytest.mark.parametrize("family", ["bert", "gpt2", "mistral"])
def test_profiles_over_it_are_answered_as_over_the_original(lab: Any, family: str) -> None:
    plm = prepacked(lab.plm(family).name)
    bank = lab.bank(plm)
    crowd, original = lab.crowd(plm, bank, 5), lab.one_at_a_time(plm.name, bank)
    served = crowd.classifier.logits([crowd.input(i, text) for i, text in enumerate(texts(lab))])
    for text, profile, logits in zip(texts(lab), crowd.profiles, served, strict=True):
        expected = original.logits(text, profile)
        torch.testing.assert_close(torch.from_numpy(logits).double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_bfloat16_products_are_the_same_bit_for_bit(lab: Any, family: str) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16 products")
    path = lab.plm(family).name
    plain = load_plm(path, dtype=torch.bfloat16)
    assert torch.equal(hidden(prepacked(path, torch.bfloat16), texts(lab)), hidden(plain, texts(lab)))


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
@pytest.mark.parametrize("shape", [(384, 1536), (1536, 384), (64, 1000)])
def test_a_rows_bits_do_not_depend_on_how_many_rows_there_are(shape: tuple[int, int], threads: int) -> None:
    torch.set_num_threads(threads)
    random = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*size, generator=random) for size in (shape[::-1], shape[1:]))
    product, rows = PrepackedLinear(weight, bias), torch.randn(301, shape[0], generator=random)
    together = product(rows)
    for count in (2, 3, 15, 16, 17, 31, 64, 129, 300):
        assert torch.equal(product(rows[:count]), together[:count])
    swapped = product(rows.flip(0))
    assert torch.equal(swapped.flip(0), together)
    torch.testing.assert_close(together.double(), rows.double() @ weight.double().T + bias, rtol=1e-5, atol=1e-4)


def test_company_does_not_change_an_answers_bits(lab: Any) -> None:
    torch.set_num_threads(2)
    plm = prepacked(lab.plm("mistral").name)
    crowd = lab.crowd(plm, lab.bank(plm), 5)
    inputs = [crowd.input(i, text) for i, text in enumerate(texts(lab))]
    together = crowd.classifier.logits(inputs)
    for each, logits in zip(inputs, together, strict=True):
        assert crowd.classifier.logits([each])[0].tobytes() == logits.tobytes()


@pytest.mark.parametrize("threads", [1, 2, 12])
def test_so_do_a_vocabulary_heads_logits(threads: int) -> None:
    torch.set_num_threads(threads)
    weight, rows = nn.Parameter(torch.randn(1000, 64), requires_grad=False), torch.randn(70, 64)
    plain, head = VocabularyHead(weight), VocabularyHead(weight)
    head.prepack()
    assert head.weight is weight
    alone = torch.cat([head(row[None]) for row in rows])
    torch.testing.assert_close(alone, plain(rows), rtol=0, atol=1e-4)
    for count in (2, 5, 15, 16, 17, 33, 70):
        assert torch.equal(head(rows[:count]), alone[:count])


def test_the_weights_are_not_held_twice(lab: Any) -> None:
    plm = load_plm(lab.plm("llama").name)
    matrices = [each.weight for each in plm.model.modules() if isinstance(each, nn.Linear)]
    before = {id(each) for each in plm.model.parameters()}
    prepack(plm)
    assert not {id(each) for each in matrices} & {id(each) for each in plm.model.parameters()}
    assert len(before) - len(list(plm.model.parameters())) == len(matrices)


def test_what_makes_gradients_impossible_says_so() -> None:
    product = PrepackedLinear(torch.randn(4, 4), None)
    with pytest.raises(NotImplementedError, match="no gradient"):
        product(torch.randn(3, 4, requires_grad=True))


@pytest.mark.parametrize(
    ("machine", "dtype", "why"), [("riscv64", torch.float32, "riscv64"), ("x86_64", torch.float64, "float64")]
)
def test_where_it_cannot_be_had_the_model_stays_and_the_log_says_why(
    lab: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machine: str,
    dtype: torch.dtype,
    why: str,
) -> None:
    plm = load_plm(lab.plm("bert").name, dtype=dtype)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with caplog.at_level(logging.INFO):
        prepack(plm)
    assert any(isinstance(each, nn.Linear) for each in plm.model.modules())
    assert why in caplog.text


def test_other_devices_keep_their_weights(lab: Any) -> None:
    plm = replace(load_plm(lab.plm("bert").name), device=torch.device("cuda"))
    prepack(plm)
    assert any(isinstance(each, nn.Linear) for each in plm.model.modules())


def test_a_server_on_a_cpu_multiplies_by_them(lab: Any, tmp_path: Path) -> None:
    from xpeft_server.cli.serve.assembly import load_classifier
    from xpeft_server.settings import Settings

    settings = Settings(plm=lab.plm("bert").name, bank="random:N=4,R=8,seed=0", device="cpu", slots="4")
    plm = load_classifier(settings).plm
    assert any(isinstance(each, PrepackedLinear) for each in plm.model.modules())
