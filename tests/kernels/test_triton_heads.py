"""apply_heads in Triton against the reference in float64: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import Impl, apply_heads

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def ragged(counts: list[int], total: int) -> tuple[Tensor, Tensor]:
    """Label rows in no order and their sequences, for sequences with these numbers of labels."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.permutation(total)[:count] for count in counts])
    owners = np.repeat(np.arange(len(counts)), counts)
    return torch.from_numpy(rows).to(DEVICE), torch.from_numpy(owners).to(DEVICE)


@pytest.mark.parametrize("hidden", [1, 63, 384, 2048])
@pytest.mark.parametrize("counts", [[1], [3, 1, 7, 2], [1] * 64, [150, 1, 77]], ids=len)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])], ids=str)
def test_every_label_row_meets_its_own_sequence(hidden: int, counts: list[int], dtype: torch.dtype) -> None:
    pooled = normal(len(counts), hidden).to(dtype)
    weight, bias = normal(200, hidden, seed=1), normal(200, seed=2)
    rows, owners = ragged(counts, 200)
    found = apply_heads(pooled, weight, bias, rows, owners, impl=Impl.TRITON)
    terms = pooled.double()[owners] * weight.double()[rows]
    # Any order of a float32 sum of n products is within (n + 2) · 2⁻²⁴ · Σ|term|.
    bound = (hidden + 2) * 2**-24 * (terms.abs().sum(1) + bias.double()[rows].abs())
    assert found.dtype == torch.float32
    assert ((found.double() - terms.sum(1) - bias.double()[rows]).abs() <= bound).all()


def test_a_logits_bits_do_not_depend_on_how_many_there_are() -> None:
    counts = [1, 2, 3, 1, 20, 7]
    pooled, weight, bias = normal(len(counts), 384), normal(90, 384, seed=1), normal(90, seed=2)
    rows, owners = ragged(counts, 90)
    together = apply_heads(pooled, weight, bias, rows, owners, impl=Impl.TRITON).split(counts)
    for sequence, found in enumerate(together):
        mine = rows[owners == sequence]
        one = pooled[sequence : sequence + 1]
        assert torch.equal(found, apply_heads(one, weight, bias, mine, torch.zeros_like(mine), impl=Impl.TRITON))


def test_label_rows_that_nobody_asks_for_do_not_leak() -> None:
    weight, bias = torch.full((6, 8), torch.nan, device=DEVICE), torch.full((6,), torch.nan, device=DEVICE)
    weight[[1, 4]], bias[[1, 4]] = 1.0, 0.5
    rows, owners = torch.tensor([4, 1], device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    assert apply_heads(normal(2, 8), weight, bias, rows, owners, impl=Impl.TRITON).isfinite().all()


def test_no_label_row_at_all_gives_no_logit() -> None:
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    assert apply_heads(normal(2, 8), normal(6, 8), normal(6), none, none, impl=Impl.TRITON).shape == (0,)


def test_what_does_not_fit_is_refused_as_by_the_reference() -> None:
    index = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    with pytest.raises(ValueError, match="do not fit"):
        apply_heads(normal(2, 8), normal(6, 9), normal(6), index, index, impl=Impl.TRITON)
