"""The server's side of a tuning worker, over small programs that speak as one does."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from xpeft_profiles import ProfileKey
from xpeft_server.cli.serve import worker_process
from xpeft_server.cli.serve.child_process import child_environment
from xpeft_server.cli.serve.worker_process import WorkerProcess
from xpeft_server.jobs.errors import TuningFailed, WorkerDied
from xpeft_server.jobs.requests import TuningExample, TuningRequest

BEGIN = """
import os, sys, time
from xpeft_server.cli.serve.tuning_worker import _pipes
from xpeft_server.cli.serve.worker_frames import Frame, encode_frame, read_frame
asked, answers = _pipes()
def say(message, attached=b""):
    answers.write(encode_frame(Frame(message, attached)))
    answers.flush()
setup = read_frame(asked).message
while (frame := read_frame(asked)) is not None:
    job = frame.message
"""
ECHO = """
    print("a library says something on stdout", flush=True)
    say({"progress": {"pid": os.getpid()}})
    say({"report": {"job": job, "setup": setup, "environ": dict(os.environ), "pid": os.getpid()}}, b"file")
"""
FAILURE = {"message": "no", "code": "invalid_examples", "type": "invalid_request_error", "param": "examples"}
REQUEST = TuningRequest(
    ProfileKey("acme", "desk"),
    (TuningExample("a", "x", None, "train"), TuningExample("b", "y", "c", "dev")),
    None,
    {"epochs": 3},
)

StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
async def start() -> AsyncIterator[StartWorker]:
    workers: list[WorkerProcess] = []

    def build(body: str, **options: Any) -> WorkerProcess:
        command = [sys.executable, "-c", BEGIN + body]
        workers.append(WorkerProcess({"plm": "tiny"}, environ=os.environ, command=command, **options))
        return workers[-1]

    yield build
    for worker in workers:
        await worker.close()


async def tune(worker: WorkerProcess, said: list[Any] | None = None) -> dict[str, Any]:
    async with asyncio.timeout(60):
        tuned = await worker.tune(REQUEST, (said if said is not None else []).append)
    assert tuned.file == b"file"
    return dict(tuned.report)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while is_there(pid):
            await asyncio.sleep(0.01)


async def test_a_job_goes_to_the_worker_and_its_words_come_back(start: StartWorker) -> None:
    said: list[Any] = []
    report = await tune(start(ECHO), said)
    assert said == [{"pid": report["pid"]}]
    assert report["setup"] == {"plm": "tiny"}
    assert report["job"] == {
        "examples": [
            {"text": "a", "label": "x", "text_pair": None, "split": "train"},
            {"text": "b", "label": "y", "text_pair": "c", "split": "dev"},
        ],
        "labels": ["x", "y"],
        "completions": False,
        "settings": {"epochs": 3},
    }


async def test_the_next_job_finds_the_same_process(start: StartWorker) -> None:
    worker = start(ECHO)
    assert (await tune(worker))["pid"] == (await tune(worker))["pid"]


async def test_an_idle_worker_ends_and_the_next_job_gets_a_new_one(start: StartWorker) -> None:
    worker = start(ECHO, idle_seconds=0.05)
    first = (await tune(worker))["pid"]
    await until_gone(first)
    assert (await tune(worker))["pid"] != first


async def test_a_failure_is_told_in_the_workers_words_and_the_worker_goes_on(start: StartWorker) -> None:
    worker = start(f"    say({{'progress': os.getpid()}}); say({{'failure': {FAILURE}, 'last': False}})\n")
    said: list[Any] = []
    for _ in range(2):
        with pytest.raises(TuningFailed) as failed:
            await tune(worker, said)
        assert vars(failed.value).items() >= FAILURE.items()
    assert len(set(said)) == 1


async def test_a_worker_whose_failure_was_its_last_word_is_not_asked_again(start: StartWorker) -> None:
    worker = start(f"    say({{'progress': os.getpid()}}); say({{'failure': {FAILURE}, 'last': True}})\n    break\n")
    said: list[Any] = []
    for _ in range(3):
        with pytest.raises(TuningFailed):
            await tune(worker, said)
    assert len(set(said)) == 3


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ("    os._exit(3)\n", "with exit status 3"),
        ("    os.kill(os.getpid(), 11)\n", "by signal 11"),
        ("    answers.write(b'half a'); answers.flush(); os._exit(0)\n", "with exit status 0"),
    ],
)
async def test_a_worker_that_dies_fails_its_job_and_the_next_gets_a_new_one(
    start: StartWorker, body: str, how: str
) -> None:
    worker = start(body)
    for _ in range(2):
        with pytest.raises(WorkerDied, match=how):
            await tune(worker)


def test_a_worker_that_is_killed_before_it_was_told_anything_fails_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """On uvloop, as in a server: to write to a process whose pipe was found closed is no OSError there."""
    started = asyncio.create_subprocess_exec

    async def short(*command: Any, **options: Any) -> Any:
        process = await started(*command, **options)
        process.kill()
        assert process.stdin is not None
        while not process.stdin.transport.is_closing():
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        return process

    async def job() -> None:
        command = [sys.executable, "-c", BEGIN + ECHO]
        worker = WorkerProcess({"plm": "tiny"}, environ=dict(os.environ), command=command)
        with pytest.raises(WorkerDied, match="by signal 9"):
            await tune(worker)
        monkeypatch.undo()
        assert (await tune(worker))["setup"] == {"plm": "tiny"}
        await worker.close()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", short)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(job())


async def test_a_killed_worker_fails_its_job(start: StartWorker) -> None:
    worker = start("    say({'progress': {'pid': os.getpid()}}); time.sleep(600)\n")
    with pytest.raises(WorkerDied, match="by signal 9"):
        await worker.tune(REQUEST, lambda progress: os.kill(progress["pid"], signal.SIGKILL))


async def test_a_cancelled_job_takes_its_process_with_it(start: StartWorker) -> None:
    worker = start("    say({'progress': {'pid': os.getpid()}}); time.sleep(600)\n")
    begun: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    job = asyncio.create_task(worker.tune(REQUEST, lambda progress: begun.set_result(progress["pid"])))
    async with asyncio.timeout(60):
        pid = await begun
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
    assert not is_there(pid)


async def test_a_closed_worker_may_be_closed_again_and_asked_again(start: StartWorker) -> None:
    worker = start(ECHO)
    await worker.close()
    first = (await tune(worker))["pid"]
    await worker.close()
    await worker.close()
    assert not is_there(first)
    assert (await tune(worker))["pid"] != first


def test_a_worker_gets_nothing_that_was_meant_for_the_server() -> None:
    server = {
        "PATH": "/bin",
        "GLIBC_TUNABLES": "glibc.malloc.tcache_count=0",
        "CUDA_VISIBLE_DEVICES": "1",
        "XPEFT_STORE": "redis://user:secret@redis",
        "XPEFT_API_KEY": "xp_secret",
        "XPEFT_API_KEYS": "/keys.json",
    }
    assert child_environment(server) == {name: value for name, value in server.items() if "XPEFT" not in name}


async def test_an_idle_worker_ends_although_a_job_was_cancelled_before_it_began(
    start: StartWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start(ECHO, idle_seconds=0.2)
    pid = (await tune(worker))["pid"]
    preparing, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(request: TuningRequest) -> dict[str, Any]:
        loop.call_soon_threadsafe(preparing.set)
        go_on.wait(20)
        return {}

    monkeypatch.setattr(worker_process, "_job", slow)
    job = asyncio.create_task(worker.tune(REQUEST, lambda _: None))
    await preparing.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    go_on.set()
    await until_gone(pid)
