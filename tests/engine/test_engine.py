from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from xpeft_profiles import Profile, ProfileKey
from xpeft_server.engine.engine import Engine
from xpeft_server.engine.errors import (
    DamagedProfile,
    InputTooLong,
    InternalError,
    InvalidInput,
    Overloaded,
    ProfileHasNoHead,
    ProfileNotFound,
    Unavailable,
    WrongBank,
)
from xpeft_server.engine.requests import ClassifyAnswer, ClassifyRequest, TextInput

MakeProfile = Callable[..., Profile]


def ask(engine: Engine, tenant: str, name: str, *texts: str, truncate: bool = False) -> Any:
    return engine.classify(ClassifyRequest(ProfileKey(tenant, name), tuple(map(TextInput, texts)), truncate))


def words(seed: int, count: int) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 100, count))


async def put_many(store: Any, engine: Engine, profile: MakeProfile, count: int) -> None:
    for number in range(count):
        made = profile(engine.geometry, number, labels=1 + number % 5)
        await store.put(ProfileKey(f"tenant{number}", "p"), made)


async def test_a_request_alone_and_among_31_strangers_gets_the_same_bits(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 32)
    requests = [(f"tenant{n % 32}", "p", words(n, 1 + n * 7 % 60)) for n in range(200)]
    together: list[ClassifyAnswer] = await asyncio.gather(*(ask(engine, *request) for request in requests))
    alone = [await ask(engine, *request) for request in requests]
    assert [answer.data for answer in together] == [answer.data for answer in alone]
    assert len({answer.data for answer in together}) > 190, "different requests must not all agree"


async def test_more_profiles_than_slots_in_one_batch_are_all_answered_and_right(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine(slots=3, head_rows=12)
    await put_many(store, engine, profile, 32)
    many = [await asyncio.gather(*(ask(engine, f"tenant{n}", "p", words(n, 9)) for n in range(32))) for _ in range(3)]
    roomy = await start_engine(slots=32)
    for n in range(32):
        assert (await ask(roomy, f"tenant{n}", "p", words(n, 9))).data == many[0][n].data == many[2][n].data


async def test_a_request_with_many_texts_is_answered_in_order_across_batches(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine(max_batch_tokens=64)
    await put_many(store, engine, profile, 1)
    texts = [words(n, 1 + n % 50) for n in range(100)]
    answer = await ask(engine, "tenant0", "p", *texts)
    single = [(await ask(engine, "tenant0", "p", text)).data[0] for text in texts]
    assert list(answer.data) == single
    assert answer.prompt_tokens == sum(3 + n % 50 for n in range(100))


async def test_an_acknowledged_upload_is_what_the_next_request_gets(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    key = ProfileKey("t", "p")
    for seed in range(20):
        put = await store.put(key, profile(engine.geometry, seed))
        answers = await asyncio.gather(*(ask(engine, "t", "p", words(n, 5)) for n in range(4)))
        assert {answer.profile_version for answer in answers} == {put.version}


async def test_a_deleted_profile_is_gone_for_the_next_request_though_it_is_resident(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    await store.put(ProfileKey("t", "p"), profile(engine.geometry, 1))
    await ask(engine, "t", "p", "w1")
    await store.delete(ProfileKey("t", "p"))
    with pytest.raises(ProfileNotFound):
        await ask(engine, "t", "p", "w1")


async def test_a_batch_asks_the_store_for_versions_once(start_engine: Any, store: Any, profile: MakeProfile) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 8)
    await asyncio.gather(*(ask(engine, f"tenant{n}", "p", "w1") for n in range(8)))
    store.asked.clear()
    await asyncio.gather(*(ask(engine, f"tenant{n}", "p", "w1") for n in range(8)))
    batches = engine.metrics.render().decode()
    assert store.count("get_many") == 0
    assert 1 <= store.count("versions") <= 8
    assert sum(len(keys) for _, keys in store.asked) == 8
    assert "xpeft_batch_size_count" in batches


async def test_cold_profiles_that_come_together_are_read_by_few_questions(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 32)
    await asyncio.gather(*(ask(engine, f"tenant{n}", "p", "w1") for n in range(32)))
    assert store.count("get_many") <= 3
    assert store.count("versions") == 0, "what was read after the request came needs no second question"


async def test_a_cold_profile_does_not_hold_up_a_resident_one(
    start_engine: Any, store: Any, profile: MakeProfile, until: Any
) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 2)
    await ask(engine, "tenant0", "p", "w1")
    resident_version = store.versions

    async def only_get_many_hangs(keys: Any) -> Any:
        return await type(store).__mro__[1].versions(store, keys)

    store.versions = only_get_many_hangs
    store.gate.clear()
    cold = asyncio.create_task(ask(engine, "tenant1", "p", "w1"))
    await until(lambda: store.count("get_many") == 2)
    await ask(engine, "tenant0", "p", "w2")
    assert not cold.done()
    store.versions = resident_version
    store.gate.set()
    assert (await cold).labels


async def test_residents_are_served_and_others_get_unavailable_while_the_store_is_down(
    start_engine: Any, store: Any, profile: MakeProfile, until: Any
) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 2)
    before = await ask(engine, "tenant0", "p", "w1")
    store.down = True
    assert (await ask(engine, "tenant0", "p", "w1")).data == before.data
    with pytest.raises(Unavailable, match="store is down"):
        await ask(engine, "tenant1", "p", "w1")
    assert not engine.status().ready
    assert engine.status().checks["store"] == "the store is down"
    store.down = False
    await until(lambda: engine.status().ready)
    assert (await ask(engine, "tenant1", "p", "w1")).labels


async def test_what_changed_while_the_store_was_down_is_noticed_when_it_is_back(
    start_engine: Any, store: Any, profile: MakeProfile, until: Any
) -> None:
    engine = await start_engine()
    key = ProfileKey("t", "p")
    await store.put(key, profile(engine.geometry, 1))
    await ask(engine, "t", "p", "w1")
    store.down = True
    await ask(engine, "t", "p", "w1")
    await store.put(key, profile(engine.geometry, 2))
    newer = profile(engine.geometry, 2).version
    store.down = False
    await until(lambda: engine.status().ready)
    assert (await ask(engine, "t", "p", "w1")).profile_version == newer


async def test_a_withdrawn_request_leaves_no_permit_behind(
    start_engine: Any, store: Any, profile: MakeProfile, until: Any
) -> None:
    engine = await start_engine(queue_limit=4)
    await put_many(store, engine, profile, 1)
    store.gate.clear()
    tasks = [asyncio.create_task(ask(engine, "tenant0", "p", "w1")) for _ in range(4)]
    await until(lambda: store.count("get_many") == 1)
    with pytest.raises(Overloaded):
        await ask(engine, "tenant0", "p", "w1")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    store.gate.set()
    assert len(await asyncio.gather(*(ask(engine, "tenant0", "p", "w1") for _ in range(4)))) == 4


async def test_a_text_that_breaks_the_forward_fails_alone(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 16)
    whole = engine._classifier.launch

    def logits(inputs: Any) -> Any:
        if any(len(each.text) == 13 for each in inputs):
            raise RuntimeError("out of memory, say")
        return whole(inputs)

    monkeypatch.setattr(engine._classifier, "launch", logits)
    asked = [ask(engine, f"tenant{n}", "p", words(n, 11 if n == 5 else 4)) for n in range(16)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [n for n, answer in enumerate(answers) if isinstance(answer, Exception)] == [5]
    assert isinstance(answers[5], InternalError)


async def test_a_profile_whose_slot_could_not_be_filled_is_filled_for_the_next_request(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, other = await start_engine(), await start_engine()
    await put_many(store, engine, profile, 1)
    fill, fills = engine._classifier.fill, []

    def fill_from_the_second_time_on(slots: Any, **options: Any) -> Any:
        fills.append(slots)
        if len(fills) == 1:
            raise RuntimeError("this fill fails")
        return fill(slots, **options)

    monkeypatch.setattr(engine._classifier, "fill", fill_from_the_second_time_on)
    with pytest.raises(InternalError, match="this fill fails"):
        await ask(engine, "tenant0", "p", "w1 w2")
    answer = await ask(engine, "tenant0", "p", "w1 w2")
    assert len(fills) == 2
    assert answer.data == (await ask(other, "tenant0", "p", "w1 w2")).data


async def test_when_the_device_thread_dies_every_pending_request_fails_at_once(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 8)
    await asyncio.gather(*(ask(engine, f"tenant{n}", "p", "w1") for n in range(8)))
    told = asyncio.Event()
    engine._on_death = told.set

    def die(inputs: Any) -> Any:
        raise SystemExit("the device is lost")

    monkeypatch.setattr(engine._classifier, "launch", die)
    async with asyncio.timeout(20):
        answers = await asyncio.gather(
            *(ask(engine, f"tenant{n}", "p", words(n, 50)) for n in range(8)), return_exceptions=True
        )
        await told.wait()
    # Who had not reached the queue yet is turned away at it.
    assert all(isinstance(answer, InternalError | Unavailable) for answer in answers)
    assert any(isinstance(answer, InternalError) for answer in answers)
    assert engine.status().checks["engine"] == "failed"
    with pytest.raises(Unavailable):
        await ask(engine, "tenant0", "p", "w1")


@pytest.mark.parametrize(
    ("texts", "truncate", "error"),
    [
        ((), False, InvalidInput),
        (("",), False, InvalidInput),
        (("w1", ""), False, InvalidInput),
        ((" ".join(["w1"] * 63),), False, InputTooLong),
        (("w1 " + "w" * 2_000_000,), False, InputTooLong),
    ],
)
async def test_what_cannot_be_read_is_refused_by_the_field_s_name(
    start_engine: Any, store: Any, profile: MakeProfile, texts: tuple[str, ...], truncate: bool, error: type[Exception]
) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 1)
    with pytest.raises(error) as caught:
        await ask(engine, "tenant0", "p", *texts, truncate=truncate)
    assert caught.value.param == "input"


async def test_a_long_text_is_cut_when_the_request_says_so(start_engine: Any, store: Any, profile: MakeProfile) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 1)
    answer = await ask(engine, "tenant0", "p", "w1 " * 5000, truncate=True)
    assert answer.prompt_tokens == engine.info.context_length == 64
    answer = await ask(engine, "tenant0", "p", "w1 " + "w" * 2_000_000, truncate=True)
    assert answer.prompt_tokens == 4


async def test_a_profile_without_a_head_or_of_another_bank_or_damaged_is_refused(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    await store.put(ProfileKey("t", "headless"), profile(engine.geometry, 1, labels=None))
    with pytest.raises(ProfileHasNoHead, match="headless"):
        await ask(engine, "t", "headless", "w1")
    good = profile(engine.geometry, 2)
    foreign = Profile(bank="sha256:" + "0" * 64, mask_a=good.mask_a, mask_b=good.mask_b)
    await store.put(ProfileKey("t", "foreign"), foreign)
    with pytest.raises(WrongBank, match="foreign"):
        await ask(engine, "t", "foreign", "w1")
    await store.put(ProfileKey("t", "hurt"), good)
    inner = store.get_many

    async def damaged(keys: Any) -> Any:
        return [each._replace(record=each.record[:-3] + b"abc") for each in await inner(keys)]

    monkeypatch.setattr(store, "get_many", damaged)
    with pytest.raises(DamagedProfile, match="hurt"):
        await ask(engine, "t", "hurt", "w1")


async def test_a_head_with_more_labels_than_the_server_holds_fails_alone(
    start_engine: Any, store: Any, profile: MakeProfile
) -> None:
    engine = await start_engine(head_rows=8)
    await store.put(ProfileKey("t", "wide"), profile(engine.geometry, 1, labels=9))
    await store.put(ProfileKey("t", "fits"), profile(engine.geometry, 2, labels=8))
    wide, fits = await asyncio.gather(
        ask(engine, "t", "wide", "w1"), ask(engine, "t", "fits", "w1"), return_exceptions=True
    )
    assert isinstance(wide, WrongBank)
    assert isinstance(fits, ClassifyAnswer)


async def test_an_exploding_store_answer_is_an_error_and_not_a_hang(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()

    async def explode(keys: Any) -> Any:
        raise KeyError("a bug in the store")

    monkeypatch.setattr(store, "get_many", explode)
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable):
            await ask(engine, "t", "p", "w1")


async def test_a_profile_that_cannot_be_decoded_for_want_of_a_thread_is_an_error_and_not_a_hang(
    start_engine: Any, store: Any, profile: MakeProfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    await put_many(store, engine, profile, 4)

    async def no_thread(*_: Any) -> Any:
        raise RuntimeError("can't start new thread")

    async with asyncio.timeout(20):
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "to_thread", no_thread)
            asked = [ask(engine, f"tenant{number}", "p", "w1") for number in range(4)]
            answers = await asyncio.gather(*asked, return_exceptions=True)
        assert any(isinstance(each, InternalError) for each in answers)
        assert {type(each) for each in answers} <= {InternalError, ClassifyAnswer}
        assert isinstance(await ask(engine, "tenant3", "p", "w1"), ClassifyAnswer)


async def test_what_runs_is_what_is_told(start_engine: Any) -> None:
    engine = await start_engine()
    assert engine.info.kernels == dict.fromkeys(("aggregate_adapters", "apply_adapters", "apply_heads"), "reference")
    assert (engine.info.graphs, engine.info.graph_tokens, engine.info.graph_bytes) == (0, 0, 0)
