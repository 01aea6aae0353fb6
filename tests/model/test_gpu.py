"""A GPU against the CPU: the classifier, the choice of tokens, steps over long contexts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xpeft_kernels import PlacedSteps, attend_cache, cut_steps, step_rows
from xpeft_kernels.attend_cache import SPAN
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.kv.arena import KvArena
from xpeft_server.model.kv.arena_step import ArenaStep, arena_tables, step_room
from xpeft_server.model.kv.attention import Run
from xpeft_server.model.kv.cache import KvShape
from xpeft_server.model.plm import load_plm
from xpeft_server.model.sampling.choice import Draw, choose_tokens, launch_choice
from xpeft_server.model.sampling.rule import SamplingRule
from xpeft_server.model.sampling.weights import token_weights

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    # What torch says once when it is asked to tell who waits for the device.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
]

FAMILIES = ("bert", "roberta", "modernbert", "distilbert", "gpt2", "llama", "qwen3", "mistral", "gemma")
PROFILES = 32


class Pair:
    """One crowd on CPU in float32 or float64, and the same on the GPU."""

    def __init__(self, lab: Any, family: str, dtype: torch.dtype, *, graph_tokens: int = 1024) -> None:
        plm = lab.plm(family)
        bank = lab.bank(plm)
        self.lab = lab
        self.cpu = lab.crowd(plm, bank, PROFILES)
        there = load_plm(str(lab._folder / family), device="cuda", dtype=dtype)
        self.classifier = Classifier(there, bank, slots=PROFILES + 3, head_rows=7 * PROFILES, graph_tokens=graph_tokens)
        self.classifier.warm_up()
        self.classifier.fill([self.cpu.fill(number) for number in range(PROFILES)])
        rng = np.random.default_rng(0)
        self.texts = [lab.text(rng, int(length)) for length in rng.integers(1, 40, PROFILES)]

    def inputs(self) -> list[ClassifierInput]:
        return [self.cpu.input(n, text) for n, text in enumerate(self.texts)]


def largest_difference(a: list[NDArray[np.float32]], b: list[NDArray[np.float32]]) -> float:
    return max(float(np.abs(x - y).max()) for x, y in zip(a, b, strict=True))


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    try:
        torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("graph_tokens", [0, 1024])
@pytest.mark.parametrize("family", FAMILIES)
def test_float32_is_that_of_the_cpu(lab: Any, family: str, graph_tokens: int) -> None:
    pair = Pair(lab, family, torch.float32, graph_tokens=graph_tokens)
    expected = pair.cpu.classifier.logits(pair.inputs())
    assert largest_difference(pair.classifier.logits(pair.inputs()), expected) < 1e-4
    assert (pair.classifier.graphs.graphs > 0) is (graph_tokens > 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_is_as_far_from_the_truth_as_on_the_cpu(lab: Any, family: str) -> None:
    pair = Pair(lab, family, torch.bfloat16)
    true = pair.cpu.classifier.logits(pair.inputs())
    halved = lab.crowd(lab.plm(family, torch.bfloat16), pair.cpu.bank, PROFILES)
    own = largest_difference(halved.classifier.logits(pair.inputs()), true)
    assert largest_difference(pair.classifier.logits(pair.inputs()), true) <= 2 * own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_launch_and_a_fill_wait_for_nothing(lab: Any, dtype: torch.dtype) -> None:
    pair = Pair(lab, "bert", dtype)
    pair.classifier.logits(pair.inputs())
    with waiting_is_an_error():
        pair.classifier.fill([pair.cpu.fill(3)], overlap=True)
        launched = [pair.classifier.launch(pair.inputs()) for _ in range(2)]
    assert len(launched[1].result()) == PROFILES


@pytest.mark.parametrize("graph_tokens", [0, 1024])
def test_no_kernel_is_compiled_while_somebody_waits(
    lab: Any, monkeypatch: pytest.MonkeyPatch, graph_tokens: int
) -> None:
    import triton

    from xpeft_kernels.aggregate import kernel as aggregate
    from xpeft_kernels.apply import kernel as apply
    from xpeft_kernels.attend import kernel as attend
    from xpeft_kernels.heads import kernel as heads
    from xpeft_kernels.pool import kernel as pool

    compiled: list[str] = []
    monkeypatch.setattr(
        triton.knobs.runtime, "jit_post_compile_hook", lambda *_, **told: compiled.append(str(told["repr"]))
    )
    for kernel in (
        aggregate._aggregate_adapters_kernel,
        apply._apply_adapters_kernel,
        attend._attend_packed_kernel,
        heads._apply_heads_kernel,
        pool._mean_rows_kernel,
    ):
        kernel.device_caches.clear()
    plm = load_plm(lab.plm("bert").name, device="cuda", dtype=torch.bfloat16)
    crowd = lab.crowd(lab.plm("bert"), lab.bank(plm), PROFILES)
    classifier = Classifier(plm, crowd.bank, slots=PROFILES + 3, head_rows=7 * PROFILES, graph_tokens=graph_tokens)
    classifier.warm_up()
    assert {each.split("[")[0] for each in compiled} >= {"_aggregate_adapters_kernel", "_apply_heads_kernel"}
    compiled.clear()
    hard, soft = ([n for n in range(PROFILES) if n % 2 == odd] for odd in (0, 1))
    for some in (hard[:1], soft[:1], hard[:5], soft, [*hard, *soft]):
        classifier.fill([crowd.fill(n) for n in some], overlap=True)
    rng = np.random.default_rng(0)
    for count in (1, 2, 16, PROFILES):
        classifier.launch([crowd.input(n, lab.text(rng, 1 + n)) for n in range(count)]).result()
    assert compiled == []


def test_two_batches_in_flight_do_not_mix(lab: Any) -> None:
    pair = Pair(lab, "bert", torch.float32)
    inputs = pair.inputs()
    halves = [inputs[:16], inputs[16:]]
    alone = [pair.classifier.logits(half) for half in halves]
    for _ in range(50):
        launched = [pair.classifier.launch(half) for half in halves]
        for found, expected in zip(launched, alone, strict=True):
            assert largest_difference(found.result(), expected) == 0


def test_a_slot_is_filled_anew_behind_the_batch_that_reads_it(lab: Any) -> None:
    pair = Pair(lab, "bert", torch.float32)
    text, slot = pair.texts[0], int(pair.cpu.slots[1])
    own = [pair.cpu.fill(n)._replace(slot=slot, head_rows=np.arange(7)[: len(pair.cpu.profiles[n].labels or ())])
           for n in (1, 5)]  # fmt: skip
    alone = []
    for fill in own:
        pair.classifier.fill([fill])
        alone.append(pair.classifier.logits([ClassifierInput(text, slot, fill.head_rows)])[0])
    launched = []
    for turn in range(40):
        fill = own[turn % 2]
        pair.classifier.fill([fill], overlap=True)
        launched.append(pair.classifier.launch([ClassifierInput(text, slot, fill.head_rows)]))
    for turn, each in enumerate(launched):
        assert np.array_equal(each.result()[0], alone[turn % 2])


def test_a_request_among_strangers(lab: Any) -> None:
    """Whether bits agree is a matter of cuBLAS, which chooses by the number of rows; our own kernels' always do."""
    pair = Pair(lab, "bert", torch.float32)
    together = pair.classifier.logits(pair.inputs())
    alone = [pair.classifier.logits([each])[0] for each in pair.inputs()]
    assert largest_difference(together, alone) < 1e-5


RULES = [
    SamplingRule(penalty, temperature, top_k, top_p, min_p, logprobs)
    for penalty, temperature, top_k, top_p, min_p, logprobs in product(
        (1.0, 1.2), (0.0, 0.8), (0, 50), (1.0, 0.9), (0.0, 0.05), (None, 3)
    )
]


@pytest.mark.parametrize("rows", [RULES, *([rule] * 3 for rule in RULES)], ids=lambda rows: f"{len(rows)} rows")
def test_tokens_are_chosen_without_waiting_whatever_the_rules(rows: list[SamplingRule]) -> None:
    logits = torch.randn(len(rows), 50_001, generator=torch.Generator().manual_seed(0)) * 3
    there = logits.cuda()
    draws = [Draw(rule, i, i, np.arange(0, 50_001, 7)) for i, rule in enumerate(rows)]
    launch_choice(there, draws).result()
    with waiting_is_an_error():
        launched = launch_choice(there, draws)
    found, expected = launched.result(), choose_tokens(logits, draws)
    # A draw may differ where its number lies within float64's rounding of an edge, which these do not.
    assert found.ids.tolist() == expected.ids.tolist()
    assert [each and each.ids.tolist() for each in found.logprobs] == [
        each and each.ids.tolist() for each in expected.logprobs
    ]


def test_what_a_cut_keeps_is_what_the_cpu_keeps() -> None:
    rules = [rule for rule in RULES if rule.temperature]
    logits = (torch.randn(len(rules), 8192, generator=torch.Generator().manual_seed(1)) * 3).bfloat16().float()
    kept = [token_weights(each, each.amax(-1), rules).cpu() > 0 for each in (logits, logits.cuda())]
    assert torch.equal(*kept)


@pytest.mark.parametrize("window", [None, 700])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(8, 2, 64), (8, 1, 128), (4, 4, 80), (8, 1, 256)])
def test_a_long_contexts_bits_do_not_depend_on_how_many_programs_share_it(
    heads: int, kv_heads: int, size: int, dtype: torch.dtype, window: int | None
) -> None:
    lengths = np.array([1, 255, 256, 257, 511, 513, 2000, 30_000])
    runs = np.stack([np.arange(8), np.ones(8, int), np.cumsum(lengths) - lengths, lengths - 1], axis=1)
    query = torch.randn(8, heads, size, device="cuda", dtype=dtype)
    keys, values = torch.randn(2, int(lengths.sum()), kv_heads, size, device="cuda", dtype=dtype)
    rows = step_rows(heads // kv_heads, size, dtype.itemsize)
    found = []
    for spare in (0, 1, 5, 40, 1000):
        pieces, joins, parts = cut_steps(runs, rows, spare=spare)
        steps = PlacedSteps(torch.from_numpy(pieces).cuda(), torch.from_numpy(joins).cuda(), parts)
        found.append(attend_cache(query, keys, values, steps, scale=size**-0.5, window=window))
    assert found[0].isfinite().all()
    assert all(torch.equal(each, found[0]) for each in found)


def test_a_graph_of_a_step_has_room_for_long_contexts_and_for_short_ones() -> None:
    shape = KvShape(1, 2, 64, torch.bfloat16, torch.device("cuda"), group=4)
    arena = KvArena(shape, tokens=16 * SPAN, context=8 * SPAN)
    arena.states.normal_()
    rows = [arena.claim(length) for length in (8 * SPAN, 3 * SPAN, 10, 64)]
    room = step_room(arena, 4)
    places = torch.full((4,), arena.scratch, device="cuda")
    pieces, joins = (
        torch.zeros(count, size, dtype=torch.int32, device="cuda")
        for count, size in ((room.pieces, 7), (room.joins, 3))
    )
    step = ArenaStep(arena, places, PlacedSteps(pieces, joins, room.parts))
    tensors = [torch.randn(1, count, 4, 64, device="cuda", dtype=torch.bfloat16) for count in (8, 2, 2)]
    step.attend(0, *tensors, None, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step.attend(0, *tensors, None, None)
    for pasts in ((8 * SPAN - 1, 3 * SPAN - 1, 9, 63), (0, 5, 7, 40), (5 * SPAN, SPAN, 0, 1)):
        runs = [Run(row, number, 1, past) for number, (row, past) in enumerate(zip(rows, pasts, strict=True))]
        tables = arena_tables(arena, runs, 4)
        places.copy_(torch.from_numpy(tables.places))
        for table, values in ((pieces, tables.pieces), (joins, tables.joins)):
            table.zero_()
            table[: len(values)] = torch.from_numpy(values)
        graph.replay()
        expected = ArenaStep.of(arena, runs, 4).attend(0, *tensors, None, None)
        assert torch.equal(out, expected)
