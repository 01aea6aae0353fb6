"""Steps of generation over static inputs, by the Triton kernels: in their interpreter here, so without a graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_kernels import Impl
from xpeft_server.model.batches.step_packing import Chunk, StepRows, pack_step
from xpeft_server.model.decoder import kv_shape
from xpeft_server.model.graphs.graphed_step import GraphedStep
from xpeft_server.model.graphs.placed_step import StaticStep
from xpeft_server.model.kv.arena import ArenaRow, KvArena
from xpeft_server.model.kv.attention import Run
from xpeft_server.model.kv.cache import KvCache
from xpeft_server.model.slots import SlotAdapters

FAMILIES = ("gpt2", "mistral")
PROMPTS = (5, 1, 12, 3)
STEPS = ((5, 1, 0, 0), (1, 1, 7, 0), (1, 1, 5, 3), (1, 1, 1, 1), (0, 1, 1, 1))
"""Tokens that each sequence reads or writes in each step."""

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="tests/model/test_gpu.py has the real graphs"),
    pytest.mark.usefixtures("quick_interpreter"),
]


class Story(NamedTuple):
    """Four sequences of four profiles, in a store of keys and values, or in two."""

    crowd: Any
    ids: list[np.ndarray[Any, np.dtype[np.int32]]]

    def chunks(self, rows: list[Any]) -> Iterator[list[Chunk[Any]]]:
        past = [0] * len(rows)
        for step in STEPS:
            made = []
            for n, count in enumerate(step):
                if count:
                    ids = self.ids[n][past[n] : past[n] + count]
                    made.append(Chunk(ids, past[n], rows[n], int(self.crowd.slots[n]), asks=past[n] + count >= 5))
                    past[n] += count
            yield made


@pytest.fixture(scope="module", params=FAMILIES)
def story(lab: Any, request: pytest.FixtureRequest) -> Story:
    plm = lab.plm(request.param)
    rng = np.random.default_rng(0)
    return Story(lab.crowd(plm, lab.bank(plm), 4), [lab.text(rng, 20).ids for _ in PROMPTS])


def rows_in(store: Any) -> list[Any]:
    return [store.claim(20) for _ in PROMPTS]


def by_operators(story: Story) -> list[Tensor]:
    classifier = story.crowd.classifier
    plm, store = classifier.plm, KvCache(kv_shape(classifier.plm), tokens=512, context=64)
    found = []
    for chunks in story.chunks(rows_in(store)):
        rows = StepRows.of(chunks)
        batch = pack_step(rows, store, feed_forward=plm.feed_forward)
        adapters = SlotAdapters(classifier.buffers.adapters, batch.tiles, classifier.buffers.form)
        found.append(plm.forward(batch, adapters)[torch.from_numpy(rows.asking)])
    return found


def graphed(story: Story, arena: KvArena) -> GraphedStep:
    classifier = story.crowd.classifier
    return GraphedStep(classifier.plm, classifier.buffers, arena, tokens=16, impl=Impl.TRITON)


@torch.inference_mode()
def test_steps_of_prompts_and_answers_are_those_of_the_operators(story: Story) -> None:
    arena = KvArena(kv_shape(story.crowd.classifier.plm), tokens=512, context=64)
    # What nobody has written is not read, be it what the graphs leave there when they are captured.
    arena.states.fill_(torch.nan)
    forward = graphed(story, arena)
    forward.capture()
    assert (forward.facts.graphs, forward.facts.tokens) == (5, 16)
    for chunks, expected in zip(story.chunks(rows_in(arena)), by_operators(story), strict=True):
        rows = StepRows.of(chunks)
        hidden = forward.hidden(rows)
        assert hidden is not None
        torch.testing.assert_close(hidden[torch.from_numpy(rows.asking)], expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_a_step_that_no_graph_holds_is_left_to_others(story: Story) -> None:
    arena = KvArena(kv_shape(story.crowd.classifier.plm), tokens=512, context=64)
    forward = graphed(story, arena)
    row = arena.claim(20)
    step = StepRows.of([Chunk(story.ids[0][:17], 0, row, 0, asks=True)])
    assert forward.hidden(step) is None
    forward.capture()
    assert forward.hidden(step) is None


def test_a_static_step_holds_what_a_step_has_and_nothing_of_the_one_before(story: Story) -> None:
    classifier = story.crowd.classifier
    arena = KvArena(kv_shape(classifier.plm), tokens=512, context=64)
    memory = torch.full((StaticStep.size_of(8, arena),), 255, dtype=torch.uint8)
    static = StaticStep(8, 16, arena, memory, classifier.buffers.lanes)
    first, second = (arena.claim(20) for _ in range(2))
    assert isinstance(first, ArenaRow)
    assert isinstance(second, ArenaRow)
    ids = np.arange(8)
    lengths = np.array([5, 3])
    full = StepRows(ids, ids, np.array([2, 1]), lengths, ids[:0], [Run(first, 0, 5, 0), Run(second, 5, 3, 10)])
    static.load(static.stage(full))
    one = StepRows(np.array([7]), np.array([13]), np.array([1]), np.ones(1, int), ids[:0], [Run(second, 0, 1, 13)])
    static.load(static.stage(one))
    step = static.step
    assert step.input_ids.tolist() == [[7] + [0] * 7]
    assert step.position_ids.tolist() == [[13] + [0] * 7]
    assert step.groups._places.tolist() == [second.start + 13] + [arena.scratch] * 7
    assert step.groups._steps.pieces.tolist() == [[0, 1, second.start, 13, 0, 0, 0]] + [[0] * 7] * 7
    assert step.groups._steps.joins.tolist() == []
    assert step.tiles.table.tolist() == [[1, 0, 1]] + [[0] * 3] * 7


def test_a_static_step_has_room_for_long_contexts_and_nothing_of_them_in_the_step_after(story: Story) -> None:
    classifier = story.crowd.classifier
    arena = KvArena(kv_shape(classifier.plm), tokens=2048, context=1024)
    memory = torch.full((StaticStep.size_of(2, arena),), 255, dtype=torch.uint8)
    static = StaticStep(2, 16, arena, memory, classifier.buffers.lanes)
    long, longer = (arena.claim(tokens) for tokens in (512, 1024))
    assert isinstance(long, ArenaRow)
    assert isinstance(longer, ArenaRow)
    ids, ones = np.arange(2), np.ones(2, np.int64)
    static.load(static.stage(StepRows(ids, ids, ids, ones, ids, [Run(long, 0, 1, 256), Run(longer, 1, 1, 1023)])))
    steps = static.step.groups._steps
    assert steps.pieces[:, 4].tolist() == [0, 1, 0, 1, 2, 3, 0, 0]
    assert (steps.joins.tolist(), steps.parts) == ([[0, 0, 256], [1, 2, 1023]], 8)
    static.load(static.stage(StepRows(ids[:1], ids[:1], ids[:1], ones[:1], ids[:1], [Run(long, 0, 1, 9)])))
    assert steps.pieces.tolist() == [[0, 1, long.start, 9, 0, 0, 0]] + [[0] * 7] * 7
    assert steps.joins.tolist() == [[0] * 3] * 2
