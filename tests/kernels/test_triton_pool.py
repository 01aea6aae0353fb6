"""mean_rows in Triton against the reference on CPU, bit by bit: on a GPU, or in Triton's interpreter."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import Impl, mean_rows

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if GPU else [])]


@pytest.fixture(autouse=True)
def poisoned_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel does not write is NaN."""
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: torch.full(shape, torch.nan, **options))


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def bounds(lengths: list[int]) -> tuple[Tensor, Tensor]:
    pairs = torch.tensor(list(pairwise(np.cumsum([0, *lengths]).tolist())))
    return pairs[:, 0], pairs[:, 1]


def pooled(hidden: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    return mean_rows(hidden.to(DEVICE), starts.to(DEVICE), ends.to(DEVICE), impl=Impl.TRITON).cpu()


@pytest.mark.parametrize("lengths", [[1], [63], [1] * 20, [63, 1, 37, 20, 16], [499, 1], [1, 499]], ids=str)
@pytest.mark.parametrize("hidden", [1, 63, 384])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_sequence_has_the_references_bits(lengths: list[int], hidden: int, dtype: torch.dtype) -> None:
    rows = normal(sum(lengths), hidden).to(dtype)
    found = pooled(rows, *bounds(lengths))
    assert found.dtype == torch.float32
    assert torch.equal(found, mean_rows(rows, *bounds(lengths), impl=Impl.REFERENCE))


def test_empty_sequences_give_zeros_and_nothing_else_is_read() -> None:
    rows = normal(60, 150)
    rows[[0, 34, 59]] = torch.nan
    starts, ends = torch.tensor([1, 0, 35, 60, 5]), torch.tensor([34, 0, 59, 60, 6])
    found = pooled(rows, starts, ends)
    assert not found[[1, 3]].any()
    assert torch.equal(found, mean_rows(rows, starts, ends, impl=Impl.REFERENCE))


def test_a_view_of_other_strides_is_pooled_as_it_reads() -> None:
    rows = normal(384, 100).T
    assert torch.equal(pooled(rows, *bounds([37, 63])), mean_rows(rows, *bounds([37, 63]), impl=Impl.REFERENCE))


def test_no_sequence_at_all_gives_no_vector() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert pooled(normal(4, 8), none, none).shape == (0, 8)


def test_a_gradient_is_refused_and_not_forgotten() -> None:
    with pytest.raises(ValueError, match=r"no gradient in Triton: ask for impl=Impl.REFERENCE"):
        pooled(normal(4, 8).requires_grad_(), *bounds([4]))


def test_what_does_not_fit_is_refused_as_by_the_reference() -> None:
    with pytest.raises(ValueError, match=r"starts torch\.int32"):
        pooled(normal(4, 8), *(each.int() for each in bounds([4])))
