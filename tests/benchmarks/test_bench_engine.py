"""The engine in process, whole, over a small model: what is measured is what it says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from xpeft_benchmarks import shapes
from xpeft_benchmarks.engine.closed_loop import ClosedLoop
from xpeft_benchmarks.engine.measurement import run_engine
from xpeft_benchmarks.engine.plan import EnginePlan
from xpeft_benchmarks.engine.results import BARE, Variant, results_of
from xpeft_benchmarks.engine.stage import filled_store, load_model, walked_key
from xpeft_benchmarks.popularity import Popularity
from xpeft_benchmarks.registered import registered_key
from xpeft_benchmarks.results import Result
from xpeft_benchmarks.turns import Turn

SMALL = shapes.Shape(
    {
        "model_type": "bert",
        "vocab_size": 200,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
    8,
    (),
)
PLAN = EnginePlan(
    plm="unused",
    shape="small",
    adapters=9,
    width=4,
    device="cpu",
    dtype="float32",
    batch_tokens=(32, 64),
    text_tokens=8,
    inputs=1,
    in_flight=6,
    profiles=(1, 32, 400),
    popularity=Popularity.parse("zipf:1.1"),
    rounds=2,
    seconds=0.05,
)
SLOTS = 40

pytestmark = pytest.mark.usefixtures("small_shape", "one_thread")


@pytest.fixture(scope="module")
def small_shape() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(shapes.SHAPES, "small", SMALL)
        yield


@pytest.fixture(scope="module")
def many_answers() -> object:
    """A turn is as many as tell of means and shares, however few a slow machine gives within its seconds."""
    wait = ClosedLoop._answers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClosedLoop, "_answers", lambda loop, texts: wait(loop, max(texts, 200)))
        yield


@pytest.fixture(scope="module")
def results(small_shape, one_thread, many_answers) -> dict[str, Result]:
    every = run_engine(PLAN, lambda form, plm: SLOTS, on_step=lambda said: None)
    found = {result.variant: result for result in every}
    assert len(found) == len(every)
    return found


def test_every_variant_is_measured_at_every_number_of_tokens(results: dict[str, Result]) -> None:
    names = {BARE: [], "engine 1 profiles": [BARE, "engine 32 profiles"], "engine 32 profiles": [BARE]}
    names |= {"engine 400 profiles": [BARE, "engine 32 profiles"], "engine warm": [], "engine cold": ["engine warm"]}
    assert results.keys() == {f"small T={tokens} {name}" for tokens in PLAN.batch_tokens for name in names}
    for tokens in PLAN.batch_tokens:
        for name, against in names.items():
            result = results[f"small T={tokens} {name}"]
            assert [each.to for each in result.ratios] == [f"small T={tokens} {other}" for other in against]
            assert len(result.speeds) == PLAN.rounds
            assert min(result.speeds) > 0


def test_batches_are_full_and_the_device_s_time_is_told(results: dict[str, Result]) -> None:
    for variant, result in results.items():
        details = result.details
        full = details["tokens"] / PLAN.text_tokens
        assert 0.6 * full < details["mean_batch"] < 1.4 * full
        assert details["device_ms"] > 0
        assert 0 < details["hidden"] <= 1
        assert ("host_ms" in details) is not variant.endswith(BARE)


def test_profiles_are_made_exactly_where_they_are_in_no_slot(results: dict[str, Result]) -> None:
    for tokens in PLAN.batch_tokens:
        made = {
            name: results[f"small T={tokens} engine {name}"].details["made_share"]
            for name in ("1 profiles", "400 profiles", "warm", "cold")
        }
        assert made["1 profiles"] == made["warm"] == 0
        assert 0.1 < made["400 profiles"] < 0.9
        assert 0.6 < made["cold"] < 1.4
        assert "made_share" not in results[f"small T={tokens} bare"].details
        assert results[f"small T={tokens} engine cold"].details["read_share"] == 0


async def test_the_store_has_all_profiles_and_they_fit() -> None:
    told: list[int] = []
    model = load_model(PLAN)
    store = await filled_store(PLAN, model.bank.geometry, walked=3, tell=told.append)
    keys = [registered_key(index, tenants=1) for index in (0, 399)] + [walked_key(index) for index in (0, 2)]
    profiles = [stored.decode() for stored in await store.get_many(keys) if stored is not None]
    assert told == [400]
    assert [profile.shared_head for profile in profiles] == ["topics", "topics", None, None]
    assert await store.get_many([registered_key(400, tenants=1), walked_key(3)]) == [None, None]
    for profile in profiles:
        profile.check_fits(model.bank.geometry)


async def test_a_model_with_weights_keeps_its_own_tokenizer(tiny_bert: Path) -> None:
    model = load_model(replace(PLAN, plm=str(tiny_bert), shape=None))
    assert "w99" in model.plm.tokenizer.vocabulary
    assert (model.bank.adapters, model.bank.width, set(model.bank.heads)) == (9, 4, {"topics"})


def test_details_are_medians_over_the_rounds_without_what_nobody_told() -> None:
    async def run(seconds: float) -> Turn:
        raise AssertionError

    turns = [Turn(80, 2.0, 10, 1.5), Turn(60, 1.0, 10, 0.7), Turn(90, 1.0, 10, 1.2)]
    (result,) = results_of("x", {BARE: Variant("", run, {"tokens": 8}, ("gone",))}, {BARE: turns})
    assert result.speeds == [40, 60, 90]
    assert result.ratios == []
    assert result.details == {
        "tokens": 8,
        "mean_batch": 8.0,
        "device_busy": 0.75,
        "hidden": 0.75,
        "device_ms": 120.0,
    }


def test_what_is_not_hidden_is_never_less_than_nothing() -> None:
    assert Turn(1, 1.0, 1, 1.2).hidden == 1
    assert Turn(1, 2.0, 1, 0.5).hidden == 0.25
    assert math.isnan(Turn(1, 2.0, 1, 0.5).made)


def test_settings_name_the_model_that_was_measured() -> None:
    assert {"shape": "small", "popularity": "zipf:1.1", "in_flight": 6}.items() <= PLAN.settings().items()
    assert "plm" not in PLAN.settings()
    real = replace(PLAN, plm="/home/me/minilm", shape=None)
    assert real.model == "minilm"
    assert "shape" not in real.settings()
