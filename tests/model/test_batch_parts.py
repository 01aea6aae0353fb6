"""Parts of a batch on threads of their own: as even as texts allow, and with the bits that a text has alone."""

from __future__ import annotations

import platform
import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xpeft_server.model import classifier as classifier_module
from xpeft_server.model.batch_parts import LEAST_TOKENS, MOST_UNEVEN, Part, PartThreads
from xpeft_server.model.families import FAMILIES
from xpeft_server.model.plm import load_plm
from xpeft_server.model.prepacked import prepack

THREADS = 2

PREPACKED = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="oneDNN has no prepacked products here",
)


@pytest.fixture(scope="module")
def three() -> PartThreads:
    return threads_for(3)


def threads_for(count: int) -> PartThreads:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return PartThreads()
    finally:
        torch.set_num_threads(before)


@given(st.lists(st.integers(1, 512), min_size=1, max_size=80))
def test_parts_cover_all_texts_in_order_and_are_even_or_there_are_none(three: PartThreads, lengths: list[int]) -> None:
    parts = three.cut(lengths)
    if not parts:
        return
    assert len(parts) == three.count
    assert parts[0].begin == 0
    assert parts[-1].end == len(lengths)
    assert [each.end for each in parts[:-1]] == [each.begin for each in parts[1:]]
    tokens = [sum(lengths[each.begin : each.end]) for each in parts]
    assert min(tokens) >= LEAST_TOKENS
    assert max(tokens) <= MOST_UNEVEN * sum(lengths) / three.count


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([64, 64, 64], [Part(0, 1), Part(1, 2), Part(2, 3)]),
        ([20] * 12, [Part(0, 4), Part(4, 8), Part(8, 12)]),
        ([10] * 30 + [100] * 6, [Part(0, 30), Part(30, 33), Part(33, 36)]),
        ([21] * 9, []),  # 63 tokens each
        ([500, 500], []),  # a thread would have nothing
        ([100, 100, 100, 150], []),  # two wait for the third
    ],
)
def test_who_gets_what(three: PartThreads, lengths: list[int], parts: list[Part]) -> None:
    assert three.cut(lengths) == parts


def test_every_part_has_a_thread_of_its_own_that_takes_no_other(three: PartThreads) -> None:
    parts = [Part(0, 1), Part(1, 3), Part(3, 4)]
    all_there = threading.Barrier(3, timeout=30)

    def facts(part: Part) -> tuple[Part, int, bool, int]:
        all_there.wait()
        return part, torch.get_num_threads(), torch.is_inference_mode_enabled(), threading.get_ident()

    found = three.compute(parts, facts)
    assert [each[:3] for each in found] == [(part, 1, True) for part in parts]
    assert len({each[3] for each in found}) == 3


def test_whoever_makes_them_keeps_its_number_of_threads() -> None:
    torch.set_num_threads(4)
    PartThreads()
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert (torch.get_num_threads(), found) == (4, [4])


def test_a_part_that_fails_is_told_when_no_other_runs_any_more(three: PartThreads) -> None:
    running = [0]

    def fail_first(part: Part) -> None:
        if part.begin == 0:
            raise RuntimeError("no memory for this part")
        running[0] += 1
        time.sleep(0.2)
        running[0] -= 1

    with pytest.raises(RuntimeError, match="no memory for this part"):
        three.compute([Part(0, 1), Part(1, 2)], fail_first)
    assert running == [0]
    assert three.compute([Part(0, 1)], lambda part: part.end) == [1]


def crowd_in_parts(lab: Any, family: str, dtype: torch.dtype) -> Any:
    plm = load_plm(lab.plm(family).name, dtype=dtype)
    prepack(plm)
    return lab.crowd(plm, lab.bank(plm), 24)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts each batch was computed in, where it was in parts."""
    counts: list[int] = []

    class Counting(PartThreads):
        def compute(self, parts: Any, result_of: Any) -> Any:
            counts.append(len(parts))
            return super().compute(parts, result_of)

    monkeypatch.setattr(classifier_module, "PartThreads", Counting)
    return counts


@PREPACKED
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_has_the_bits_that_it_has_alone(
    lab: Any, computed: list[int], family: str, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this CPU has no bfloat16 products")
    torch.set_num_threads(THREADS)
    crowd = crowd_in_parts(lab, family, dtype)
    rng = np.random.default_rng(3)
    texts = [lab.text(rng, int(length)) for length in rng.integers(1, 32, 24)]
    inputs = [crowd.input(number, text) for number, text in enumerate(texts)]
    together = crowd.classifier.logits(inputs)
    assert computed == [THREADS]
    alone = [crowd.classifier.logits([each])[0] for each in inputs]
    assert computed == [THREADS]
    assert [each.tobytes() for each in together] == [each.tobytes() for each in alone]
    assert len({each.tobytes() for each in together}) == len(texts)


@PREPACKED
def test_the_bare_model_is_computed_in_parts_too(lab: Any, computed: list[int]) -> None:
    torch.set_num_threads(THREADS)
    classifier = crowd_in_parts(lab, "bert", torch.float32).classifier
    rng = np.random.default_rng(4)
    texts = [lab.text(rng, 20) for _ in range(8)]
    together = classifier.bare(texts).result()
    assert computed == [THREADS]
    assert [each.tobytes() for each in together] == [classifier.bare([text]).result()[0].tobytes() for text in texts]


def test_with_one_thread_or_products_in_another_order_there_are_no_parts(lab: Any, computed: list[int]) -> None:
    texts = [lab.text(np.random.default_rng(4), 20) for _ in range(8)]
    torch.set_num_threads(THREADS)
    plain = lab.plm("bert")
    lab.crowd(plain, lab.bank(plain), 1).classifier.bare(texts)
    torch.set_num_threads(1)
    crowd_in_parts(lab, "bert", torch.float32).classifier.bare(texts)
    assert computed == []


@PREPACKED
def test_a_batch_that_a_profiler_records_is_computed_by_the_thread_that_it_records(
    lab: Any, computed: list[int]
) -> None:
    torch.set_num_threads(THREADS)
    classifier = crowd_in_parts(lab, "bert", torch.float32).classifier
    texts = [lab.text(np.random.default_rng(4), 20) for _ in range(8)]
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        recorded = classifier.bare(texts).result()
    assert computed == []
    assert "xpeft::forward" in {each.key for each in trace.key_averages()}
    assert [each.tobytes() for each in classifier.bare(texts).result()] == [each.tobytes() for each in recorded]
    assert computed == [THREADS]
