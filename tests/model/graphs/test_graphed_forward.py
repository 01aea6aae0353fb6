"""Forwards over static inputs, by the Triton kernels: in their interpreter here, so without a graph around them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import Impl
from xpeft_server.model.batches.packing import PackedRows, packed_order
from xpeft_server.model.graphs import graphed_forward
from xpeft_server.model.graphs.graphed_forward import GraphedForward
from xpeft_server.model.graphs.placed_batch import BatchSize
from xpeft_server.model.lanes import HostLanes
from xpeft_server.model.packed_sequences import AttentionKernel

FAMILIES = ("roberta", "modernbert", "mistral")
BUCKETS = [BatchSize(16, 4), BatchSize(32, 8)]

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/model/test_gpu.py has the real graphs"),
    pytest.mark.usefixtures("quick_interpreter"),
]


class Bench(NamedTuple):
    """A forward with two buckets, and the classifier that answers without any."""

    crowd: Any
    forward: GraphedForward
    texts: list[Any]

    def pooled(self, wanted: list[tuple[int, int]], *, adapters: bool = True) -> list[Tensor] | None:
        """Vectors of (profile, text), in their order."""
        slots = np.array([int(self.crowd.slots[profile]) for profile, _ in wanted])
        texts = [self.texts[text] for _, text in wanted]
        order = packed_order(slots, [len(text) for text in texts])
        rows = PackedRows.of([texts[i] for i in order], first_position=self.crowd.classifier.plm.first_position)
        with torch.inference_mode():
            found = self.forward.pooled(rows, slots[order] if adapters else None)
        if found is None:
            return None
        return [found.vectors[int(place)].clone() for place in np.argsort(order)]

    def expected(self, wanted: list[tuple[int, int]], *, adapters: bool = True) -> list[Tensor]:
        classifier = self.crowd.classifier
        with torch.inference_mode():
            return [
                classifier._pooled([self.texts[text]], [int(self.crowd.slots[profile])] if adapters else None).vectors[
                    0
                ]
                for profile, text in wanted
            ]


@pytest.fixture(scope="module", params=FAMILIES)
def bench(lab: Any, request: pytest.FixtureRequest) -> Bench:
    plm = lab.plm(request.param)
    crowd = lab.crowd(plm, lab.bank(plm), 6)
    rng = np.random.default_rng(0)
    texts = [lab.text(rng, length, types=plm.family.token_types) for length in (3, 1, 8, 5, 9, 4, 2, 26)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphed_forward, "buckets_up_to", lambda tokens: BUCKETS)
        forward = GraphedForward(
            plm,
            crowd.classifier.buffers,
            crowd.bank.pooling,
            HostLanes(),
            tokens=32,
            attention=AttentionKernel.TRITON,
            impl=Impl.TRITON,
        )
    with torch.inference_mode():
        forward.capture()
        forward.capture(adapters=False)
    return Bench(crowd, forward, texts)


def test_vectors_are_those_of_each_text_alone(bench: Bench) -> None:
    for wanted in ([(0, 2), (1, 0), (2, 1), (0, 3)], [(n % 6, n % 7) for n in range(7)], [(3, 7)]):
        found = bench.pooled(wanted)
        assert found is not None
        for each, expected in zip(found, bench.expected(wanted), strict=True):
            torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)


def test_the_bare_plm_has_graphs_too(bench: Bench) -> None:
    wanted = [(0, 2), (1, 0), (2, 5)]
    bare, adapted = bench.pooled(wanted, adapters=False), bench.pooled(wanted)
    assert bare is not None
    assert adapted is not None
    for each, expected, other in zip(bare, bench.expected(wanted, adapters=False), adapted, strict=True):
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-4)
        assert (each - other).abs().max() > 0.01


def test_nothing_of_the_batch_before_is_left(bench: Bench) -> None:
    small = [(1, 0), (4, 3)]
    before = bench.pooled(small)
    large = bench.pooled([(n % 6, n % 7) for n in range(7)])
    again = bench.pooled(small)
    assert before is not None
    assert again is not None
    assert large is not None
    assert [each.tolist() for each in again] == [each.tolist() for each in before]


def test_what_no_bucket_holds_is_left_to_others(bench: Bench) -> None:
    assert bench.pooled([(0, 7), (1, 2)]) is None  # 34 tokens
    assert bench.pooled([(0, 1)] * 9) is None  # 9 sequences
    assert bench.pooled([(0, 1)] * 8) is not None


def test_facts_count_what_was_captured(bench: Bench) -> None:
    assert (bench.forward.facts.graphs, bench.forward.facts.tokens) == (2, 32)


def test_a_device_without_room_has_fewer_graphs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, whole = bench.forward, GraphedForward._prepared
    monkeypatch.setattr(forward._graphs[True], "_captured", {})

    def prepared(self: GraphedForward, bucket: BatchSize, adapters: bool) -> Any:
        if bucket.tokens > 16:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(self, bucket, adapters)

    monkeypatch.setattr(GraphedForward, "_prepared", prepared)
    with torch.inference_mode():
        forward.capture()
    assert (forward.facts.graphs, forward.facts.tokens) == (1, 16)
    assert bench.pooled([(0, 2), (1, 0)]) is not None
    assert bench.pooled([(0, 2), (1, 4)]) is None  # 17 tokens
