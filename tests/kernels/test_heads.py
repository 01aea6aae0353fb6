"""apply_heads against dot products in float64, within the bound that any order of a float32 sum keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import apply_heads
from xpeft_kernels.heads.reference import CHUNK


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ragged(counts: list[int], total: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Label rows in no order and their sequences, for sequences with these numbers of labels."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate([rng.permutation(total)[:count] for count in counts])
    return torch.from_numpy(rows), torch.from_numpy(np.repeat(np.arange(len(counts)), counts))


@pytest.mark.parametrize("hidden", [1, 63, 384, 2048])
@pytest.mark.parametrize("counts", [[1], [3, 1, 7, 2], [1] * 64, [150, 1, 77]], ids=len)
def test_every_label_row_meets_its_own_sequence(hidden: int, counts: list[int]) -> None:
    pooled, weight, bias = normal(len(counts), hidden), normal(200, hidden, seed=1), normal(200, seed=2)
    rows, owners = ragged(counts, 200)
    found = apply_heads(pooled, weight, bias, rows, owners)
    assert found.dtype == torch.float32
    for logit, row, owner in zip(found.tolist(), rows.tolist(), owners.tolist(), strict=True):
        terms = [float(p) * float(w) for p, w in zip(pooled[owner], weight[row], strict=True)]
        size = sum(map(abs, terms)) + abs(float(bias[row]))
        assert abs(logit - (sum(terms) + float(bias[row]))) <= (hidden + 2) * 2**-24 * size


def test_pooled_rows_and_heads_of_other_dtypes_are_multiplied_in_float32() -> None:
    pooled, weight, bias = normal(3, 32), normal(9, 32, seed=1), normal(9, seed=2)
    rows, owners = ragged([2, 3, 1], 9)
    half = [each.bfloat16() for each in (pooled, weight, bias)]
    found = apply_heads(*half, rows, owners)
    assert torch.equal(found, apply_heads(*(each.float() for each in half), rows, owners))


def test_more_label_rows_than_a_chunk_are_all_answered() -> None:
    pooled, weight, bias = normal(7, 4), normal(5000, 4, seed=1), normal(5000, seed=2)
    rows, owners = ragged([4000] * 7, 5000)
    assert rows.numel() > CHUNK
    found = apply_heads(pooled, weight, bias, rows, owners)
    torch.testing.assert_close(found, (pooled[owners] * weight[rows]).sum(1) + bias[rows], rtol=0, atol=1e-5)


@pytest.mark.parametrize("hidden", [64, 384, 768, 2048])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_logits_bits_do_not_depend_on_how_many_there_are(hidden: int, threads: int) -> None:
    counts = [1, 2, 3, 1, 64, 7] * 5
    pooled, weight, bias = normal(len(counts), hidden), normal(90, hidden, seed=1), normal(90, seed=2)
    rows, owners = ragged(counts, 90)
    torch.set_num_threads(threads)
    together = apply_heads(pooled, weight, bias, rows, owners).split(counts)
    for sequence, found in enumerate(together):
        mine = rows[owners == sequence]
        alone = apply_heads(pooled[sequence : sequence + 1], weight, bias, mine, torch.zeros_like(mine))
        assert torch.equal(found, alone)


def test_label_rows_that_nobody_asks_for_do_not_leak() -> None:
    pooled, weight, bias = normal(2, 8), torch.full((6, 8), torch.nan), torch.full((6,), torch.nan)
    weight[[1, 4]], bias[[1, 4]] = 1.0, 0.5
    assert apply_heads(pooled, weight, bias, torch.tensor([4, 1]), torch.tensor([0, 1])).isfinite().all()


@pytest.mark.parametrize(
    ("pooled", "weight", "bias", "owners"), [((2, 8), (6, 9), 6, 3), ((2, 8), (6, 8), 5, 3), ((2, 8), (6, 8), 6, 4)]
)
def test_what_does_not_fit_is_refused_with_all_shapes(
    pooled: tuple[int, int], weight: tuple[int, int], bias: int, owners: int
) -> None:
    index = torch.zeros(3, dtype=torch.int64), torch.zeros(owners, dtype=torch.int64)
    with pytest.raises(ValueError, match="do not fit") as caught:
        apply_heads(torch.zeros(pooled), torch.zeros(weight), torch.zeros(bias), *index)
    for shape in (pooled, weight, (bias,), (3,), (owners,)):
        assert str(shape) in str(caught.value)
