"""Batch composition does not matter: bit for bit, in float32 on CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from xpeft_server.model.batches import packing
from xpeft_server.model.slots import SlotFill

SIZES = (1, 2, 3, 5, 31, 32, 64)
POPULARITIES = ("distinct", "uniform", "zipf", "identical")
EDGES = (1, 2, 3, 5, 11, 12, 13, 15, 16, 17, 31, 33, 63, 64, 65, 79)
MODELS = ("minilm", "mistral", "modernbert")

Request = tuple[int, int]
"""Profile and text of a request, as places in the crowd and in the texts."""


class Served:
    """A model with a crowd of 64 profiles and 64 texts, from one token to the limit."""

    def __init__(self, lab: Any, model: str) -> None:
        self.plm = lab.plm(model)
        width = 48 if model == "minilm" else 8
        self.bank = lab.bank(self.plm, width=width, biases=model == "mistral")
        self.crowd = lab.crowd(self.plm, self.bank, 64)
        rng = np.random.default_rng(0)
        lengths = [*EDGES, self.plm.tokenizer.limit, *rng.integers(1, 32, 64 - len(EDGES) - 1)]
        self.texts = [lab.text(rng, int(length)) for length in rng.permutation(lengths)]
        self._alone: dict[Request, NDArray[np.float32]] = {}

    def together(self, requests: list[Request]) -> list[NDArray[np.float32]]:
        inputs = [self.crowd.input(profile, self.texts[text]) for profile, text in requests]
        results: list[NDArray[np.float32]] = self.crowd.classifier.logits(inputs)
        return results

    def alone(self, request: Request) -> NDArray[np.float32]:
        if request not in self._alone:
            self._alone[request] = self.together([request])[0]
        return self._alone[request]

    def changed_by_company(self, requests: list[Request]) -> list[Request]:
        """Requests whose logits beside the others are not, bit for bit, their logits alone."""
        together = self.together(requests)
        assert all(np.isfinite(logits).all() for logits in together)
        return [
            request
            for request, logits in zip(requests, together, strict=True)
            if logits.tobytes() != self.alone(request).tobytes()
        ]


def popular(popularity: str, rng: np.random.Generator) -> NDArray[np.integer]:
    """``[64]`` profiles out of 64."""
    if popularity == "distinct":
        return rng.permutation(64)
    if popularity == "uniform":
        return rng.integers(0, 64, 64)
    return np.minimum(rng.zipf(1.5, 64) - 1, 63) if popularity == "zipf" else np.full(64, 20)


def requests_of(popularity: str) -> list[Request]:
    """64 requests, each with a text of its own."""
    rng = np.random.default_rng(POPULARITIES.index(popularity))
    return list(zip(popular(popularity, rng).tolist(), rng.permutation(64).tolist(), strict=True))


@pytest.fixture(scope="module", params=MODELS)
def served(lab: Any, request: pytest.FixtureRequest) -> Served:
    return Served(lab, request.param)


@pytest.fixture
def own(lab: Any) -> Served:
    """One that a test may spoil."""
    return Served(lab, "modernbert")


@pytest.mark.parametrize("popularity", POPULARITIES)
def test_a_requests_bits_do_not_depend_on_its_company(served: Served, popularity: str) -> None:
    requests = requests_of(popularity)
    for size in SIZES:
        start = (64 - size) // 2
        assert served.changed_by_company(requests[start : start + size]) == []


def test_a_requests_bits_do_not_depend_on_the_order_of_the_batch(served: Served) -> None:
    requests = requests_of("uniform")[:31]
    forwards, backwards = served.together(requests), served.together(requests[::-1])
    assert [each.tobytes() for each in forwards] == [each.tobytes() for each in backwards[::-1]]


def test_many_texts_of_one_token_are_as_good_as_one(served: Served) -> None:
    shortest = min(range(64), key=lambda text: len(served.texts[text]))
    assert len(served.texts[shortest]) == 1
    assert served.changed_by_company([(profile, shortest) for profile in range(64)]) == []


def test_one_text_under_64_profiles_gets_64_answers(served: Served) -> None:
    requests = [(profile, 7) for profile in range(64)]
    assert served.changed_by_company(requests) == []
    assert len({logits.tobytes() for logits in served.together(requests)}) == 64


def test_another_profiles_masks_in_a_slot_are_noticed(own: Served) -> None:
    requests = requests_of("distinct")[:31]
    assert own.changed_by_company(requests) == []
    victim, other = requests[3][0], requests[4][0]
    fill = own.crowd.fill(victim)
    stranger = own.crowd.profiles[other]
    wrong = replace(fill.profile, mask_a=stranger.mask_a, mask_b=stranger.mask_b)
    own.crowd.classifier.fill([SlotFill(fill.slot, wrong, fill.head_rows)])
    assert own.changed_by_company(requests) == [requests[3]]


def test_another_profiles_slot_is_noticed(own: Served) -> None:
    requests = requests_of("distinct")[:31]
    assert own.changed_by_company(requests) == []
    own.crowd.slots[requests[3][0]] = own.crowd.slots[requests[4][0]]
    assert own.changed_by_company(requests) == [requests[3]]


def long_and_odd(served: Served) -> Iterator[list[Request]]:
    """Batches of few requests that are enough rows for several threads, and an odd number of rows."""
    longest = sorted(range(64), key=lambda text: -len(served.texts[text]))
    tokens = np.cumsum([len(served.texts[text]) for text in longest])
    for last in np.flatnonzero((tokens > 400) & (tokens % 2 == 1)):
        yield list(enumerate(longest[: last + 1]))


def test_activations_that_are_cut_anywhere_between_threads_would_be_noticed(
    lab: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    served = Served(lab, "mistral")
    rows = torch.randn(389, 96)
    if torch.equal(functional.silu(rows), torch.cat([functional.silu(row) for row in rows.split(1)])):
        pytest.skip("this machine's SiLU has the same bits however many threads share it")
    monkeypatch.setattr(packing, "even_rows", lambda tokens, width, threads: max(tokens, 16))
    assert any(served.changed_by_company(requests) for requests in long_and_odd(served))


@pytest.mark.parametrize(
    ("model", "threads"), [("minilm", 2), ("modernbert", 2), ("mistral", 2), ("mistral", 3), ("mistral", 5)]
)
def test_bits_do_not_depend_on_company_however_many_threads_there_are(lab: Any, model: str, threads: int) -> None:
    torch.set_num_threads(threads)
    served = Served(lab, model)
    assert served.changed_by_company(next(long_and_odd(served))) == []


def test_products_of_fewer_than_16_rows_would_be_noticed(own: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    rows, weight = torch.randn(64, 64), torch.randn(64, 96)
    if torch.equal(torch.mm(rows[:5], weight), torch.mm(rows, weight)[:5]):
        pytest.skip("this machine's products of five rows have the bits of longer ones")
    monkeypatch.setattr(packing, "MIN_ROWS", 1)
    of_length = {len(text): place for place, text in enumerate(own.texts)}
    requests = [(profile, of_length[length]) for profile, length in enumerate((5, 3, 33, 64))]
    changed = own.changed_by_company(requests)
    assert changed
    assert set(changed) <= set(requests[:2])


def test_a_batch_of_one_profile_without_company_needs_no_other_slot(lab: Any) -> None:
    plm = lab.plm("llama")
    crowd = lab.crowd(plm, lab.bank(plm), 1)
    crowd.classifier.warm_up()
    (logits,) = crowd.classifier.logits([crowd.input(0, lab.text(np.random.default_rng(0), 20))])
    assert logits.dtype == np.float32
    assert logits.shape == (1,)
    assert np.isfinite(logits).all()
