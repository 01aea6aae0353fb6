"""Which of PyTorch's kernels attention takes on a GPU, where a reference is what a kernel of ours is compared with."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.backends import cuda
from torch.nn.functional import scaled_dot_product_attention

from xpeft_kernels import PlacedSteps, Sequences, attend_cache_ref, attend_packed_ref, cut_steps, without_cudnn
from xpeft_kernels.attend import reference as packed
from xpeft_kernels.attend_cache import reference as cached

STATES = [torch.randn(5, heads, 8, generator=torch.Generator().manual_seed(heads)) for heads in (4, 2, 2)]


def enabled() -> dict[str, bool]:
    return {name: getattr(cuda, f"{name}_sdp_enabled")() for name in ("cudnn", "flash", "mem_efficient", "math")}


@pytest.mark.parametrize(("device", "cudnn"), [("cuda", False), ("cpu", True)])
def test_on_a_gpu_all_are_allowed_but_cudnns(device: str, cudnn: bool) -> None:
    before = enabled()
    with without_cudnn(torch.device(device)):
        assert enabled() == {"cudnn": cudnn, "flash": True, "mem_efficient": True, "math": True}
    assert enabled() == before


def attended_packed() -> Tensor:
    return attend_packed_ref(*STATES, Sequences.of([2, 3]), causal=True)


def attended_cached() -> Tensor:
    pieces, joins, parts = cut_steps(torch.tensor([[0, 5, 0, 0]]).numpy(), 5)
    steps = PlacedSteps(torch.from_numpy(pieces), torch.from_numpy(joins), parts)
    return attend_cache_ref(*STATES, steps, scale=1.0)


@pytest.mark.parametrize(("module", "attend"), [(packed, attended_packed), (cached, attended_cached)])
def test_no_reference_is_cudnns(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, attend: Callable[[], Tensor]
) -> None:
    allowed: list[bool] = []

    def noted(*given: Any, **options: Any) -> Tensor:
        allowed.append(cuda.cudnn_sdp_enabled())
        return scaled_dot_product_attention(*given, **options)

    monkeypatch.setattr(module, "scaled_dot_product_attention", noted)
    monkeypatch.setattr(module, "without_cudnn", lambda _: without_cudnn(torch.device("cuda")))
    assert attend().isfinite().all()
    assert allowed
    assert not any(allowed)
