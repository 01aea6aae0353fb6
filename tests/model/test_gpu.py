"""The classifier on a GPU against the one on CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.plm import load_plm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FAMILIES = ("bert", "roberta", "modernbert", "distilbert", "gpt2", "llama", "qwen3", "mistral", "gemma")
PROFILES = 32


class Pair:
    """One crowd on CPU in float32 or float64, and the same on the GPU."""

    def __init__(self, lab: Any, family: str, dtype: torch.dtype, *, graph_tokens: int = 1024) -> None:
        plm = lab.plm(family)
        bank = lab.bank(plm)
        self.lab = lab
        self.cpu = lab.crowd(plm, bank, PROFILES)
        there = load_plm(str(lab._folder / family), device="cuda", dtype=dtype)
        self.classifier = Classifier(there, bank, slots=PROFILES + 3, head_rows=7 * PROFILES, graph_tokens=graph_tokens)
        self.classifier.warm_up()
        self.classifier.fill([self.cpu.fill(number) for number in range(PROFILES)])
        rng = np.random.default_rng(0)
        self.texts = [lab.text(rng, int(length)) for length in rng.integers(1, 40, PROFILES)]

    def inputs(self) -> list[ClassifierInput]:
        return [self.cpu.input(n, text) for n, text in enumerate(self.texts)]


def largest_difference(a: list[NDArray[np.float32]], b: list[NDArray[np.float32]]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graph_tokens", [0, 1024])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_that_of_the_cpu(lab: Any, family: str, graph_tokens: int) -> None:
    pair = Pair(lab, family, torch.float32, graph_tokens=graph_tokens)
    expected = pair.cpu.classifier.logits(pair.inputs())
    assert largest_difference(pair.classifier.logits(pair.inputs()), expected) < 1e-4
    assert (pair.classifier.graphs.graphs > 0) is (graph_tokens > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_far_from_the_truth_as_on_the_cpu(lab: Any, family: str) -> None:
    pair = Pair(lab, family, torch.bfloat16)
    true = pair.cpu.classifier.logits(pair.inputs())
    halved = lab.crowd(lab.plm(family, torch.bfloat16), pair.cpu.bank, PROFILES)
    own = largest_difference(halved.classifier.logits(pair.inputs()), true)
    assert largest_difference(pair.classifier.logits(pair.inputs()), true) <= 2 * own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_launch_and_a_fill_wait_for_nothing(lab: Any, dtype: torch.dtype) -> None:
    pair = Pair(lab, "bert", dtype)
    pair.classifier.logits(pair.inputs())
    with waiting_is_an_error():
        pair.classifier.fill([pair.cpu.fill(3)], overlap=True)
        launched = [pair.classifier.launch(pair.inputs()) for _ in range(2)]
    assert len(launched[1].result()) == PROFILES


def test_two_batches_in_flight_do_not_mix(lab: Any) -> None:
    pair = Pair(lab, "bert", torch.float32)
    inputs = pair.inputs()
    halves = [inputs[:16], inputs[16:]]
    alone = [pair.classifier.logits(half) for half in halves]
    for _ in range(50):
        launched = [pair.classifier.launch(half) for half in halves]
        for found, expected in zip(launched, alone, strict=True):
            assert largest_difference(found.result(), expected) == 0


def test_a_slot_is_filled_anew_behind_the_batch_that_reads_it(lab: Any) -> None:
    pair = Pair(lab, "bert", torch.float32)
    text, slot = pair.texts[0], int(pair.cpu.slots[1])
    own = [pair.cpu.fill(n)._replace(slot=slot, head_rows=np.arange(7)[: len(pair.cpu.profiles[n].labels or ())])
           for n in (1, 5)]  # fmt: skip
    alone = []
    for fill in own:
        pair.classifier.fill([fill])
        alone.append(pair.classifier.logits([ClassifierInput(text, slot, fill.head_rows)])[0])
    launched = []
    for turn in range(40):
        fill = own[turn % 2]
        pair.classifier.fill([fill], overlap=True)
        launched.append(pair.classifier.launch([ClassifierInput(text, slot, fill.head_rows)]))
    for turn, each in enumerate(launched):
        assert np.array_equal(each.result()[0], alone[turn % 2])


def test_a_request_among_strangers(lab: Any) -> None:
    """Whether bits agree is a matter of cuBLAS, which chooses by the number of rows; our own kernels' always do."""
    pair = Pair(lab, "bert", torch.float32)
    together = pair.classifier.logits(pair.inputs())
    alone = [pair.classifier.logits([each])[0] for each in pair.inputs()]
    assert largest_difference(together, alone) < 1e-5
