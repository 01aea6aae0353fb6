from __future__ import annotations

import pytest

from xpeft_server.model.graphs.buckets import buckets_up_to, smallest_that_holds, steps_up_to
from xpeft_server.model.graphs.placed_batch import BatchSize


@pytest.mark.parametrize("tokens", [16, 64, 65, 1000, 2048, 8192, 10_000])
def test_buckets_end_with_the_largest_batch(tokens: int) -> None:
    buckets = buckets_up_to(tokens)
    assert buckets[-1].tokens == tokens
    assert [each.tokens for each in buckets] == sorted({each.tokens for each in buckets})


def test_a_batch_is_filled_up_by_an_eighth_or_64_tokens_at_the_most() -> None:
    buckets = buckets_up_to(8192)
    for tokens in range(1, 8193):
        bucket = smallest_that_holds(buckets, tokens, 1)
        assert bucket is not None
        assert 0 <= bucket.tokens - tokens < max(64, tokens / 8)


def test_there_are_few_of_them() -> None:
    assert len(buckets_up_to(8192)) == 40


def test_many_short_texts_go_into_a_larger_bucket_or_none() -> None:
    buckets = [BatchSize(64, 8), BatchSize(128, 16)]
    assert smallest_that_holds(buckets, 60, 8) == BatchSize(64, 8)
    assert smallest_that_holds(buckets, 60, 9) == BatchSize(128, 16)
    assert smallest_that_holds(buckets, 129, 1) is None
    assert smallest_that_holds(buckets, 60, 17) is None


def test_steps_are_few_and_none_is_filled_up_by_much() -> None:
    assert steps_up_to(3) == [1, 2, 3]
    sizes = steps_up_to(256)
    assert sizes == [1, 2, 4, 8, 16, 32, 48, 64, 80, 96, 112, 128, 144, 160, 176, 192, 208, 224, 240, 256]
    assert steps_up_to(512)[-3:] == [448, 480, 512]
