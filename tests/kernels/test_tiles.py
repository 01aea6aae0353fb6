from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch

from xpeft_kernels import MIN_ROWS, Tiles
from xpeft_kernels.tiles import STACK_COST

BATCHES = [
    ([0], [1]),
    ([3, 3, 3], [1, 5, 7]),
    ([5, 2], [499, 1]),
    ([2, 5], [1, 499]),
    (list(range(64)), [1] * 64),
    ([4, 1, 4, 4, 0], [63, 137, 500, 2, 16]),
    (list(range(7)), [15, 16, 17, 127, 128, 129, 1025]),
]


@pytest.mark.parametrize(("slots", "lengths"), BATCHES)
def test_runs_cover_all_tokens_in_order(slots: list[int], lengths: list[int]) -> None:
    tiles = Tiles.of(slots, lengths)
    owner = np.full(sum(lengths), -1)
    for slot, start, length in tiles.runs:
        assert (owner[start : start + length] == -1).all()
        owner[start : start + length] = slot
    assert owner.tolist() == np.repeat(slots, lengths).tolist()
    assert tiles.tokens == sum(lengths)


def test_neighbours_in_one_slot_are_one_run_and_others_are_not() -> None:
    assert Tiles.of([3, 3, 1, 3], [2, 4, 5, 6]).runs.tolist() == [[3, 0, 6], [1, 6, 5], [3, 11, 6]]


@pytest.mark.parametrize(("slots", "lengths"), BATCHES)
def test_every_token_has_one_place_in_the_stacks_and_finds_back(slots: list[int], lengths: list[int]) -> None:
    tiles = Tiles.of(slots, lengths)
    token = torch.arange(tiles.tokens)
    back = [token[stack.gather][stack.scatter] for stack in tiles.stacks]
    assert torch.equal(torch.cat(back), token)
    assert [stack.tokens for stack in tiles.stacks] == [each.numel() for each in back]


@pytest.mark.parametrize(("slots", "lengths"), BATCHES)
def test_a_row_of_a_stack_belongs_to_its_runs_slot_padding_too(slots: list[int], lengths: list[int]) -> None:
    of_token = torch.from_numpy(np.repeat(slots, lengths))
    for stack in Tiles.of(slots, lengths).stacks:
        assert torch.equal(stack.slots.repeat_interleave(stack.height), of_token[stack.gather])


@pytest.mark.parametrize(("slots", "lengths"), BATCHES)
def test_stacks_are_at_least_16_rows_high_and_a_multiple_of_8(slots: list[int], lengths: list[int]) -> None:
    tiles = Tiles.of(slots, lengths)
    assert sum(stack.slots.numel() for stack in tiles.stacks) == len(tiles.runs)
    for stack in tiles.stacks:
        assert stack.height >= MIN_ROWS
        assert stack.height % 8 == 0
        assert stack.gather.shape == (stack.slots.numel() * stack.height,)


def height_of(length: int) -> int:
    (stack,) = Tiles.of([0], [length]).stacks
    return stack.height


def test_up_to_128_rows_the_next_multiple_of_8_is_taken() -> None:
    assert [height_of(length) for length in (1, 16, 17, 100, 121, 128)] == [16, 16, 24, 104, 128, 128]


def test_above_64_rows_less_than_an_eighth_is_wasted_in_few_different_heights() -> None:
    heights = {length: height_of(length) for length in range(65, 2050)}
    assert all(0 <= height - length < length / 8 for length, height in heights.items())
    assert len(set(heights.values())) <= 8 * 5 + 1


def test_short_runs_are_not_padded_to_a_long_one_beside_them() -> None:
    heights = [stack.height for stack in Tiles.of(range(12), [*[20] * 10, 480, 500]).stacks]
    assert heights == [24, 512]


def test_runs_of_similar_length_share_a_stack() -> None:
    (stack,) = Tiles.of(range(6), [17, 18, 25, 26, 31, 33]).stacks
    assert stack.height == 40


def best_by_trying(heights: list[int]) -> int:
    """The least of padded rows and stack costs over all ways to cut the runs."""
    ways = product((False, True), repeat=len(heights) - 1)
    return min(cost_of(heights, [0, *(i + 1 for i, cut in enumerate(way) if cut), len(heights)]) for way in ways)


def cost_of(heights: list[int], cuts: list[int]) -> int:
    return sum((end - start) * max(heights[start:end]) + STACK_COST for start, end in pairwise(cuts))


@pytest.mark.parametrize("seed", range(20))
def test_no_other_way_to_cut_the_runs_costs_less(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.choice([10, 24, 40, 64, 96, 256], rng.integers(1, 11))
    stacks = Tiles.of(range(len(lengths)), lengths.tolist()).stacks
    cost = sum(stack.slots.numel() * stack.height + STACK_COST for stack in stacks)
    assert cost == best_by_trying([height_of(int(length)) for length in lengths])


@pytest.mark.parametrize(
    ("slots", "lengths"), [([], []), ([1], []), ([1, 2], [3]), ([1, 2], [3, 0]), ([1], [-1]), ([[1]], [[2]])]
)
def test_what_describes_no_batch_is_refused_with_both_values(slots: list[int], lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not describe a batch") as caught:
        Tiles.of(slots, lengths)
    assert repr(slots) in str(caught.value)
    assert repr(lengths) in str(caught.value)
