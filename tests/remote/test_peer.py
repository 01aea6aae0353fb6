"""Two ends that call each other's methods."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from hashlib import sha256
from typing import Any

import pytest

from xpeft_profiles import CursorInvalid, PreconditionFailed, StoreUnavailable, TooManyJobs
from xpeft_server.engine.errors import EngineError, InputTooLong, InternalError, LimitReached, Unavailable
from xpeft_server.jobs.errors import JobNotFound, TuningFailed
from xpeft_server.remote.peer import Peer

Until = Callable[[Callable[[], object]], Awaitable[None]]

TOLD = [
    InputTooLong("input has 600 tokens", param="input"),
    LimitReached("request_rate", "50 requests a second", retry_after=3.0),
    JobNotFound("there is no job 'job_1'", param="id"),
    TuningFailed("no rows", code="dataset_invalid", type="invalid_request_error", param="examples"),
    StoreUnavailable("the store is down"),
    PreconditionFailed("sha256:1"),
    CursorInvalid("the cursor is not one of this server's"),
    TooManyJobs(4),
]


class Waiting:
    """A method, and one that answers item by item; neither goes on before it is told, nor ends by itself."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.withdrawn = 0

    async def answer(self) -> str:
        self.begun.set()
        try:
            await self.goes_on.wait()
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise
        return "answer"

    async def items(self) -> AsyncGenerator[int, None]:
        self.begun.set()
        try:
            for number in range(1_000_000):
                yield number
                await self.goes_on.wait()
                self.goes_on.clear()
        finally:
            self.withdrawn += 1


class Wire(asyncio.Transport):
    """Keeps what is written, for the test to deliver."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return False

    async def written(self) -> bytes:
        """Waits for it; what was taken is not there any more."""
        async with asyncio.timeout(10):
            while not self.writes:
                await asyncio.sleep(0)
        data = b"".join(self.writes)
        self.writes.clear()
        return data


async def echo(value: object) -> object:
    return value


async def count(most: int) -> AsyncGenerator[int, None]:
    for number in range(most):
        yield number


async def heard(stream: AsyncGenerator[Any, None], items: list[Any] | None = None) -> list[Any]:
    """What came, which is in ``items`` even if an error follows."""
    items = [] if items is None else items
    async with aclosing(stream), asyncio.timeout(10):
        async for item in stream:
            items.append(item)
    return items


async def test_a_call_is_answered(ends: Any) -> None:
    async def joined(first: str, second: str) -> str:
        return first + second

    ends.methods["joined"] = joined
    assert await ends.here.call("joined", "a", "b") == "ab"


async def test_of_many_calls_at_once_each_gets_its_own_answer(ends: Any, until: Until) -> None:
    waiting: dict[int, asyncio.Future[str]] = {}

    async def answer(number: int) -> str:
        waiting[number] = asyncio.get_running_loop().create_future()
        return await waiting[number]

    ends.methods["answer"] = answer
    calls = [asyncio.create_task(ends.here.call("answer", number)) for number in range(300)]
    await until(lambda: len(waiting) == 300)
    for number in reversed(range(300)):
        waiting[number].set_result(f"to {number}")
    async with asyncio.timeout(10):
        assert await asyncio.gather(*calls) == [f"to {number}" for number in range(300)]


async def test_either_end_may_call_the_other_while_it_is_called(ends: Any) -> None:
    async def ask_back(number: int) -> list[object]:
        return [await ends.there.call("echo", number), await heard(ends.there.stream("count", number))]

    ends.methods["ask_back"] = ask_back
    ends.methods_here.update(echo=echo, count=count)
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(ends.here.call("ask_back", number) for number in range(20)))
    assert answers == [[number, list(range(number))] for number in range(20)]


async def test_a_stream_comes_item_by_item(ends: Any) -> None:
    waiting = Waiting()
    ends.methods["items"] = waiting.items
    async with asyncio.timeout(10), aclosing(ends.here.stream("items")) as items:
        for number in range(3):
            # The next one is not made before this one has come.
            assert await anext(items) == number
            waiting.goes_on.set()


async def test_a_stream_has_an_end_and_any_items(ends: Any) -> None:
    async def items() -> AsyncGenerator[object, None]:
        for item in (None, 0, "", ("a", 1)):
            yield item

    ends.methods["items"] = items
    assert await heard(ends.here.stream("items")) == [None, 0, "", ("a", 1)]
    ends.methods["count"] = count
    assert await heard(ends.here.stream("count", 0)) == []


async def test_a_stream_that_is_closed_early_is_withdrawn_at_the_other_end(ends: Any, until: Until) -> None:
    waiting = Waiting()
    ends.methods["items"] = waiting.items
    async with aclosing(ends.here.stream("items")) as items:
        assert await anext(items) == 0
        assert not waiting.withdrawn
    await until(lambda: waiting.withdrawn)


async def test_who_no_longer_waits_for_the_next_item_withdraws_the_stream(ends: Any, until: Until) -> None:
    waiting = Waiting()
    ends.methods["items"] = waiting.items
    items: list[int] = []
    hearing = asyncio.create_task(heard(ends.here.stream("items"), items))
    await until(lambda: items)
    assert not waiting.withdrawn
    hearing.cancel()
    await until(lambda: waiting.withdrawn)
    assert hearing.cancelled()


async def test_a_stream_that_is_closed_before_its_first_item_was_never_asked_for(ends: Any) -> None:
    waiting = Waiting()
    ends.methods.update(items=waiting.items, echo=echo)
    await ends.here.stream("items").aclose()
    assert await ends.here.call("echo", "later") == "later"
    assert not waiting.begun.is_set()


async def test_a_call_that_is_cancelled_is_cancelled_at_the_other_end(ends: Any, until: Until) -> None:
    cancelled, kept = Waiting(), Waiting()
    ends.methods.update(cancelled=cancelled.answer, kept=kept.answer)
    calls = [asyncio.create_task(ends.here.call(method)) for method in ("kept", "cancelled")]
    await until(lambda: kept.begun.is_set() and cancelled.begun.is_set())
    calls[1].cancel()
    await until(lambda: cancelled.withdrawn)
    assert calls[1].cancelled()
    kept.goes_on.set()
    assert (await calls[0], kept.withdrawn) == ("answer", 0)


async def test_a_call_that_comes_together_with_its_withdrawal_is_never_begun() -> None:
    waiting, wire = Waiting(), Wire()
    here, there = Peer({}, on_lost=lambda: None), Peer({"answer": waiting.answer, "echo": echo}, on_lost=lambda: None)
    here.connection_made(wire)
    calls = [asyncio.create_task(here.call(*asked)) for asked in (("answer",), ("echo", "later"))]
    await asyncio.sleep(0)
    calls[0].cancel()
    await asyncio.wait([calls[0]])
    await asyncio.sleep(0)
    back = Wire()
    there.connection_made(back)
    there.data_received(await wire.written())
    here.data_received(await back.written())
    assert await asyncio.wait_for(calls[1], 10) == "later"
    assert calls[0].cancelled()
    assert (waiting.begun.is_set(), there._tasks) == (False, {})


async def test_an_answer_to_a_call_that_was_withdrawn_is_nobodys(ends: Any, until: Until) -> None:
    asked: list[str] = []

    async def stubborn() -> str:
        asked.append("withdrawn")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            asked.append("answered all the same")
        return "too late"

    ends.methods.update(stubborn=stubborn, echo=echo)
    call = asyncio.create_task(ends.here.call("stubborn"))
    await until(lambda: asked)
    call.cancel()
    await until(lambda: len(asked) == 2)
    assert await ends.here.call("echo", "mine") == "mine"
    assert call.cancelled()


async def test_an_answer_and_the_withdrawal_of_its_call_may_cross() -> None:
    wire, back = Wire(), Wire()
    here, there = Peer({}, on_lost=lambda: None), Peer({"echo": echo}, on_lost=lambda: None)
    here.connection_made(wire)
    there.connection_made(back)
    crossing = asyncio.create_task(here.call("echo", 1))
    there.data_received(await wire.written())
    answer = await back.written()
    crossing.cancel()
    # Before the caller has had its turn.
    here.data_received(answer)
    there.data_received(await wire.written())
    assert crossing.cancelled()
    later = asyncio.create_task(here.call("echo", 2))
    there.data_received(await wire.written())
    here.data_received(await back.written())
    assert await asyncio.wait_for(later, 10) == 2


@pytest.mark.parametrize("error", TOLD, ids=lambda error: type(error).__name__)
async def test_an_error_with_words_for_whoever_asked_comes_back_as_itself(
    ends: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse() -> None:
        raise error

    async def begin_and_refuse() -> AsyncGenerator[int, None]:
        yield 1
        raise error

    ends.methods.update(call=refuse, stream=begin_and_refuse)
    items: list[int] = []
    for asked in (ends.here.call("call"), heard(ends.here.stream("stream"), items)):
        with pytest.raises(type(error)) as refused:
            await asyncio.wait_for(asked, 10)
        assert refused.type is type(error)
        assert refused.value is not error
        assert (str(refused.value), vars(refused.value)) == (str(error), vars(error))
    assert items == [1]
    assert not caplog.records


async def test_any_other_exception_is_an_internal_error_and_logged(ends: Any, caplog: pytest.LogCaptureFixture) -> None:
    bug = ZeroDivisionError("a bug")

    async def fail() -> None:
        raise bug

    async def begin_and_fail() -> AsyncGenerator[int, None]:
        yield 1
        raise bug

    ends.methods.update(call=fail, stream=begin_and_fail, echo=echo)
    items: list[int] = []
    for method, asked in {
        "call": ends.here.call("call"),
        "stream": heard(ends.here.stream("stream"), items),
        "missing": ends.here.call("missing"),
    }.items():
        caplog.clear()
        with pytest.raises(InternalError, match=f"{method} failed: "):
            await asyncio.wait_for(asked, 10)
        (record,) = caplog.records
        assert record.getMessage() == f"{method}, called by another process of this server, failed"
        assert record.exc_info is not None
        assert (record.exc_info[1] is bug) == (method != "missing")
    assert items == [1]
    assert await ends.here.call("echo", "later") == "later"


async def test_who_calls_a_method_whose_work_is_cancelled_by_something_else_is_told(ends: Any) -> None:
    async def cancelled() -> None:
        given_up = asyncio.get_running_loop().create_future()
        given_up.cancel()
        await given_up

    async def begin_and_be_cancelled() -> AsyncGenerator[int, None]:
        yield 1
        await cancelled()

    ends.methods.update(call=cancelled, stream=begin_and_be_cancelled)
    items: list[int] = []
    for method, asked in {"call": ends.here.call("call"), "stream": heard(ends.here.stream("stream"), items)}.items():
        with pytest.raises(Unavailable, match=f"{method} was given up"):
            await asyncio.wait_for(asked, 10)
    assert items == [1]


async def test_a_message_of_several_megabytes_arrives_as_it_was(ends: Any) -> None:
    ends.methods["echo"] = echo
    large = bytes(range(256)) * 32_768
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(ends.here.call("echo", value) for value in ("before", large, "after")))
    assert sha256(answers.pop(1)).digest() == sha256(large).digest()
    assert answers == ["before", "after"]


@pytest.mark.parametrize("size", [1, 5, 64, 1_000_000])
async def test_messages_may_come_in_pieces_of_any_size(size: int) -> None:
    asked: list[object] = []

    async def noted(value: object) -> object:
        asked.append(value)
        return value

    ends = Peer({}, on_lost=lambda: None), Peer({"noted": noted}, on_lost=lambda: None)
    wires = Wire(), Wire()
    for peer, wire in zip(ends, wires, strict=True):
        peer.connection_made(wire)
    values = [None, "x" * 300, "", 7]
    calls = [asyncio.create_task(ends[0].call("noted", value)) for value in values]
    for wire, peer in zip(wires, reversed(ends), strict=True):
        sent = await wire.written()
        for at in range(0, len(sent), size):
            peer.data_received(sent[at : at + size])
    assert asked == values
    async with asyncio.timeout(10):
        assert await asyncio.gather(*calls) == values


async def test_what_is_sent_in_one_turn_leaves_in_one_write() -> None:
    peer, wire = Peer({}, on_lost=lambda: None), Wire()
    peer.connection_made(wire)
    calls = [asyncio.create_task(peer.call("answer", number)) for number in range(10)]
    async with asyncio.timeout(10):
        while not wire.writes:
            await asyncio.sleep(0)
    assert len(wire.writes) == 1
    peer.connection_lost(None)
    assert [type(each) for each in await asyncio.gather(*calls, return_exceptions=True)] == [Unavailable] * 10


async def test_what_is_called_before_there_is_a_connection_leaves_when_there_is(apart: Any) -> None:
    apart.methods.update(echo=echo, count=count)
    waiting = [
        asyncio.create_task(apart.here.call("echo", 1)),
        asyncio.create_task(heard(apart.here.stream("count", 2))),
    ]
    await asyncio.sleep(0)
    await apart.connect()
    async with asyncio.timeout(10):
        assert await asyncio.gather(*waiting) == [1, [0, 1]]


async def test_when_the_other_end_goes_away_all_that_wait_are_told_and_later_calls_at_once(
    ends: Any, until: Until
) -> None:
    answer, stream = Waiting(), Waiting()
    ends.methods.update(answer=answer.answer, items=stream.items)
    items: list[int] = []
    waiting = [
        asyncio.create_task(ends.here.call("answer")),
        asyncio.create_task(ends.here.call("answer")),
        asyncio.create_task(heard(ends.here.stream("items"), items)),
    ]
    await until(lambda: answer.begun.is_set() and items)
    ends.cut()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    for outcome in outcomes:
        assert isinstance(outcome, Unavailable)
        assert (str(outcome), outcome.retry_after) == ("another process of this server went away", 5.0)
    assert items == [0]
    for asked in (ends.here.call("answer"), anext(ends.here.stream("items"))):
        with pytest.raises(Unavailable, match="went away"):
            await asyncio.wait_for(asked, 10)
    ends.here.close()
    assert sorted(ends.lost) == ["here", "there"]


async def test_what_one_end_had_asked_for_is_cancelled_when_it_goes_away(ends: Any, until: Until) -> None:
    answer, stream = Waiting(), Waiting()
    ends.methods_here.update(answer=answer.answer, items=stream.items)
    asking = [
        asyncio.create_task(ends.there.call("answer")),
        asyncio.create_task(heard(ends.there.stream("items"))),
    ]
    await until(lambda: answer.begun.is_set() and stream.begun.is_set())
    ends.cut()
    await until(lambda: answer.withdrawn and stream.withdrawn)
    assert {type(each) for each in await asyncio.gather(*asking, return_exceptions=True)} == {Unavailable}


async def test_what_was_said_before_the_other_end_went_away_is_heard(ends: Any, until: Until) -> None:
    async def say_and_go() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        ends.there.close()
        await asyncio.Event().wait()

    ends.methods["say"] = say_and_go
    stream = ends.here.stream("say")
    assert await anext(stream) == 1
    await until(lambda: "here" in ends.lost)
    assert await anext(stream) == 2
    with pytest.raises(Unavailable, match="went away"):
        await anext(stream)


async def test_the_end_of_the_connection_is_told_after_every_call_has_failed() -> None:
    told: list[bool] = []
    peer = Peer({}, on_lost=lambda: told.append(all(each.done() for each in peer._calls.values())))
    peer.connection_made(Wire())
    call = asyncio.create_task(peer.call("answer"))
    await asyncio.sleep(0)
    assert not call.done()
    assert peer._calls
    peer.connection_lost(ConnectionResetError())
    assert told == [True]
    with pytest.raises(Unavailable, match="went away"):
        await call


async def test_closing_sends_what_was_still_to_be_sent(ends: Any, until: Until) -> None:
    came: list[int] = []

    async def note(value: bytes) -> None:
        came.append(len(value))

    ends.methods["note"] = note
    calls = [asyncio.create_task(ends.here.call("note", bytes(size))) for size in (1, 5_000_000, 2)]
    await asyncio.sleep(0)
    ends.here.close()
    await until(lambda: len(came) == 3)
    assert came == [1, 5_000_000, 2]
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in outcomes] == [Unavailable] * 3


async def test_an_end_that_closes_in_the_turn_of_its_answer_has_answered(ends: Any) -> None:
    async def stop() -> str:
        asyncio.get_running_loop().call_soon(ends.there.close)
        return "bye" * 1_000_000

    ends.methods["stop"] = stop
    assert len(await asyncio.wait_for(ends.here.call("stop"), 10)) == 3_000_000


async def test_a_call_after_closing_does_not_wait(ends: Any) -> None:
    ends.methods["answer"] = Waiting().answer
    ends.here.close()
    with pytest.raises(Unavailable, match="went away"):
        await asyncio.wait_for(ends.here.call("answer"), 10)


async def test_what_cannot_be_pickled_fails_its_call_alone(
    ends: Any, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    closed: list[bool] = []

    async def unpicklable() -> object:
        return threading.Lock()

    async def unpicklable_item() -> AsyncGenerator[object, None]:
        try:
            yield 1
            yield threading.Lock()
        finally:
            closed.append(True)

    neighbour = Waiting()
    ends.methods.update(echo=echo, answer=unpicklable, items=unpicklable_item, neighbour=neighbour.answer)
    waiting = asyncio.create_task(ends.here.call("neighbour"))
    await until(neighbour.begun.is_set)
    with pytest.raises(TypeError, match="cannot pickle"):
        await ends.here.call("echo", threading.Lock())
    with pytest.raises(TypeError, match="cannot pickle"):
        await anext(ends.here.stream("echo", threading.Lock()))
    assert not caplog.records
    for asked in (ends.here.call("answer"), heard(ends.here.stream("items"))):
        with pytest.raises(InternalError, match="cannot pickle"):
            await asyncio.wait_for(asked, 10)
    assert len(caplog.records) == 2
    assert closed == [True]
    neighbour.goes_on.set()
    assert await waiting == "answer"


async def test_an_error_that_cannot_be_pickled_fails_its_call_alone(ends: Any) -> None:
    async def refuse() -> None:
        error = InputTooLong("input has 600 tokens")
        vars(error)["cause"] = threading.Lock()
        raise error

    ends.methods.update(refuse=refuse, echo=echo)
    call = asyncio.create_task(ends.here.call("refuse"))
    for _ in range(2):
        await ends.here.call("echo", "what was answered before this has come")
    answered = call.done()
    call.cancel()
    await asyncio.wait([call])
    assert answered
    assert isinstance(call.exception(), EngineError)
