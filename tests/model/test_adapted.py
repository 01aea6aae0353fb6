from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from xpeft_kernels import Norm
from xpeft_server.model.adapted import AdapterContext, install_adapters
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.loading.families import FAMILIES, Family


class Recorder:
    """Adapters that change nothing and remember what they were given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, tuple[int, ...], bool, bool]] = []

    def __call__(self, block: int, hidden: Tensor, residual: Tensor | None, norm: Norm | None) -> Tensor:
        self.calls.append((block, tuple(hidden.shape), residual is not None, norm is not None))
        out = hidden if residual is None else hidden + residual
        return out if norm is None else functional.layer_norm(out, out.shape[-1:], norm.weight, norm.bias, norm.eps)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_block_asks_once_in_order_and_an_adapter_of_nothing_is_the_bare_model(lab: Any, family: str) -> None:
    plm, recorder = lab.plm(family), Recorder()
    batch = pack([lab.text(np.random.default_rng(0), 20)], None, first_position=plm.first_position)
    with torch.inference_mode():
        bare, adapted = plm.forward(batch), plm.forward(batch, recorder)
    ends = FAMILIES[family].post_norm
    assert recorder.calls == [(block, (20, 64), ends, ends) for block in range(plm.facts.blocks)]
    torch.testing.assert_close(adapted, bare, rtol=0, atol=1e-5)


def test_adapters_apply_inside_their_context_only() -> None:
    context, outer, inner = AdapterContext(), Recorder(), Recorder()
    with context.applying(outer):
        with context.applying(inner):
            assert context.adapters is inner
        assert context.adapters is outer
        with context.applying(None):
            assert context.adapters is None
    assert context.adapters is None


def test_a_forward_that_fails_leaves_the_bare_model_behind(lab: Any) -> None:
    plm = lab.plm("bert")
    batch = pack([lab.text(np.random.default_rng(0), 20)], None)

    def broken(*_: object) -> Tensor:
        raise RuntimeError("the slots are gone")

    with torch.inference_mode():
        before = plm.forward(batch)
        with pytest.raises(RuntimeError, match="the slots are gone"):
            plm.forward(batch, broken)
        assert torch.equal(plm.forward(batch), before)


class Block(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.output = nn.Module()
        self.output.dense = nn.Linear(4, 4)
        self.output.LayerNorm = norm


def test_blocks_that_are_not_what_the_table_says_are_refused() -> None:
    model = nn.Module()
    model.layer = nn.Sequential(Block(nn.LayerNorm(4)))
    with pytest.raises(TypeError, match="layer is a Sequential, expected a list of blocks"):
        install_adapters(model, Family("layer", "output", "output.dense", post_norm=True))
    model.layer = nn.ModuleList([Block(nn.LayerNorm(4)), Block(nn.Identity())])
    with pytest.raises(TypeError, match="block 1 ends with Identity, expected LayerNorm"):
        install_adapters(model, Family("layer", "output", "output.dense", post_norm=True))
