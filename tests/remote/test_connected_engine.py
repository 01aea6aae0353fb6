"""An engine over a connection answers, refuses and says of itself what the engine does."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from xpeft_profiles import BankGeometry, ProfileKey
from xpeft_server.engine.errors import (
    EngineError,
    InputTooLong,
    InternalError,
    LimitReached,
    Overloaded,
    ProfileNotFound,
    Unavailable,
)
from xpeft_server.engine.requests import (
    ChatMessage,
    ChosenToken,
    ClassifiedText,
    ClassifyAnswer,
    ClassifyRequest,
    EngineInfo,
    EngineStatus,
    Finished,
    GenerateRequest,
    Journey,
    LikelyToken,
    News,
    Piece,
    PromptGroup,
    SamplingRule,
    Started,
    TextInput,
)
from xpeft_server.remote import connected_engine
from xpeft_server.remote.answering import generate
from xpeft_server.remote.connected_engine import ConnectedEngine, engine_methods
from xpeft_server.remote.trail import Trail

Until = Callable[[Callable[[], object]], Awaitable[None]]

VERSION = "sha256:" + "cd" * 32
GEOMETRY = BankGeometry(
    "sha256:" + "ab" * 32, blocks=2, adapters=16, hidden=8, width=4, shared_heads={"mood": ("sad", "glad")}
)
INFO = EngineInfo(
    plm="tiny",
    model_type="llama",
    device="cpu",
    dtype="float32",
    kernels={"apply_adapters": "reference"},
    generates=True,
    context_length=64,
    slots=8,
    max_batch_tokens=512,
    queue_limit=64,
    queue_token_limit=4096,
    max_inputs=4,
)
ANSWER = ClassifyAnswer(
    VERSION, ("refund", "baggage"), (ClassifiedText("refund", 0.75, (0.75, 0.25), 2),), 7, 0.001, 0.002, verified=False
)
TOKEN = LikelyToken(5, "Hel", b"Hel", -0.5)
NEWS: tuple[News, ...] = (
    Started(VERSION, 0.001),
    Piece("Hel", (ChosenToken(TOKEN, (TOKEN, LikelyToken(6, "\ufffd", b"\xe2", -1.5))),), generated=1),
    Piece("lo", generated=2),
    Finished("stop", 3, 2, 0.002),
)


class FakeEngine:
    """Notes what it does in the request's journey.

    ``failure`` is raised instead of an answer, or after ``tells`` news; ``hold`` is waited for before an answer, and
    before each of the news but the first; nothing more of a tenant in ``full`` may wait.
    """

    def __init__(self) -> None:
        self.info = INFO
        self.geometry = GEOMETRY
        self.checks = {"engine": "ok", "store": "ok"}
        self.looks = 0
        self.seen: list[Any] = []
        self.failure: Exception | None = None
        self.tells = 0
        self.hold: asyncio.Event | None = None
        self.waiting = asyncio.Event()
        self.withdrawn = 0
        self.ended = 0
        self.full: set[str] = set()

    def status(self) -> EngineStatus:
        self.looks += 1
        return EngineStatus(set(self.checks.values()) == {"ok"}, dict(self.checks))

    def check_room(self, tenant: str) -> None:
        if tenant in self.full:
            raise Overloaded("the queue is full", retry_after=7.0, reason="queue_seconds")

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        self.seen.append(request)
        with request.journey.stage("tokenise", texts=len(request.inputs)):
            await self._held()
        request.journey.prompt_tokens += 7
        if self.failure is not None:
            raise self.failure
        with request.journey.stage("forward", profiles=2):
            request.journey.profile_version = VERSION
        return ANSWER

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News, None]:
        self.seen.append(request)
        journey, tokens = request.journey, 0
        if self.failure is not None and not self.tells:
            raise self.failure
        journey.note("prefill", time.monotonic(), time.monotonic(), tokens=3)
        journey.prompt_tokens += 3
        journey.profile_version = VERSION
        try:
            for number, news in enumerate(NEWS):
                if number:
                    await self._held()
                if self.failure is not None and number == self.tells:
                    raise self.failure
                tokens += not isinstance(news, Finished)
                yield news
        finally:
            # As the engine does it: when the answer is over, or nobody waits for it any more.
            journey.note("decode", time.monotonic(), time.monotonic(), tokens=tokens)
            journey.completion_tokens += tokens
            self.ended += 1

    async def _held(self) -> None:
        if self.hold is not None:
            self.waiting.set()
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.withdrawn += 1
                raise
            self.hold.clear()


@pytest.fixture
def engine(ends: Any) -> FakeEngine:
    """The one at the other end."""
    engine = FakeEngine()
    ends.methods.update(engine_methods(engine))
    return engine


@pytest.fixture
async def connected(ends: Any, engine: FakeEngine) -> AsyncIterator[ConnectedEngine]:
    connected = ConnectedEngine(ends.here, queue_seconds=1.0)
    async with asyncio.timeout(10):
        await connected.start()
    yield connected
    await connected.close()


@pytest.fixture
def asked() -> ClassifyRequest:
    return ClassifyRequest(
        ProfileKey("acme", "desk"), (TextInput("hello"), TextInput("a", "pair")), journey=Journey("id")
    )


@pytest.fixture
def prompt() -> GenerateRequest:
    return GenerateRequest(
        "acme",
        ProfileKey("acme", "desk"),
        (ChatMessage("user", "Say"),),
        max_new_tokens=9,
        sampling=SamplingRule(temperature=0.5, logprobs=2),
        seed=3,
        stop=("\n",),
        group=PromptGroup("group", 2),
        journey=Journey("id"),
    )


async def told(engine: ConnectedEngine, prompt: GenerateRequest, seen: list[News] | None = None) -> list[News]:
    """The news, which are in ``seen`` even if an error follows."""
    seen = [] if seen is None else seen
    async with asyncio.timeout(10), aclosing(engine.generate(prompt)) as news:
        async for each in news:
            seen.append(each)
    return seen


async def test_texts_are_classified(connected: ConnectedEngine, engine: FakeEngine, asked: ClassifyRequest) -> None:
    answer = await connected.classify(asked)
    # The repr has the types' names: a named tuple equals any tuple.
    assert (answer, repr(answer)) == (ANSWER, repr(ANSWER))
    (seen,) = engine.seen
    assert (seen, repr(seen), seen.journey.id) == (asked, repr(asked), "id")


async def test_what_was_noted_there_of_a_request_to_classify_is_in_the_callers_journey(
    connected: ConnectedEngine, engine: FakeEngine, asked: ClassifyRequest
) -> None:
    asked.journey.note("queue", 1.0, 2.0)
    began = time.monotonic()
    await connected.classify(asked)
    journey = asked.journey
    assert [(stage.name, dict(stage.facts)) for stage in journey.stages] == [
        ("queue", {}),
        ("tokenise", {"texts": 2}),
        ("forward", {"profiles": 2}),
    ]
    for stage in journey.stages[1:]:
        assert began <= stage.began <= stage.ended <= time.monotonic()
    assert (journey.prompt_tokens, journey.completion_tokens, journey.profile_version) == (7, 0, VERSION)
    assert engine.seen[0].journey is not journey


@pytest.mark.parametrize(
    "error",
    [
        InputTooLong("input has 600 tokens", param="input"),
        LimitReached("request_rate", "50 requests a second", retry_after=3.0),
        ProfileNotFound("profile 'desk' does not exist", param="profile"),
        Unavailable("the server is stopping", retry_after=2.0),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_refusal_is_the_engines_own_and_what_was_noted_until_then_is_kept(
    connected: ConnectedEngine,
    engine: FakeEngine,
    asked: ClassifyRequest,
    prompt: GenerateRequest,
    error: EngineError,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.failure = error
    for call in (connected.classify(asked), told(connected, prompt)):
        with pytest.raises(type(error)) as refused:
            await asyncio.wait_for(call, 10)
        assert refused.type is type(error)
        assert (str(refused.value), vars(refused.value)) == (str(error), vars(error))
    assert ([stage.name for stage in asked.journey.stages], asked.journey.prompt_tokens) == (["tokenise"], 7)
    assert (prompt.journey.stages, prompt.journey.completion_tokens) == ([], 0)
    assert not caplog.records


async def test_a_bug_there_is_an_internal_error_here(
    connected: ConnectedEngine, engine: FakeEngine, asked: ClassifyRequest, prompt: GenerateRequest
) -> None:
    engine.failure = ZeroDivisionError("a bug")
    for call in (connected.classify(asked), told(connected, prompt)):
        with pytest.raises(InternalError, match="a bug"):
            await asyncio.wait_for(call, 10)
    engine.failure = None
    assert await connected.classify(asked) == ANSWER


async def test_cancelling_withdraws_a_request_to_classify(
    connected: ConnectedEngine, engine: FakeEngine, asked: ClassifyRequest, until: Until
) -> None:
    engine.hold = asyncio.Event()
    waiting = asyncio.create_task(connected.classify(asked))
    await until(engine.waiting.is_set)
    assert not engine.withdrawn
    waiting.cancel()
    await until(lambda: engine.withdrawn)
    assert waiting.cancelled()


async def test_news_come_in_order(connected: ConnectedEngine, engine: FakeEngine, prompt: GenerateRequest) -> None:
    news = await told(connected, prompt)
    assert (tuple(news), repr(tuple(news))) == (NEWS, repr(NEWS))
    (seen,) = engine.seen
    assert (seen, repr(seen), seen.journey.id) == (prompt, repr(prompt), "id")
    assert engine.ended == 1


async def test_each_piece_of_news_comes_when_there_is_one(
    connected: ConnectedEngine, engine: FakeEngine, prompt: GenerateRequest
) -> None:
    engine.hold = asyncio.Event()
    async with asyncio.timeout(10), aclosing(connected.generate(prompt)) as news:
        for each in NEWS:
            # The next one is held back until this one has come.
            assert await anext(news) == each
            engine.hold.set()


async def test_what_was_noted_before_the_first_news_is_in_the_callers_journey_with_it(
    connected: ConnectedEngine, engine: FakeEngine, prompt: GenerateRequest
) -> None:
    journey = prompt.journey
    journey.note("queue", 1.0, 2.0)
    journey.prompt_tokens = 10
    async with asyncio.timeout(10), aclosing(connected.generate(prompt)) as news:
        assert isinstance(await anext(news), Started)
        stages = [(stage.name, dict(stage.facts)) for stage in journey.stages]
        assert stages == [("queue", {}), ("prefill", {"tokens": 3})]
        assert (journey.prompt_tokens, journey.profile_version) == (13, VERSION)
    assert engine.seen[0].journey is not journey
    assert engine.seen[0].journey.stages[0].name == "prefill"


async def test_what_was_noted_until_the_answer_was_over_is_in_the_callers_journey(
    connected: ConnectedEngine, prompt: GenerateRequest
) -> None:
    await told(connected, prompt)
    assert [(stage.name, dict(stage.facts)) for stage in prompt.journey.stages] == [
        ("prefill", {"tokens": 3}),
        ("decode", {"tokens": 3}),
    ]
    assert (prompt.journey.prompt_tokens, prompt.journey.completion_tokens) == (3, 3)


async def test_an_error_amid_the_news_comes_after_what_was_told(
    connected: ConnectedEngine, engine: FakeEngine, prompt: GenerateRequest
) -> None:
    engine.failure, engine.tells = Unavailable("the device is lost", retry_after=9.0), 2
    seen: list[News] = []
    with pytest.raises(Unavailable, match="the device is lost") as refused:
        await told(connected, prompt, seen)
    assert (tuple(seen), refused.value.retry_after) == (NEWS[:2], 9.0)
    assert (prompt.journey.prompt_tokens, prompt.journey.completion_tokens) == (3, 2)
    assert [stage.name for stage in prompt.journey.stages] == ["prefill", "decode"]


async def test_closing_the_news_closes_the_engines(
    ends: Any, connected: ConnectedEngine, engine: FakeEngine, prompt: GenerateRequest, until: Until
) -> None:
    engine.hold = asyncio.Event()
    async with aclosing(connected.generate(prompt)) as news:
        assert isinstance(await anext(news), Started)
        await until(engine.waiting.is_set)
        assert not engine.ended
    # Withdrawn when it is closed, not when it is collected; what is left is what the engine says of itself.
    assert len(ends.here._streams) == 1
    await until(lambda: engine.ended)


async def test_where_the_engine_is_closing_the_news_closes_the_engines_at_once(
    engine: FakeEngine, prompt: GenerateRequest
) -> None:
    async with aclosing(generate(engine, prompt)) as news:
        assert [type(await anext(news)) for _ in range(2)] == [Trail, Started]
        ended = [engine.ended]
    assert [*ended, engine.ended] == [0, 1]


async def test_who_no_longer_waits_for_news_withdraws_the_request(
    connected: ConnectedEngine, engine: FakeEngine, prompt: GenerateRequest, until: Until
) -> None:
    engine.hold = asyncio.Event()
    seen: list[News] = []
    waiting = asyncio.create_task(told(connected, prompt, seen))
    await until(lambda: seen)
    assert not engine.ended
    waiting.cancel()
    await until(lambda: engine.ended)
    assert waiting.cancelled()


@pytest.mark.parametrize(("news", "generated"), [(1, 0), (2, 1), (4, 2)])
async def test_what_was_heard_of_an_answer_that_is_withdrawn_is_in_the_journey(
    connected: ConnectedEngine, engine: FakeEngine, prompt: GenerateRequest, until: Until, news: int, generated: int
) -> None:
    async with aclosing(connected.generate(prompt)) as answer:
        for _ in range(news):
            await anext(answer)
    journey = prompt.journey
    assert (journey.prompt_tokens, journey.completion_tokens, journey.profile_version) == (3, generated, VERSION)
    decoded = [stage.facts["tokens"] for stage in journey.stages if stage.name == "decode"]
    assert decoded == [generated] * (generated > 0)
    await until(lambda: engine.ended)


async def test_what_the_engine_says_of_itself_is_there_after_the_start(
    connected: ConnectedEngine, engine: FakeEngine
) -> None:
    assert (connected.info, connected.geometry) == (INFO, GEOMETRY)
    assert connected.status() == EngineStatus(ready=True, checks={"engine": "ok", "store": "ok"})


async def test_what_the_engine_says_of_itself_is_heard_when_it_changes(
    connected: ConnectedEngine, engine: FakeEngine, until: Until
) -> None:
    assert connected_engine._LOOK_SECONDS < 1
    engine.checks["engine"] = "the device is lost"
    engine.info = replace(INFO, slots=9)
    engine.geometry = replace(GEOMETRY, adapters=17)
    await until(lambda: not connected.status().ready)
    assert connected.status().checks == {"engine": "the device is lost", "store": "ok"}
    assert (connected.info.slots, connected.geometry.adapters) == (9, 17)
    engine.checks["engine"] = "ok"
    await until(lambda: connected.status().ready)


async def test_an_engine_that_does_not_change_says_nothing(
    ends: Any, engine: FakeEngine, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connected_engine, "_LOOK_SECONDS", 0)
    async with asyncio.timeout(10), aclosing(ends.here.stream("states")) as states:
        first = await anext(states)
        second = asyncio.create_task(anext(states))
        looks = engine.looks
        await until(lambda: engine.looks > looks + 20)
        assert not second.done()
        engine.checks["store"] = "no answer"
        assert ((await second).status.ready, first.status.ready) == (False, True)


async def test_before_the_start_nothing_is_known_of_the_engine(ends: Any, engine: FakeEngine) -> None:
    connected = ConnectedEngine(ends.here, queue_seconds=1.0)
    for look in (lambda: connected.info, lambda: connected.geometry, connected.status):
        with pytest.raises(Unavailable, match="has not said anything yet"):
            look()
    await connected.close()


async def test_a_tenant_of_whom_nothing_more_may_wait_is_refused_before_anything_is_done(
    ends: Any, engine: FakeEngine, asked: ClassifyRequest, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    monkeypatch.setattr(connected_engine, "_CLOSED_SECONDS", 0.2)
    tenant = asked.profile.tenant
    connected = ConnectedEngine(ends.here, queue_seconds=60.0)
    engine.full.add(tenant)
    connected.check_room(tenant)
    with pytest.raises(Overloaded, match="the queue is full") as refused:
        await connected.classify(asked)
    assert (refused.value.retry_after, refused.value.reason) == (7.0, "queue_seconds")
    assert engine.seen == []
    # And for a moment without the other end.
    engine.full.clear()
    for _ in range(2):
        with pytest.raises(Overloaded, match="the queue is full"):
            connected.check_room(tenant)
    connected.check_room("another")

    def is_open() -> bool:
        try:
            connected.check_room(tenant)
        except Overloaded:
            return False
        return True

    await until(is_open)
    assert await connected.classify(asked) == ANSWER


async def test_where_little_may_wait_a_refusal_is_soon_forgotten(
    ends: Any, engine: FakeEngine, asked: ClassifyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(connected_engine, "time", SimpleNamespace(monotonic=lambda: now))
    connected = ConnectedEngine(ends.here, queue_seconds=0.1)
    engine.full.add(asked.profile.tenant)
    with pytest.raises(Overloaded):
        await connected.classify(asked)
    now += 0.0009
    with pytest.raises(Overloaded):
        connected.check_room(asked.profile.tenant)
    now += 0.0002
    connected.check_room(asked.profile.tenant)


async def test_of_tenants_that_were_refused_few_are_remembered(
    ends: Any, engine: FakeEngine, asked: ClassifyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connected_engine, "_MOST_CLOSED", 3)
    connected = ConnectedEngine(ends.here, queue_seconds=1.0)
    for number in range(10):
        tenant = f"tenant-{number}"
        engine.full.add(tenant)
        with pytest.raises(Overloaded):
            await connected.classify(replace(asked, profile=ProfileKey(tenant, "desk")))
        assert len(connected._closed) <= 3


async def test_without_the_other_end_it_does_not_start(ends: Any, until: Until) -> None:
    connected = ConnectedEngine(ends.here, queue_seconds=1.0)
    ends.cut()
    await until(lambda: "here" in ends.lost)
    with pytest.raises(Unavailable, match="went away"):
        await asyncio.wait_for(connected.start(), 10)


async def test_who_waits_is_told_when_the_other_end_goes_away(
    ends: Any,
    connected: ConnectedEngine,
    engine: FakeEngine,
    asked: ClassifyRequest,
    prompt: GenerateRequest,
    until: Until,
) -> None:
    engine.hold = asyncio.Event()
    seen: list[News] = []
    waiting = [asyncio.create_task(connected.classify(asked)), asyncio.create_task(told(connected, prompt, seen))]
    await until(lambda: engine.waiting.is_set() and seen)
    ends.cut()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(each) for each in outcomes] == [Unavailable, Unavailable]
    assert seen == [NEWS[0]]


async def test_closing_ends_what_was_listened_to(
    ends: Any, connected: ConnectedEngine, engine: FakeEngine, until: Until
) -> None:
    looks = engine.looks
    await until(lambda: engine.looks > looks)
    await connected.close()
    await until(lambda: not ends.unfinished())


async def test_closing_right_after_the_start_ends_what_was_listened_to(
    ends: Any, engine: FakeEngine, asked: ClassifyRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = ConnectedEngine(ends.here, queue_seconds=1.0)
    states = ends.here.stream("states")
    with monkeypatch.context() as patched:
        patched.setattr(ends.here, "stream", lambda _: states)
        await connected.start()
    await connected.close()
    # What was withdrawn before this was sent has ended when it is answered.
    await connected.classify(asked)
    unfinished = ends.unfinished()
    await states.aclose()
    assert unfinished == []


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "not closed"])
async def test_when_the_other_end_went_away_no_error_is_left_behind(
    ends: Any, engine: FakeEngine, until: Until, closed: bool
) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    connected = ConnectedEngine(ends.here, queue_seconds=1.0)
    await connected.start()
    ends.cut()
    listening = connected._listening
    assert listening is not None
    await until(listening.done)
    if closed:
        await connected.close()
    del listening
    del connected
    gc.collect()
    await asyncio.sleep(0)
    assert complaints == []
