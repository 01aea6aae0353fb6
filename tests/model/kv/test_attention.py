from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_server.model.kv.attention import KvStep, Run
from xpeft_server.model.kv.cache import KvCache, KvShape

SIZE, KEYS = 16, 2
CPU = torch.device("cpu")


def cache_of() -> KvCache:
    shape = KvShape(blocks=2, heads=KEYS, size=SIZE, dtype=torch.float32, device=CPU)
    return KvCache(shape, tokens=1 << 16, context=512)


@pytest.mark.parametrize("window", [None, 5, 1000])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_sequences_read_and_written_in_any_pieces_see_themselves_and_what_is_before(
    heads: int, window: int | None, scaling: float | None, exact: Callable[..., Tensor]
) -> None:
    rng = np.random.default_rng(0)
    random = torch.Generator().manual_seed(0)
    lengths = [1, 3, 70, 130, 64, 65]
    q = [torch.randn(heads, n, SIZE, generator=random) for n in lengths]
    k = [torch.randn(KEYS, n, SIZE, generator=random) for n in lengths]
    v = [torch.randn(KEYS, n, SIZE, generator=random) for n in lengths]
    cache = cache_of()
    rows = [cache.claim(1) for _ in lengths]
    past = [0] * len(lengths)
    found: list[list[Tensor]] = [[] for _ in lengths]
    while any(done < n for done, n in zip(past, lengths, strict=True)):
        runs, order, start = [], [], 0
        for i in rng.permutation(len(lengths)):
            count = min(int(rng.choice([1, 1, 2, 40])), lengths[i] - past[i])
            if not count:
                continue
            row = rows[i]
            assert row is not None
            rows[i] = cache.lengthen(row, past[i] + count)
            runs.append((i, start, count))
            order.append(i)
            start += count
        step = KvStep([Run(rows[i], begin, count, past[i]) for i, begin, count in runs], CPU)  # type: ignore[arg-type]

        def packed(values: list[Tensor]) -> Tensor:
            parts = [values[i][:, past[i] : past[i] + count] for i, _, count in runs]  # noqa: B023
            filler = torch.full((values[0].shape[0], 3, SIZE), 9.0)
            return torch.cat([*parts, filler], dim=1)[None]

        out = step.attend(1, packed(q), packed(k), packed(v), scaling, window)[0]
        assert (out[start:] == 0).all()
        for i, begin, count in runs:
            found[i].append(out[begin : begin + count])
            past[i] += count
    for i in range(len(lengths)):
        scale = SIZE**-0.5 if scaling is None else scaling
        wanted = exact(q[i], k[i], v[i], scale, window).transpose(0, 1)
        torch.testing.assert_close(torch.cat(found[i]).double(), wanted, rtol=0, atol=1e-5)


def test_a_tokens_bits_do_not_depend_on_who_else_is_in_the_step() -> None:
    random = torch.Generator().manual_seed(0)
    heads = 6
    state = torch.randn(2, KEYS, 64, SIZE, generator=random)
    q, k, v = (torch.randn(count, SIZE, generator=random) for count in (heads, KEYS, KEYS))

    def answer(company: int, place: int) -> Tensor:
        cache = cache_of()
        others = torch.Generator().manual_seed(company)
        runs = []
        for number in range(company + 1):
            row = cache.claim(30 if number != place else 40)
            assert row is not None
            values = state if number == place else torch.randn(state.shape, generator=others)
            row.pool.states[0, :, row.index] = values
            runs.append(Run(row, number, 1, 39 if number == place else int(number % 30)))
        tensors = []
        for own in (q, k, v):
            rows = torch.randn(company + 1, *own.shape, generator=others)
            rows[place] = own
            tensors.append(rows.transpose(0, 1)[None])
        step = KvStep(runs, CPU)
        return step.attend(0, tensors[0], tensors[1], tensors[2], None, None)[0, place]

    alone = answer(0, 0)
    for company, place in ((1, 0), (1, 1), (7, 3), (31, 31), (100, 50)):
        assert torch.equal(answer(company, place), alone)


def test_a_neighbour_with_numbers_that_are_not_finite_spoils_nobody_else() -> None:
    cache = cache_of()
    good, bad = cache.claim(10), cache.claim(10)
    assert good is not None
    assert bad is not None
    runs = [Run(good, 0, 1, 5), Run(bad, 1, 1, 5)]
    values = torch.randn(1, KEYS, 2, SIZE, generator=torch.Generator().manual_seed(0))
    values[:, :, 1] = torch.nan
    out = KvStep(runs, CPU).attend(0, values, values, values, None, None)[0]
    assert out[0].isfinite().all()
    assert out[1].isnan().all()
    index = bad.index
    cache.release(bad)
    newcomer = cache.claim(10)
    assert newcomer is not None
    assert newcomer.index == index
    fine = values[:, :, :1]
    assert KvStep([Run(newcomer, 0, 1, 0)], CPU).attend(0, fine, fine, fine, None, None).isfinite().all()
