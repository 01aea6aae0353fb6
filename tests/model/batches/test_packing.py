from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from xpeft_server.model.batches.packing import even_rows, pack, packed_order
from xpeft_server.model.tokens.tokenizing import TokenizedText


def text(*ids: int, second: int | None = None) -> TokenizedText:
    """Tokens; those from ``second`` on are the second text of a pair."""
    types = [int(second is not None and place >= second) for place in range(len(ids))]
    return TokenizedText(np.array(ids, np.int32), np.array(types, np.int32))


LONG = text(*range(10, 28))


def test_sequences_lie_end_to_end_and_count_their_own_positions() -> None:
    batch = pack([LONG, text(5, 6, second=1), text(7)], [3, 3, 1])
    assert batch.input_ids.tolist() == [[*range(10, 28), 5, 6, 7]]
    assert batch.position_ids.tolist() == [[*range(18), 0, 1, 0]]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [[0] * 19 + [1, 0]]
    assert (batch.starts.tolist(), batch.ends.tolist()) == ([0, 18, 20], [18, 20, 21])
    assert batch.owners.tolist() == [0] * 18 + [1, 1, 2]
    assert batch.sequences == 3
    assert batch.groups == ((1, 18), (1, 2), (1, 1))
    assert batch.tiles is not None
    assert batch.tiles.runs.tolist() == [[3, 0, 20], [1, 20, 1]]


def test_positions_start_where_the_model_says() -> None:
    assert pack([LONG, text(5, 6)], None, first_position=2).position_ids.tolist() == [[*range(2, 20), 2, 3]]


def test_padding_that_stands_in_a_text_has_the_position_before_the_first_and_is_not_counted() -> None:
    batch = pack([LONG, text(1, 5, 1, 1, 6), text(7, 1)], None, first_position=2)
    assert batch.position_ids.tolist() == [[*range(2, 20), 1, 2, 1, 1, 3, 2, 1]]


def test_neighbours_of_equal_length_share_a_group_whatever_their_profile() -> None:
    batch = pack([text(1, 2, 3)] * 4 + [text(1, 2)] * 3, [1, 1, 2, 3, 3, 4, 5])
    assert batch.groups == ((4, 3), (3, 2))


def test_a_batch_of_fewer_than_16_rows_ends_with_a_filler_that_nobody_reads() -> None:
    batch = pack([text(5, 6, 7), text(8, 9)], [4, 2])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9] + [8] * 11]
    assert batch.position_ids[0, 5:].tolist() == list(range(11))
    assert batch.groups == ((1, 3), (1, 2), (1, 11))
    assert batch.sequences == 2
    assert batch.owners.tolist() == [0, 0, 0, 1, 1]
    assert batch.ends.tolist() == [3, 5]
    assert batch.tiles is not None
    assert batch.tiles.runs.tolist() == [[4, 0, 3], [2, 3, 13]]


@pytest.mark.parametrize("length", [16, 17, 100])
def test_a_batch_of_16_rows_or_more_is_left_alone(length: int) -> None:
    batch = pack([text(*range(length))], None)
    assert batch.groups == ((1, length),)
    assert batch.tiles is None


def test_without_profiles_there_are_no_tiles() -> None:
    assert pack([text(1)], None).tiles is None


def test_profiles_stand_together_short_ones_first_and_their_sequences_by_length() -> None:
    slots, lengths = [7, 2, 7, 5, 2], [3, 4, 1, 9, 2]
    order = packed_order(slots, lengths).tolist()
    assert [(slots[i], lengths[i]) for i in order] == [(7, 1), (7, 3), (2, 2), (2, 4), (5, 9)]


def test_profiles_of_equal_size_are_not_mixed_up() -> None:
    slots = [9, 1, 9, 1]
    assert [slots[i] for i in packed_order(slots, [5, 5, 5, 5])] == [1, 1, 9, 9]


def test_the_order_of_arrays_is_that_of_lists() -> None:
    slots, lengths = [7, 2, 7, 5, 2], [3, 4, 1, 9, 2]
    assert packed_order(np.array(slots), np.array(lengths)).tolist() == packed_order(slots, lengths).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_is_a_permutation_with_one_run_a_profile(seed: int) -> None:
    rng = np.random.default_rng(seed)
    slots, lengths = rng.integers(0, 9, 40), rng.integers(1, 20, 40)
    order = packed_order(slots.tolist(), lengths.tolist())
    assert sorted(order.tolist()) == list(range(40))
    batch = pack([text(*range(lengths[i])) for i in order], slots[order].tolist())
    assert batch.tiles is not None
    assert sorted(batch.tiles.runs[:, 0].tolist()) == sorted(set(slots.tolist()))


@pytest.mark.parametrize("width", [96, 1024, 1536, 3072, 5632])
@pytest.mark.parametrize("threads", [1, 2, 3, 5, 8, 16])
def test_few_rows_are_added_for_even_pieces(width: int, threads: int) -> None:
    for tokens in (1, 15, 16, 17, 63, 64, 65, 331, 1000, 4099):
        rows = even_rows(tokens, width, threads)
        assert max(tokens, 16) <= rows < max(tokens, 16) + 16 * threads


def test_on_many_threads_no_product_has_odd_rows() -> None:
    assert {even_rows(tokens, 1536, 12) % 4 for tokens in range(1, 500)} == {0}
    assert even_rows(17, 0, 12) == 20
    assert even_rows(17, 0, 8) == 17


@pytest.mark.parametrize("threads", [1, 2, 12, 16])
def test_a_product_of_even_rows_gives_each_row_the_same_bits_at_any_length(threads: int) -> None:
    torch.set_num_threads(threads)
    rows, weight = torch.randn(160, 64), torch.randn(48, 64)
    full = functional.linear(rows, weight)
    for tokens in range(1, 130):
        even = even_rows(tokens, 0, threads)
        assert torch.equal(functional.linear(rows[:even], weight)[:tokens], full[:tokens])


def test_real_shapes_on_two_threads_need_no_rows_at_all() -> None:
    for width in (1024, 1536, 3072, 8192):
        assert [even_rows(tokens, width, 2) for tokens in range(16, 999)] == list(range(16, 999))
    assert even_rows(3, 1536, 2) == 16


@pytest.mark.parametrize("width", [96, 100, 1024])
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_an_activation_of_even_rows_gives_each_row_the_same_bits_anywhere(width: int, threads: int) -> None:
    torch.set_num_threads(threads)
    rows = torch.randn(700, width, generator=torch.Generator().manual_seed(0))
    for activate in (functional.silu, lambda x: functional.gelu(x, approximate="tanh"), functional.gelu):
        piece = even_rows(16, width, threads)
        alone = torch.cat([activate(rows[at : at + piece].clone()) for at in range(0, 640, piece)])
        for tokens in range(17, 500, 37):
            even = even_rows(tokens, width, threads)
            assert torch.equal(activate(rows[:even].clone())[:tokens], alone[:tokens])
