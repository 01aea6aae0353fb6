from __future__ import annotations

import numpy as np
import pytest
import torch

from xpeft_kernels import MIN_ROWS, Tiles

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
    plan = tiles.padded
    token = torch.arange(tiles.tokens)
    assert torch.equal(token[plan.gather][plan.scatter], token)
    assert plan.gather.shape == plan.row_slots.shape
    assert plan.scatter.unique().numel() == tiles.tokens


@pytest.mark.parametrize(("slots", "lengths"), BATCHES)
def test_a_row_of_a_stack_belongs_to_its_runs_slot_padding_too(slots: list[int], lengths: list[int]) -> None:
    tiles = Tiles.of(slots, lengths)
    plan = tiles.padded
    of_token = torch.from_numpy(np.repeat(slots, lengths))
    assert torch.equal(plan.row_slots, of_token[plan.gather])


@pytest.mark.parametrize(("slots", "lengths"), BATCHES)
def test_stacks_are_rectangles_of_a_multiple_of_16_rows(slots: list[int], lengths: list[int]) -> None:
    tiles = Tiles.of(slots, lengths)
    plan = tiles.padded
    at_row = at_run = 0
    heights = []
    for rows, runs in plan.slices:
        assert (rows.start, runs.start) == (at_row, at_run)
        at_row, at_run = rows.stop, runs.stop
        height, rest = divmod(rows.stop - rows.start, runs.stop - runs.start)
        assert (rest, height % MIN_ROWS) == (0, 0)
        of_run = plan.row_slots[rows].view(-1, height)
        assert torch.equal(of_run, plan.slots[runs, None].expand_as(of_run))
        heights.append(height)
    assert (at_row, at_run) == (plan.gather.numel(), len(tiles.runs))
    assert heights == sorted(set(heights))


def height_of(length: int) -> int:
    return int(Tiles.of([0], [length]).padded.gather.numel())


def test_up_to_128_rows_the_next_multiple_of_16_is_taken() -> None:
    assert [height_of(length) for length in (1, 16, 17, 100, 127, 128)] == [16, 16, 32, 112, 128, 128]


def test_above_128_rows_less_than_an_eighth_is_wasted_in_few_different_heights() -> None:
    heights = {length: height_of(length) for length in range(129, 2050)}
    assert all(0 <= height - length < length / 8 for length, height in heights.items())
    assert len(set(heights.values())) <= 8 * 4 + 1


def test_a_run_is_as_high_alone_as_beside_others() -> None:
    lengths = [499, 1, 137, 63, 130]
    together = Tiles.of(range(5), lengths).padded
    assert together.row_slots.bincount().tolist() == [height_of(length) for length in lengths]


@pytest.mark.parametrize(
    ("slots", "lengths"), [([], []), ([1], []), ([1, 2], [3]), ([1, 2], [3, 0]), ([1], [-1]), ([[1]], [[2]])]
)
def test_what_describes_no_batch_is_refused_with_both_values(slots: list[int], lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not describe a batch") as caught:
        Tiles.of(slots, lengths)
    assert repr(slots) in str(caught.value)
    assert repr(lengths) in str(caught.value)
