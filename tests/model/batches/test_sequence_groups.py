from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from xpeft_server.model.batches.sequence_groups import SequenceGroups

LENGTHS = {
    "a single one": [7],
    "one token": [1],
    "all equal": [5] * 40,
    "one long among many short": [*[3] * 50, 512, *[4] * 50],
    "every length": list(range(1, 130)),
    "every length, shuffled": np.random.default_rng(0).permutation(np.arange(1, 130)).tolist(),
    "zig-zag": [2, 90] * 20,
    "ragged": np.random.default_rng(1).integers(1, 64, 100).tolist(),
    "just within a quarter": [8, 10, 8, 10],
    "just beyond a quarter": [8, 11, 8, 11],
}


def groups_of(lengths: list[int]) -> SequenceGroups:
    return SequenceGroups.of(np.array(lengths, np.int64))


@pytest.fixture(params=LENGTHS)
def lengths(request: pytest.FixtureRequest) -> list[int]:
    return LENGTHS[request.param]


def test_neighbours_of_equal_length_are_a_group() -> None:
    assert groups_of([3, 3, 3, 2, 3, 3]) == ((3, 3), (1, 2), (2, 3))


def test_groups_say_every_length_in_order(lengths: list[int]) -> None:
    groups = groups_of(lengths)
    assert [length for count, length in groups for _ in range(count)] == lengths
    assert all(one[1] != other[1] for one, other in pairwise(groups))


def test_buckets_cover_every_row_exactly_once(lengths: list[int]) -> None:
    padding, buckets = groups_of(lengths).buckets
    real = torch.cat([bucket.real.flatten() for bucket in buckets])
    assert padding.gather[real].sort().values.tolist() == list(range(sum(lengths)))
    assert torch.equal(padding.gather[padding.scatter], torch.arange(sum(lengths)))
    assert real[padding.scatter].all()
    assert real.numel() == padding.gather.numel() == sum(bucket.sequences * bucket.length for bucket in buckets)


def test_a_line_of_a_bucket_is_one_whole_sequence_in_order_padding_too(lengths: list[int]) -> None:
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    padding, buckets = groups_of(lengths).buckets
    seen = []
    for bucket, rows in zip(buckets, padding.gather.split([each.real.numel() for each in buckets]), strict=True):
        for line, real in zip(rows.view(bucket.sequences, bucket.length), bucket.real, strict=True):
            (sequence,) = owner[line].unique().tolist()
            assert line[real].tolist() == (owner == sequence).nonzero()[:, 0].tolist()
            assert real.tolist() == sorted(real.tolist(), reverse=True)
            seen.append(sequence)
    assert sorted(seen) == list(range(len(lengths)))


def test_no_sequence_is_padded_by_more_than_a_quarter(lengths: list[int]) -> None:
    for bucket in groups_of(lengths).buckets.buckets:
        own = bucket.real.sum(1)
        assert own.max() == bucket.length
        assert (bucket.length <= 1.25 * own).all()


def test_buckets_are_few() -> None:
    counts = {name: len(groups_of(lengths).buckets.buckets) for name, lengths in LENGTHS.items()}
    assert counts["all equal"] == counts["just within a quarter"] == 1
    assert counts["zig-zag"] == counts["just beyond a quarter"] == 2
    assert counts["one long among many short"] == 3
    assert counts["every length"] == counts["every length, shuffled"] <= 20


def test_they_are_made_once() -> None:
    groups = groups_of([3, 4, 90])
    assert groups.buckets is groups.buckets
