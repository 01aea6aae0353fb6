"""A server whose HTTP is spoken by two other processes: the same answers, and what happens when one of them goes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

TEXTS = [" ".join(f"w{(7 * row + place) % 100}" for place in range(1 + row % 20)) for row in range(40)]
CLIENTS = 16


@pytest.fixture
def fronted(start_server: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """Starts a ready server over the test's SQLite file whose HTTP is spoken by ``processes`` others."""

    def start(*arguments: str, processes: int = 2, **options: Any) -> Any:
        store = f"sqlite:///{tmp_path}/profiles.db"
        server = start_server(store, "--http-processes", str(processes), *arguments, **options)
        server.wait_until_ready()
        return server

    return start


def fronts_of(server: Any) -> list[int]:
    """Its processes that speak HTTP."""
    found = []
    for process in server.children():
        with contextlib.suppress(OSError):
            if b"front_worker" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


def sockets_of(process: int) -> int:
    return sum(str(each.readlink()).startswith("socket:") for each in Path(f"/proc/{process}/fd").iterdir())


def classify(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/classify", json={"profile": "p", "input": "w1"})


def at_both(server: Any, processes: list[int], held: contextlib.ExitStack) -> list[httpx.Client]:
    """Clients with a connection each, to every one of the processes at least one."""
    before = {process: sockets_of(process) for process in processes}
    clients = []
    while any(sockets_of(process) == count for process, count in before.items()):
        assert len(clients) < 200, "one process gets all connections"
        clients.append(held.enter_context(httpx.Client(base_url=server.address, timeout=30)))
        assert clients[-1].get("/health").status_code == 200
    return clients


def test_answers_are_those_of_a_server_of_one_process_to_the_last_bit(fronted: Any) -> None:
    alone = fronted(processes=0)
    for number in range(4):
        assert alone.put(f"p{number}", alone.profile(number)).status_code == 201
    asked = [{"profile": f"p{row % 4}", "input": text} for row, text in enumerate(TEXTS)]
    wanted = [alone.client.post("/v1/classify", json=each).json()["data"] for each in asked]
    errors = [
        {"profile": "nobody", "input": "w1"},
        {"profile": "p1", "input": []},
        {"profile": "p1", "input": "w1 " * 99},
    ]
    refused = [alone.client.post("/v1/classify", json=each) for each in errors]
    assert alone.stop() == 0
    server = fronted()
    assert len(fronts_of(server)) == 2
    assert not any("libtorch" in Path(f"/proc/{process}/maps").read_text() for process in fronts_of(server))
    with contextlib.ExitStack() as held, ThreadPoolExecutor(CLIENTS) as pool:
        clients = at_both(server, fronts_of(server), held)
        answers = pool.map(
            lambda row: clients[row % len(clients)].post("/v1/classify", json=asked[row]), range(len(asked))
        )
        assert [answer.json()["data"] for answer in answers] == wanted
        for client in clients:
            told = [client.post("/v1/classify", json=each) for each in errors]
            assert [each.json() for each in told] == [each.json() for each in refused]
            assert [each.status_code for each in told] == [404, 422, 422]
    answer = server.classify("p1")
    assert {"x-queue-time", "x-inference-time", "x-profile-version", "server-timing"} <= set(answer.headers)
    assert server.stop() == 0


def test_what_one_process_was_told_every_other_one_knows(fronted: Any) -> None:
    server = fronted()
    with contextlib.ExitStack() as held:
        clients = at_both(server, fronts_of(server), held)
        kind = {"content-type": "application/octet-stream"}
        for turn in range(3):
            for writer in clients:
                version = writer.put("/v1/profiles/p", content=server.profile(turn), headers=kind).json()["version"]
                for reader in clients:
                    assert reader.get("/v1/profiles/p").json()["version"] == version
                    assert classify(reader).json()["profile_version"] == version
        assert clients[0].delete("/v1/profiles/p").status_code == 204
        assert {classify(c).status_code for c in clients} == {404}


def test_the_first_process_keeps_no_file_and_misses_no_span_that_are_the_others(
    fronted: Any, make_collector: Any, tmp_path: Path
) -> None:
    collector, audit, log = make_collector(), tmp_path / "audit.jsonl", tmp_path / "server.log"
    server = fronted("--otlp-endpoint", collector.url, "--audit-log", str(audit), log=log)
    opened = [str(each.readlink()) for each in Path(f"/proc/{server.process.pid}/fd").iterdir()]
    assert str(audit) not in opened
    assert server.stop() == 0
    collector.close()
    assert "spans were not sent" not in log.read_text()


def test_metrics_are_those_of_all_processes_wherever_they_are_asked_for(fronted: Any) -> None:
    server = fronted()
    server.put("p", server.profile(1))
    with contextlib.ExitStack() as held:
        clients = at_both(server, fronts_of(server), held)
        for client in clients:
            classify(client)
        series = 'requests_total{outcome="ok",route="/v1/classify"}'
        assert {server.metric(series, client=client) for client in clients} == {len(clients)}
        assert {
            server.metric('profile_requests_total{profile="p",tenant="default"}', client=client) for client in clients
        } == {len(clients)}
        assert server.metric("connections", client=clients[0]) == len(clients) + 1  # the server's own client
        assert server.metric("batch_size_count", client=clients[0]) >= 1
        assert server.metric("store_up", client=clients[0]) == 1


def test_a_process_that_is_killed_takes_its_connections_with_it_and_another_takes_its_place(
    fronted: Any, until: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = fronted(log=log)
    server.put("p", server.profile(1))
    victim, other = fronts_of(server)
    with contextlib.ExitStack() as held:
        clients = at_both(server, [victim, other], held)
        os.kill(victim, signal.SIGKILL)
        # A client opens a connection that ended anew, unless it was just writing to it.
        for client in clients:
            with contextlib.suppress(httpx.TransportError):
                assert classify(client).status_code == 200
        until(lambda: len(fronts_of(server)) == 2 and "speaks HTTP" in log.read_text().rpartition("takes its place")[2])
        assert victim not in fronts_of(server)
        assert "a process that spoke HTTP ended by signal 9: another one takes its place" in log.read_text()
        # Who lost the connection comes again.
        assert {classify(c).status_code for c in clients} == {200}
    assert server.stop() == 0


def test_what_a_process_had_counted_when_it_was_killed_stays_in_the_sums(
    fronted: Any, until: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    server = fronted(log=log)
    server.put("p", server.profile(1))
    victim, other = fronts_of(server)
    series = 'requests_total{outcome="ok",route="/v1/classify"}'
    with contextlib.ExitStack() as held:
        clients = at_both(server, [victim, other], held)
        for client in clients:
            assert classify(client).status_code == 200
        assert server.metric(series) == len(clients)
        os.kill(victim, signal.SIGKILL)
        until(lambda: "takes its place" in log.read_text())
    # Its own connection may be one of those that ended.
    with httpx.Client(base_url=server.address, timeout=30) as client:
        for asked in range(len(clients), len(clients) + 3):
            assert server.metric(series, client=client) == asked
            assert server.metric('request_duration_seconds_count{route="/v1/classify"}', client=client) == asked
            assert classify(client).status_code == 200
        until(lambda: server.metric("connections", client=client) <= 2)
    assert server.stop() == 0


def test_when_the_engines_process_is_killed_nobody_listens_any_more(fronted: Any, until: Any) -> None:
    server = fronted()
    fronts = fronts_of(server)
    address = httpx.URL(server.address)
    server.kill()
    until(lambda: not any(Path(f"/proc/{process}").exists() for process in fronts))
    with pytest.raises(ConnectionRefusedError), socket.create_connection((address.host, address.port or 0)):
        pass


@pytest.mark.parametrize("everybody", [False, True], ids=["the server alone", "the whole group"])
def test_sigterm_lets_what_is_inside_finish(fronted: Any, tiny_llama: Path, everybody: bool) -> None:
    """A supervisor may tell every process of a group, as a terminal does."""
    server = fronted("--plm", str(tiny_llama), "--kv-tokens", "4096")
    fronts = fronts_of(server)
    body = {"profile": "base", "prompt": "w1 w2", "max_new_tokens": 60, "stream": True}
    with contextlib.ExitStack() as held:
        begun = []
        for client in at_both(server, fronts, held):
            answer = held.enter_context(client.stream("POST", "/v1/generate", json=body))
            begun.append((events := answer.iter_text(), next(events)))
        for process in fronts if everybody else ():
            os.kill(process, signal.SIGTERM)
        server.process.terminate()
        for events, first in begun:
            assert "".join([first, *events]).endswith("data: [DONE]\n\n")
    assert server.end() == 0
    assert not any(Path(f"/proc/{process}").exists() for process in fronts)


@pytest.mark.parametrize("streamed", [False, True])
def test_who_leaves_takes_its_generation_along(fronted: Any, tiny_llama: Path, until: Any, streamed: bool) -> None:
    server = fronted("--plm", str(tiny_llama))
    body = json.dumps({"profile": "base", "prompt": "w1", "max_new_tokens": 60, "stream": streamed}).encode()
    request = b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    address = httpx.URL(server.address)
    for _ in range(20):
        with socket.create_connection((address.host, address.port or 0)) as connected:
            connected.sendall(request % len(body) + body)
            time.sleep(0.002)
    until(lambda: server.metric("requests_running") == 0)
    series = 'requests_total{outcome="%s",route="/v1/generate"}'
    until(lambda: sum(server.metric(series % each) for each in ("ok", "cancelled")) == 20)
    assert server.metric(series % "server_error") == 0


def test_streams_are_whole_and_in_order(fronted: Any, tiny_llama: Path) -> None:
    server = fronted("--plm", str(tiny_llama))
    rng = random.Random(0)
    bodies = [
        {"profile": "base", "prompt": " ".join(f"w{rng.randrange(100)}" for _ in range(8)), "max_new_tokens": 40}
        for _ in range(12)
    ]
    whole = [server.client.post("/v1/generate", json=each).json()["text"] for each in bodies]

    async def streamed() -> list[str]:
        async with httpx.AsyncClient(base_url=server.address, timeout=30) as client:
            answers = await asyncio.gather(
                *(client.post("/v1/generate", json=each | {"stream": True}) for each in bodies)
            )
        texts = []
        for answer in answers:
            *events, done = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
            assert done == "[DONE]"
            texts.append("".join(json.loads(event)["text"] for event in events))
        return texts

    assert asyncio.run(streamed()) == whole


def test_limits_of_a_tenant_hold_over_all_processes(fronted: Any, tmp_path: Path) -> None:
    limits = tmp_path / "limits.json"
    limits.write_text(json.dumps({"default": {"requests_per_second": 5.0}}))
    server = fronted("--tenant-limits", str(limits))
    server.put("p", server.profile(1))
    with contextlib.ExitStack() as held, ThreadPoolExecutor(CLIENTS) as pool:
        clients = at_both(server, fronts_of(server), held)
        begun = time.monotonic()
        # Many at a time: one by one they might be no more than the rate where a machine is slow.
        codes = [answer.status_code for answer in pool.map(classify, clients * 30)]
        most = 5 + 5 * (time.monotonic() - begun) + 1
    assert set(codes) == {200, 429}
    assert codes.count(200) <= most


def test_a_job_is_submitted_followed_and_cancelled_by_whichever_process(fronted: Any, until: Any) -> None:
    server = fronted()
    rows = [{"text": f"w{row % 50} w{row % 7}", "label": ("low", "high")[row % 2]} for row in range(40)]
    with contextlib.ExitStack() as held:
        first, *rest = at_both(server, fronts_of(server), held)
        body = {"examples": rows, "settings": {"epochs": 1000, "batch_rows": 1}}
        job = first.post("/v1/profiles/desk/tune", json=body).json()
        last = rest[-1] if rest else first
        assert last.get(f"/v1/jobs/{job['id']}").json()["status"] in ("queued", "running")
        with last.stream("GET", f"/v1/jobs/{job['id']}", headers={"accept": "text/event-stream"}) as told:
            events: Iterator[str] = told.iter_text()
            assert job["id"] in next(events)
            assert first.post(f"/v1/jobs/{job['id']}/cancel").status_code == 200
            assert '"cancelled"' in "".join(events)
        for client in (first, *rest):
            assert client.get(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
            assert client.get("/v1/jobs/unknown").status_code == 404
