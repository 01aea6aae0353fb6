"""mean_rows' reference against one sequence at a time, row after row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from xpeft_kernels import mean_rows


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def in_order(rows: Tensor) -> Tensor:
    """``[n, H]`` → ``[H]``, the mean of rows that are added up in float32 from the first to the last."""
    total = torch.zeros(rows.shape[1])
    for row in rows.float():
        total = total + row
    return total / max(len(rows), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_added_up_in_order_and_in_float32(dtype: torch.dtype, threads: int) -> None:
    torch.set_num_threads(threads)
    hidden = normal(700, 96).to(dtype)
    bounds = [(0, 500), (500, 501), (501, 564), (564, 700)]
    found = mean_rows(hidden, *(torch.tensor(each) for each in zip(*bounds, strict=True)))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.stack([in_order(hidden[start:end]) for start, end in bounds]))


def test_sequences_may_be_empty_stand_in_any_order_overlap_and_leave_rows_out() -> None:
    hidden = normal(20, 5)
    hidden[[0, 7, 19]] = torch.nan
    bounds = [(8, 19), (3, 3), (1, 4), (2, 7), (0, 0)]
    found = mean_rows(hidden, *(torch.tensor(each) for each in zip(*bounds, strict=True)))
    assert torch.equal(found, torch.stack([in_order(hidden[start:end]) for start, end in bounds]))
    assert not found[[1, 4]].any()


def test_a_gradient_reaches_the_rows_of_a_sequence_in_equal_parts() -> None:
    hidden = normal(6, 2).requires_grad_()
    mean_rows(hidden, torch.tensor([1]), torch.tensor([5])).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].tolist() == [0, 0.25, 0.25, 0.25, 0.25, 0]


@pytest.mark.parametrize(
    ("hidden", "starts", "ends", "message"),
    [
        (normal(4), torch.tensor([0]), torch.tensor([1]), r"hidden \(4,\), starts \(1,\) and ends \(1,\)"),
        (normal(4, 2), torch.tensor([0]), torch.tensor([1, 2]), r"starts \(1,\) and ends \(2,\) do not fit"),
        (normal(4, 2), torch.tensor(0), torch.tensor(1), r"starts \(\) and ends \(\) do not fit"),
        (normal(4, 2).long(), torch.tensor([0]), torch.tensor([1]), "hidden is torch.int64"),
        (normal(4, 2), torch.tensor([0]).int(), torch.tensor([1]), "starts torch.int32"),
        (normal(4, 2), torch.tensor([0]), torch.tensor([1]).int(), "ends torch.int32"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_value(
    hidden: Tensor, starts: Tensor, ends: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mean_rows(hidden, starts, ends)
