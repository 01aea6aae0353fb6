from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_server.model.batches.packing import PackedBatch, pack
from xpeft_server.model.pooling import pool

LENGTHS = [1, 40, 7, 7, 3]


def hidden_of(lab: Any, lengths: list[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, PackedBatch]:
    """Packed rows; a filler's are NaN, as nothing may read them."""
    batch = pack([lab.text(np.random.default_rng(0), length) for length in lengths], None)
    hidden = torch.full((batch.input_ids.numel(), 24), torch.nan)
    hidden[: sum(lengths)] = torch.randn(sum(lengths), 24, generator=torch.Generator().manual_seed(0))
    return hidden.to(dtype), batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [LENGTHS, [1], [2, 3]], ids=str)
def test_a_sequence_is_the_mean_of_its_tokens_or_the_first_or_the_last(
    lab: Any, lengths: list[int], dtype: torch.dtype
) -> None:
    hidden, batch = hidden_of(lab, lengths, dtype)
    texts = hidden[: sum(lengths)].float().split(lengths)
    mean = torch.stack([rows.double().mean(0) for rows in texts])
    assert pool(hidden, batch, "mean").dtype == torch.float32
    torch.testing.assert_close(pool(hidden, batch, "mean").double(), mean, rtol=0, atol=1e-6)
    assert torch.equal(pool(hidden, batch, "cls"), torch.stack([rows[0] for rows in texts]))
    assert torch.equal(pool(hidden, batch, "last"), torch.stack([rows[-1] for rows in texts]))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_pooled_rows_bits_do_not_depend_on_its_company(lab: Any, pooling: Any, threads: int) -> None:
    torch.set_num_threads(threads)
    lengths = LENGTHS * 20
    hidden, batch = hidden_of(lab, lengths)
    together = pool(hidden, batch, pooling)
    for place, rows in enumerate(hidden.split(lengths)):
        _, alone = hidden_of(lab, [len(rows)])
        assert torch.equal(pool(rows, alone, pooling)[0], together[place])
