from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from xpeft_kernels import PlacedSequences, query_rows
from xpeft_server.model.errors import ModelUnusable
from xpeft_server.model.graphs.attention_choice import choose_attention, fastest_attention
from xpeft_server.model.graphs.buckets import buckets_up_to
from xpeft_server.model.graphs.placed_batch import BatchSize
from xpeft_server.model.lanes import HostLanes, Mark
from xpeft_server.model.packed_sequences import AttentionKernel, PackedSequences
from xpeft_server.model.plm import Plm

OURS, VARLEN = AttentionKernel.OURS, AttentionKernel.VARLEN
Takes = dict[AttentionKernel, Mapping[int, float] | Exception]
SMALL, LARGE = BatchSize(256, 32), BatchSize(1024, 128)


class Moment:
    passed = True

    def __init__(self, at: float) -> None:
        self.at = at

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, Moment)
        return self.at - earlier.at


class Clock(HostLanes):
    """Time passes only where attention says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.kept: list[bool] = []

    def mark(self) -> Mark:
        return Moment(self.now)

    def graph(self, run: Callable[[], None], *, kept: bool = True) -> Callable[[], None]:
        self.kept.append(kept)
        return run


@pytest.fixture
def plm(lab: Any) -> Plm:
    made: Plm = lab.plm("mistral")
    return made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def takes() -> Takes:
    """Seconds of a call by tokens, or why there is none."""
    return {OURS: {256: 1.0, 1024: 8.0}, VARLEN: {256: 2.0, 1024: 2.0}}


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch, clock: Clock, takes: Takes) -> list[PackedSequences]:
    """What was attended to."""
    seen: list[PackedSequences] = []

    def attend(self: PackedSequences, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        seconds = takes[self._kernel]
        if isinstance(seconds, Exception):
            raise seconds
        clock.now += seconds[query.shape[2]]
        seen.append(self)
        return query

    monkeypatch.setattr(PackedSequences, "attend", attend)
    return seen


def test_what_is_timed_is_what_graphs_launch(plm: Plm, clock: Clock, tried: list[PackedSequences]) -> None:
    """As many places as a bucket has, most of them empty, and the longest text that the model takes."""
    fastest_attention(plm, clock, [SMALL, LARGE])
    rows = query_rows(plm.attention_shape.size, plm.dtype.itemsize)
    for bucket in (SMALL, LARGE):
        of_it = [each for each in tried if each._bounds is not None and each._bounds.numel() == 1 + bucket.sequences]
        assert {each._kernel for each in of_it} == {OURS, VARLEN}
        for each in of_it:
            full = list(range(0, bucket.tokens + 1, 64))
            assert each._bounds is not None
            assert each._bounds.tolist() == full + [bucket.tokens] * (1 + bucket.sequences - len(full))
            assert isinstance(each._sequences, PlacedSequences)
            table = each._sequences.pieces(rows)
            assert table.shape == (bucket.tokens // rows + bucket.sequences, 3)
            assert table[:, 1].tolist() == [64] * (bucket.tokens // rows) + [0] * bucket.sequences
            assert each._longest == plm.tokenizer.limit
    assert clock.kept == [False] * 4


@pytest.mark.parametrize(
    ("ours", "chosen"),
    [({256: 1.0, 1024: 8.0}, VARLEN), ({256: 1.0, 1024: 5.9}, OURS), ({256: 3.0, 1024: 1.0}, VARLEN)],
)
@pytest.mark.usefixtures("tried")
def test_the_faster_one_over_all_sizes_is_chosen(
    plm: Plm, clock: Clock, takes: Takes, ours: dict[int, float], chosen: AttentionKernel
) -> None:
    takes[OURS] = ours
    assert fastest_attention(plm, clock, [SMALL, LARGE]) is chosen


@pytest.mark.usefixtures("tried")
def test_one_that_cannot_be_had_is_not_chosen(plm: Plm, clock: Clock, takes: Takes) -> None:
    takes[VARLEN] = NotImplementedError("no kernel image")
    assert fastest_attention(plm, clock, [SMALL, LARGE]) is OURS
    takes[OURS] = RuntimeError("Triton Error [CUDA]: device kernel image is invalid")
    with pytest.raises(ModelUnusable, match="no kernel for attention"):
        fastest_attention(plm, clock, [SMALL])


def test_a_batch_may_be_smaller_than_one_such_text(
    lab: Any, clock: Clock, takes: Takes, tried: list[PackedSequences]
) -> None:
    takes |= {OURS: {40: 1.0}, VARLEN: {40: 1.0}}
    fastest_attention(lab.plm("bert"), clock, [BatchSize(40, 5)])
    assert {tuple(each._bounds.tolist()) for each in tried if each._bounds is not None} == {(0, 40, 40, 40, 40, 40)}


@pytest.mark.parametrize("tokens", [64, 2048, 3000, 8192, 10_000])
def test_the_sizes_that_are_tried_have_graphs(monkeypatch: pytest.MonkeyPatch, plm: Plm, tokens: int) -> None:
    asked: list[list[BatchSize]] = []
    module = "xpeft_server.model.graphs.attention_choice"
    monkeypatch.setattr(f"{module}.fastest_attention", lambda plm, lanes, buckets: asked.append(buckets))

    class OnGpu:
        device, dtype = torch.device("cuda"), torch.bfloat16

    choose_attention(OnGpu(), HostLanes(), tokens=tokens)  # type: ignore[arg-type]
    (buckets,) = asked
    assert set(buckets) <= set(buckets_up_to(tokens))
    assert [each.tokens for each in buckets] == sorted({min(tokens, 2048), min(tokens, 8192)})


def test_in_float32_and_on_cpu_there_is_only_ours(plm: Plm) -> None:
    assert choose_attention(plm, HostLanes(), tokens=64) is OURS
