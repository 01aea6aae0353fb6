"""An acknowledged write is what every later request gets, on every replica, whatever happens on the way to the store.

A history of operations, by several clients at two servers, is judged for each profile as one of an atomic register:
every operation must be explicable by one moment between its sending and its answer.
"""

from __future__ import annotations

import math
import os
import random
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, permutations
from typing import Any, Literal, NamedTuple

import httpx
import pytest

ROUNDS, OPERATIONS = (20, 1_000) if os.environ.get("NIGHTLY") == "1" else (1, 500)
CLIENTS = 6
NAMES = 5
_rounds = count()


class Operation(NamedTuple):
    """``version``: written or read, None for absence. ``end`` is infinite for a write of which nobody knows."""

    kind: Literal["put", "delete", "read"]
    name: str
    version: str | None
    start: float
    end: float


class Zone(NamedTuple):
    """What a register is known to have been: ``version`` from ``first`` to ``last``, and at ``last`` at the latest.

    Forward (first < last): that version throughout. Backward: at some moment between ``last`` and ``first``.
    """

    version: str | None
    first: float
    last: float

    def contradicts(self, other: Zone) -> bool:
        """Whether that cannot be, this one being forward."""
        return self.first < self.last and self.first < other.last and other.first < self.last


def contradictions(history: Sequence[Operation]) -> list[str]:
    """What no order of the operations explains, each written version being another (Gibbons and Korach, 1997)."""
    by_name: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_name[operation.name].append(operation)
    return [problem for name, operations in by_name.items() for problem in _of_one(name, operations)]


def _of_one(name: str, operations: Sequence[Operation]) -> Iterator[str]:
    of_version: dict[str, list[Operation]] = defaultdict(list)
    absences: list[Operation] = []
    for operation in operations:
        (absences if operation.version is None else of_version[operation.version]).append(operation)
    zones = [Zone(None, each.end, each.start) for each in absences if math.isfinite(each.end)]
    puts: list[Zone] = []
    for version, cluster in of_version.items():
        (put,) = [operation for operation in cluster if operation.kind == "put"]
        if any(each.end < put.start for each in cluster):
            yield f"{name}: {version} was read before it was written"
        zone = Zone(version, min(each.end for each in cluster), max(each.start for each in cluster))
        if math.isfinite(zone.first):
            puts.append(zone._replace(last=put.start))
            zones.append(zone)
    for one, other in permutations(zones, 2):
        if one.contradicts(other):
            yield f"{name}: {other} while it was {one}"
    for read in absences:
        if read.kind == "read" and not _explained(read, absences, puts):
            yield f"{name}: absent in {read} though nobody deleted it since it was written"


def _explained(read: Operation, absences: Sequence[Operation], puts: Sequence[Zone]) -> bool:
    """Whether there is a deletion, or the beginning of time, with no whole write between it and the read."""
    ends = [-math.inf, *(each.end for each in absences if each.kind == "delete" and each.start < read.end)]
    return any(not any(end < put.last and put.first < read.start for put in puts) for end in ends)


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([("put", "1", 0, 1), ("put", "2", 2, 3), ("read", "1", 4, 5)], id="an-old-version"),
        pytest.param([("put", "1", 0, 1), ("delete", None, 2, 3), ("read", "1", 4, 5)], id="a-deleted-one"),
        pytest.param([("put", "1", 0, 1), ("read", None, 2, 3)], id="lost"),
        pytest.param([("read", "1", 0, 1), ("put", "1", 2, 3)], id="from-the-future"),
        pytest.param(
            [
                ("put", "1", 0, 9),
                ("put", "2", 0, 9),
                ("read", "1", 10, 11),
                ("read", "2", 12, 13),
                ("read", "1", 14, 15),
            ],
            id="there-and-back-again",
        ),
        pytest.param(
            [("put", "1", 0, 1), ("put", "2", 2, math.inf), ("read", "2", 3, 4), ("read", "1", 5, 6)],
            id="older-than-what-was-seen",
        ),
    ],
)
def test_a_stale_answer_is_found_in_a_history(history: list[Any]) -> None:
    assert contradictions([Operation(kind, "p", version, start, end) for kind, version, start, end in history])


@pytest.mark.parametrize(
    "history",
    [
        pytest.param([("read", None, 0, 1), ("put", "1", 2, 3), ("read", "1", 4, 5)], id="in-order"),
        pytest.param(
            [("put", "1", 0, 1), ("put", "2", 2, 9), ("read", "1", 3, 4), ("read", "2", 5, 6)], id="overlapping"
        ),
        pytest.param([("put", "1", 0, 1), ("put", "2", 2, math.inf), ("read", "1", 50, 60)], id="never-happened"),
        pytest.param([("put", "1", 0, 1), ("delete", None, 2, math.inf), ("read", None, 50, 60)], id="happened"),
        pytest.param(
            [("put", "1", 0, 5), ("delete", None, 0, 5), ("read", None, 6, 7), ("read", None, 8, 9)], id="deleted"
        ),
    ],
)
def test_a_history_that_some_order_explains_is_accepted(history: list[Any]) -> None:
    assert not contradictions([Operation(kind, "p", version, start, end) for kind, version, start, end in history])


class Clients:
    """Write and read at random, at both servers, and log every acknowledgement.

    Args:
        trouble: done before every tenth operation.
    """

    def __init__(self, world: Any, trouble: Callable[[], object] = lambda: None) -> None:
        self._world = world
        self._trouble = trouble
        self._seeds = count(random.randrange(1 << 40))
        self._lock = threading.Lock()
        self.unverified = 0
        self.refused = 0
        self.surprises: list[str] = []

    def run(self, operations: int) -> None:
        """One round, with names of its own: a write that is late in one of before is nothing to it."""
        number = next(_rounds)
        self._names = [f"round{number}-{name}" for name in range(NAMES)]
        self._left = iter(range(operations))
        self.history: list[Operation] = []
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, number: int) -> None:
        rng = random.Random(number)
        kinds: dict[Callable[[Any, str], None], int] = {
            self._put: 35,
            self._delete: 8,
            self._classify: 37,
            self._get: 12,
            self._list: 8,
        }
        clients = [httpx.Client(base_url=each.address, timeout=30) for each in (self._world.near, self._world.far)]
        while self._next():
            (act,) = rng.choices(list(kinds), list(kinds.values()))
            try:
                act(rng.choice(clients), rng.choice(self._names))
            except Exception as error:
                self.surprises.append(repr(error))
        for client in clients:
            client.close()

    def _next(self) -> bool:
        with self._lock:
            number = next(self._left, None)
            if number is not None and number % 10 == 0:
                self._trouble()
            return number is not None

    def _put(self, client: httpx.Client, name: str) -> None:
        with self._lock:
            seed = next(self._seeds)
        body, version = self._world.profile(seed)
        headers = {"content-type": "application/octet-stream"}
        start = time.monotonic()
        answer = client.put(f"/v1/profiles/{name}", content=body, headers=headers)
        if self._known(answer, 200, 201):
            assert answer.json()["version"] == version
        self._log("put", name, version, start, answer)

    def _delete(self, client: httpx.Client, name: str) -> None:
        start = time.monotonic()
        answer = client.delete(f"/v1/profiles/{name}")
        known = self._known(answer, 204, 404)
        # Who finds nothing to delete has read that there is nothing.
        self._log("read" if known and answer.status_code == 404 else "delete", name, None, start, answer)

    def _classify(self, client: httpx.Client, name: str) -> None:
        start = time.monotonic()
        answer = client.post("/v1/classify", json={"profile": name, "input": "w1 w2 w3"})
        if not self._known(answer, 200, 404):
            return
        if "x-profile-unverified" in answer.headers:
            self.unverified += 1
            return
        self._log("read", name, answer.json().get("profile_version"), start, answer)

    def _get(self, client: httpx.Client, name: str) -> None:
        start = time.monotonic()
        answer = client.get(f"/v1/profiles/{name}")
        if self._known(answer, 200, 404):
            self._log("read", name, answer.json().get("version"), start, answer)

    def _list(self, client: httpx.Client, name: str) -> None:
        start = time.monotonic()
        answer = client.get("/v1/profiles", params={"limit": 1000, "prefix": name})
        if self._known(answer, 200):
            found = {line["name"]: line["version"] for line in answer.json()["data"]}
            self._log("read", name, found.get(name), start, answer)

    def _known(self, answer: httpx.Response, *expected: int) -> bool:
        """Whether it is known what has happened."""
        if answer.status_code == 503:
            self.refused += 1
            assert answer.headers["retry-after"]
            return False
        assert answer.status_code in expected, answer.text
        return True

    def _log(
        self, kind: Literal["put", "delete", "read"], name: str, version: str | None, start: float, answer: Any
    ) -> None:
        end = math.inf if answer.status_code == 503 else time.monotonic()
        self.history.append(Operation(kind, name, version, start, end))


def judged(world: Any, operations: int = OPERATIONS, **options: Any) -> Clients:
    """Clients after their work; nothing that was verified may contradict another."""
    clients = Clients(world, **options)
    for _ in range(ROUNDS):
        clients.run(operations)
        assert clients.surprises == []
        problems = contradictions(clients.history)
        assert problems == [], "\n".join(problems[:5])
        assert {operation.kind for operation in clients.history} == {"put", "delete", "read"}
    return clients


@contextmanager
def meanwhile(act: Callable[[], None], every: float) -> Iterator[None]:
    """``act`` is done again and again, every so many seconds, beside what is done inside."""
    over = threading.Event()

    def again() -> None:
        while not over.wait(every):
            act()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_interleaved_writes_and_reads_at_two_servers_on_redis_find_nothing_stale(redis_pair: Any) -> None:
    clients = judged(redis_pair)
    assert (clients.unverified, clients.refused) == (0, 0)


def test_interleaved_writes_and_reads_at_two_servers_on_sqlite_find_nothing_stale(sqlite_pair: Any) -> None:
    clients = judged(sqlite_pair)
    assert (clients.unverified, clients.refused) == (0, 0)


def test_nothing_verified_is_stale_while_redis_drops_its_clients_again_and_again(redis_pair: Any) -> None:
    with redis_pair.commands() as commands:
        clients = judged(redis_pair, trouble=lambda: commands.client_kill_filter(_type="normal"))
    assert len(clients.history) > OPERATIONS * 0.8
    redis_pair.calm()
    after = judged(redis_pair, 100)
    assert (after.unverified, after.refused) == (0, 0)


def test_nothing_verified_is_stale_while_the_network_is_cut_slow_and_silent(redis_pair: Any) -> None:
    network = redis_pair.network
    rng = random.Random(1)

    def trouble() -> None:
        rng.choice([network.cut, network.break_down, network.stop, network.recover, network.recover])()
        network.delay = rng.choice([0.0, 0.0, 0.02])

    with meanwhile(trouble, 0.15):
        judged(redis_pair, OPERATIONS // 2)
    redis_pair.calm()
    after = judged(redis_pair, 100)
    assert (after.unverified, after.refused) == (0, 0)
