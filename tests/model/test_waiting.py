"""Launching a batch never waits for the device: no operator of it needs to know a value that is computed there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xpeft_kernels.dispatch import Operator
from xpeft_server.model.batches.packing import PackedRows
from xpeft_server.model.batches.step_packing import Chunk, StepRows
from xpeft_server.model.decoder import kv_shape
from xpeft_server.model.graphs.graphed_forward import GraphedForward
from xpeft_server.model.graphs.graphed_step import GraphedStep
from xpeft_server.model.kv.arena import KvArena
from xpeft_server.model.lanes import HostLanes
from xpeft_server.model.loading.families import FAMILIES as FAMILY_OF
from xpeft_server.model.packed_sequences import AttentionKernel
from xpeft_server.model.sampling import weights as sampling_weights
from xpeft_server.model.sampling.choice import Draw, launch_choice
from xpeft_server.model.sampling.rule import SamplingRule
from xpeft_server.model.slots import SlotBuffers

FAMILIES = (
    "bert",
    "roberta",
    "electra",
    "distilbert",
    "modernbert",
    "gpt2",
    "llama",
    "qwen2",
    "qwen3",
    "mistral",
    "gemma",
)

WAITING = {
    "_local_scalar_dense",  # item, int(), float(), tolist
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "unique",
    "unique2",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
}
"""Operators whose result's shape or whose caller depends on values: on a GPU the host waits for them."""


class Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        by_booleans = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if name in WAITING or by_booleans:
            self.waited.append(name)
        return function(*args, **(kwargs or {}))


STAND_INS: dict[str, Callable[..., Tensor]] = {
    "aggregate_adapters": lambda *_, **__: None,
    "apply_heads": lambda pooled, weight, bias, rows, owners: pooled.new_zeros(rows.numel()),
    "attend_cache": lambda query, *_, **__: query + 0,
    "attend_packed": lambda query, *_, **__: query + 0,
    "apply_adapters": lambda hidden, *_, **__: hidden + 0,
    "mean_rows": lambda hidden, starts, _: hidden.new_zeros(starts.numel(), hidden.shape[1]),
}
"""For our own kernels, which the tests of the kernels look at."""


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Operator, "__call__", lambda self, device_type, impl: STAND_INS[self.name])


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: bool((x > 0).all())])
def test_what_waits_is_seen(wait: Any) -> None:
    with Watch() as watch:
        wait(torch.ones(3))
    assert watch.waited


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("without_kernels")
def test_a_forward_of_static_inputs_waits_for_nothing(lab: Any, family: str) -> None:
    plm = lab.plm(family)
    bank = lab.bank(plm)
    buffers = SlotBuffers(bank, slots=3, head_rows=1, device=plm.device, dtype=plm.dtype)
    forward = GraphedForward(plm, buffers, bank.pooling, HostLanes(), tokens=64, attention=AttentionKernel.OURS)
    rng = np.random.default_rng(0)
    rows = PackedRows.of([lab.text(rng, length) for length in (3, 11)], first_position=plm.first_position)
    with torch.inference_mode():
        forward.capture()
        with Watch() as watch:
            found = forward.pooled(rows, np.array([0, 2]))
    assert found is not None
    assert watch.waited == []


@pytest.mark.usefixtures("without_kernels")
def test_a_launch_waits_for_nothing(lab: Any) -> None:
    plm = lab.plm("bert")
    crowd = lab.crowd(plm, lab.bank(plm), 6)
    rng = np.random.default_rng(0)
    inputs = [crowd.input(n, lab.text(rng, 4 + n)) for n in range(6)]
    with Watch() as watch:
        crowd.classifier.fill([crowd.fill(2), crowd.fill(5)], overlap=True)
        launched = crowd.classifier.launch(inputs)
    assert watch.waited == []
    assert len(launched.result()) == 6


@pytest.mark.parametrize("family", [each for each in FAMILIES if FAMILY_OF[each].decoder])
@pytest.mark.usefixtures("without_kernels")
def test_a_step_of_static_inputs_waits_for_nothing(lab: Any, family: str) -> None:
    plm = lab.plm(family)
    buffers = SlotBuffers(lab.bank(plm), slots=3, head_rows=1, device=plm.device, dtype=plm.dtype)
    arena = KvArena(kv_shape(plm), tokens=256, context=64)
    forward = GraphedStep(plm, buffers, arena, tokens=8)
    row = arena.claim(8)
    rows = StepRows.of([Chunk(np.arange(5, dtype=np.int32), 0, row, 0, asks=True)])
    with torch.inference_mode():
        forward.capture()
        with Watch() as watch:
            found = forward.hidden(rows)
    assert found is not None
    assert watch.waited == []


RULES = [
    SamplingRule(penalty, temperature, top_k, top_p, min_p, logprobs)
    for penalty, temperature, top_k, top_p, min_p, logprobs in product(
        (1.0, 1.2), (0.0, 0.8), (0, 5), (1.0, 0.9), (0.0, 0.05), (None, 3)
    )
]


@pytest.mark.parametrize("rows", [RULES, *([rule] * 2 for rule in RULES)], ids=lambda rows: f"{len(rows)} rows")
def test_a_choice_waits_for_nothing_whatever_the_rules(
    monkeypatch: pytest.MonkeyPatch, rows: list[SamplingRule]
) -> None:
    """On a GPU; a CPU, which is never waited for, takes another way."""
    monkeypatch.setattr(sampling_weights, "ORDERS", {})
    logits = torch.randn(len(rows), 40, generator=torch.Generator().manual_seed(0))
    with Watch() as watch:
        launched = launch_choice(logits, [Draw(rule, i, i, np.array([1, 7])) for i, rule in enumerate(rows)])
    assert watch.waited == []
    assert bool((launched.result().ids >= 0).all())
