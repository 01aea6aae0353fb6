"""Processes that speak HTTP and cannot start: whoever starts them is told how they ended, and does not wait."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import pickle
import re
import signal
import socket
import ssl
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trustme

from xpeft_profiles import BankGeometry
from xpeft_server.api.access.auth import NoKeys, Role
from xpeft_server.api.access.key_file import new_key, write_keys
from xpeft_server.api.access.key_ring import KeyRing
from xpeft_server.api.tuning.tuner_port import TunerPort
from xpeft_server.cli.serve import front_processes
from xpeft_server.cli.serve.front import FrontFailed
from xpeft_server.cli.serve.front_processes import FrontProcesses
from xpeft_server.cli.serve.in_force import InForce, in_force
from xpeft_server.cli.serve.server_socket import bind
from xpeft_server.cli.serve.tls import server_tls
from xpeft_server.engine.errors import Unavailable
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import ClassifyAnswer, ClassifyRequest, EngineStatus, GenerateRequest, News
from xpeft_server.remote.peer import Peer
from xpeft_server.remote.summed_metrics import ConnectedMetrics, MetricsReport, summed
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import ONE_TENANT, LimitsFile

MINUTES = 240.0  # a process begins, and ends, with what processor time others leave


class Idle:
    """An engine that is there and takes nothing."""

    info = cast("Any", None)
    geometry = BankGeometry(
        fingerprint="sha256:0", blocks=1, adapters=2, hidden=4, width=2, layer_norm=True, shared_heads={}
    )

    def check_room(self, tenant: str) -> None: ...

    async def classify(self, request: ClassifyRequest) -> ClassifyAnswer:
        raise Unavailable("it takes nothing")

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[News, None]:
        raise Unavailable("it takes nothing")
        yield

    def status(self) -> EngineStatus:
        return EngineStatus(ready=True, checks={})


class NoJobs:
    submit = get = follow = cancel = list = None


async def nothing() -> None: ...


def processes(
    settings: Settings, listening: socket.socket, *command: str, in_force: Callable[[], InForce] = InForce
) -> FrontProcesses:
    return FrontProcesses(
        settings,
        engine=Idle(),
        tuner=cast("TunerPort", NoJobs()),
        metrics=Metrics(),
        listening=listening,
        connections=8,
        environ=os.environ,
        in_force=in_force,
        command=command,
    )


async def serve(
    settings: Settings, *command: str, meanwhile: Callable[[], Coroutine[None, None, None]] = nothing
) -> list[str]:
    """What is announced before they are closed. Raises: as `FrontProcesses.serve`.

    Args: meanwhile: what happens while they listen.
    """
    announced: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        fronts = processes(settings, listening, *command)
        serving = asyncio.create_task(fronts.serve(lambda: announced.append("they listen")))
        async with asyncio.timeout(MINUTES):
            while not (announced or serving.done()):
                await asyncio.sleep(0.01)
            if announced:
                await meanwhile()
            fronts.close()
            await serving
    return announced


async def test_they_are_announced_once_all_of_them_listen(tmp_path: Path) -> None:
    settings = Settings(http_processes=2, store=f"sqlite:///{tmp_path}/profiles.db")
    assert await serve(settings) == ["they listen"]


@pytest.mark.parametrize(
    ("program", "how"),
    [("raise SystemExit(3)", "with exit status 3"), ("import os; os.kill(os.getpid(), 9)", "by signal 9")],
)
async def test_one_that_ends_before_it_listens_ends_the_server(program: str, how: str) -> None:
    with pytest.raises(FrontFailed, match=f"^a process that is to speak HTTP ended {how} before it listened$"):
        await serve(Settings(http_processes=2), sys.executable, "-c", program)


async def test_one_that_cannot_use_a_file_says_which(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server itself could, a moment ago."""
    keys = tmp_path / "keys.json"
    settings = Settings(http_processes=1, store=f"sqlite:///{tmp_path}/profiles.db", api_keys=keys)
    with caplog.at_level(logging.ERROR), pytest.raises(FrontFailed):
        await serve(settings)
    assert str(keys) in caplog.text


async def test_an_address_at_which_another_program_listens_by_now_ends_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It could be bound, as that program did not listen yet."""
    settings = Settings(http_processes=1, store=f"sqlite:///{tmp_path}/profiles.db")
    with bind("127.0.0.1", 0) as other:
        address = other.getsockname()
        with bind(*address) as listening:
            other.listen()
            with caplog.at_level(logging.ERROR), pytest.raises(FrontFailed):
                async with asyncio.timeout(MINUTES):
                    await processes(settings, listening).serve(lambda: None)
    assert f"cannot listen at http://127.0.0.1:{address[1]}: Address already in use" in caplog.text


def speakers(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The processes that spoke HTTP, in the order in which they began."""
    return [int(each) for each in re.findall(r"process (\d+) speaks HTTP", caplog.text)]


async def test_one_that_hangs_is_killed_and_another_takes_its_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_processes, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(front_processes, "_SILENT_SECONDS", 1.0)
    settings = Settings(http_processes=1, store=f"sqlite:///{tmp_path}/profiles.db")

    async def paused() -> None:
        os.kill(speakers(caplog)[0], signal.SIGSTOP)
        while len(speakers(caplog)) < 2:
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO):
        await serve(settings, meanwhile=paused)
    assert "said nothing for 1 s" in caplog.text
    assert "ended by signal 9: another one takes its place" in caplog.text
    assert len(set(speakers(caplog))) == 2


async def test_one_that_cannot_be_started_again_is_tried_again_and_the_server_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine may have no room for a process now, and a second later it has."""
    monkeypatch.setattr(front_processes, "_PAUSE_SECONDS", 0.05)
    settings = Settings(http_processes=1, store=f"sqlite:///{tmp_path}/profiles.db")
    spawn, refused = asyncio.create_subprocess_exec, []

    async def no_room(*arguments: Any, **options: Any) -> Any:
        refused.append(1)
        if len(refused) <= 2:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return await spawn(*arguments, **options)

    async def killed() -> None:
        monkeypatch.setattr(asyncio, "create_subprocess_exec", no_room)
        os.kill(speakers(caplog)[0], signal.SIGKILL)
        while len(speakers(caplog)) < 2:
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO):
        await serve(settings, meanwhile=killed)
    assert caplog.text.count("temporarily unavailable: another one takes its place") == 2


async def test_one_whose_store_is_away_when_it_starts_again_is_tried_again_and_the_server_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_processes, "_PAUSE_SECONDS", 0.05)
    folder = tmp_path / "mounted"
    folder.mkdir()
    settings = Settings(http_processes=1, store=f"sqlite:///{folder}/profiles.db")

    async def unmounted() -> None:
        folder.rename(tmp_path / "away")
        os.kill(speakers(caplog)[0], signal.SIGKILL)
        while "another one takes its place" not in caplog.text.partition(f"there is no folder {folder}")[2]:
            await asyncio.sleep(0.01)
        (tmp_path / "away").rename(folder)
        while len(speakers(caplog)) < 2:
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO):
        await serve(settings, meanwhile=unmounted)
    assert "does not speak HTTP: store: " in caplog.text


async def test_one_that_cannot_use_a_file_when_it_starts_again_says_so_in_a_line_and_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_processes, "_PAUSE_SECONDS", 0.05)
    folder = tmp_path / "audit"
    folder.mkdir()
    settings = Settings(http_processes=1, store=f"sqlite:///{tmp_path}/profiles.db", audit_log=folder / "audit.log")

    async def mistaken() -> None:
        folder.rename(tmp_path / "away")
        os.kill(speakers(caplog)[0], signal.SIGKILL)
        while "another one takes its place" not in caplog.text.partition("does not speak HTTP: ")[2]:
            await asyncio.sleep(0.01)
        (tmp_path / "away").rename(folder)
        while len(speakers(caplog)) < 2:
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO):
        await serve(settings, meanwhile=mistaken)
    assert re.search(f"does not speak HTTP: audit_log = .*{folder}", caplog.text)
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert "the process that has the engine went away" not in said


async def test_one_that_takes_anothers_place_while_keys_and_limits_cannot_be_read_goes_on_with_those_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    keys, limits = tmp_path / "keys.json", tmp_path / "limits.json"
    secret, entry = new_key(id="k", tenant="acme", role=Role.ADMIN, expires=None)
    write_keys(keys, [entry])
    limits.write_text('{"default": {"requests_per_second": 1e-5}}')
    settings = Settings(
        http_processes=1, store=f"sqlite:///{tmp_path}/profiles.db", api_keys=keys, tenant_limits=limits
    )
    ring, tenants = KeyRing(keys), LimitsFile(limits)

    async def status(secret: str) -> int:
        async with httpx.AsyncClient(headers={"authorization": f"Bearer {secret}"}, timeout=30) as client:
            return (await client.get(f"{address}/v1/profiles")).status_code

    with socket.create_server(("127.0.0.1", 0)) as listening, caplog.at_level(logging.INFO):
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        fronts = processes(settings, listening, in_force=partial(in_force, ring, tenants, None))
        serving = asyncio.create_task(fronts.serve(lambda: None))
        async with asyncio.timeout(60):
            while not speakers(caplog):
                await asyncio.sleep(0.01)
            keys.write_text("{")
            limits.unlink()
            os.kill(speakers(caplog)[0], signal.SIGKILL)
            while len(speakers(caplog)) < 2:
                await asyncio.sleep(0.01)
            assert await status(secret) == 200
            assert await status("xp_another") == 401
            keys.write_text('{"keys": []}')
            while await status(secret) != 401:
                await asyncio.sleep(0.05)
            fronts.close()
            await serving
    said = capfd.readouterr().err
    assert f"the keys stay as they were: {keys}: not JSON" in said
    assert f"the limits of tenants stay as they were: {limits}: No such file" in said
    assert len(speakers(caplog)) == 2


async def test_one_that_takes_anothers_place_while_the_certificate_cannot_be_used_goes_on_with_that_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    certificate, key, authority = tmp_path / "server.pem", tmp_path / "server.key", trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    good = certificate.read_bytes()
    settings = Settings(
        http_processes=1, store=f"sqlite:///{tmp_path}/profiles.db", tls_certificate=certificate, tls_key=key
    )
    trusted = ssl.create_default_context(cafile=tmp_path / "ca.pem")
    with socket.create_server(("127.0.0.1", 0)) as listening, caplog.at_level(logging.INFO):
        fronts = processes(settings, listening, in_force=partial(in_force, NoKeys(), ONE_TENANT, server_tls(settings)))
        serving = asyncio.create_task(fronts.serve(lambda: None))
        async with asyncio.timeout(MINUTES):
            while not speakers(caplog):
                await asyncio.sleep(0.01)
            certificate.write_text("none")
            os.kill(speakers(caplog)[0], signal.SIGKILL)
            while len(speakers(caplog)) < 2:
                await asyncio.sleep(0.01)
            async with httpx.AsyncClient(verify=trusted, timeout=30) as client:
                health = await client.get(f"https://127.0.0.1:{listening.getsockname()[1]}/health")
            assert health.status_code == 200
            certificate.write_bytes(good)
            said = capfd.readouterr().err
            while "read the certificates of" not in said:
                await asyncio.sleep(0.05)
                said += capfd.readouterr().err
            fronts.close()
            await serving
    assert f"the certificates stay as they were: tls_certificate = '{certificate}'" in said
    assert len(speakers(caplog)) == 2


async def test_one_that_does_not_tell_its_metrics_in_time_counts_for_what_it_told_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(front_processes, "_METRICS_SECONDS", 0.05)
    busy = Metrics()
    busy.prompt_tokens.inc(5)

    class Hangs:
        told = False

        async def call(self, method: str) -> MetricsReport:
            assert method == "tell_metrics"
            if self.told:
                await asyncio.Event().wait()
            self.told = True
            return MetricsReport({}, pickle.dumps(busy.families()))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        fronts = processes(Settings(http_processes=1), listening)
        fronts._listeners.add(cast("Peer", Hangs()))
        for _ in range(2):
            page = summed(map(pickle.loads, await fronts._families()))
            assert b"\nxpeft_prompt_tokens_total 5.0\n" in page


class Front:
    """A process that counts, and is asked for what it has counted; it answers once it ``may_answer``."""

    def __init__(self) -> None:
        self.metrics = ConnectedMetrics(cast("Peer", None), top_profiles=2)
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def call(self, method: str) -> MetricsReport:
        assert method == "tell_metrics"
        told = self.metrics.report()
        await self.may_answer.wait()
        return told

    def count(self, **requests: int) -> None:
        for profile, times in requests.items():
            for _ in range(times):
                self.metrics.profile_requests.count("acme", profile)


@pytest.fixture
def fronts() -> Iterator[FrontProcesses]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield processes(Settings(http_processes=2), listening)


def joined(fronts: FrontProcesses) -> Front:
    front = Front()
    fronts._listeners.add(cast("Peer", front))
    return front


async def profile_requests(fronts: FrontProcesses) -> dict[str, float]:
    page = summed(map(pickle.loads, await fronts._families())).decode()
    found = re.findall(r'^xpeft_profile_requests_total{profile="(.+)",tenant=".*"} (.+)$', page, re.MULTILINE)
    return {profile: float(value) for profile, value in found}


async def test_profiles_of_all_processes_have_no_more_series_than_there_may_be_and_none_falls(
    fronts: FrontProcesses,
) -> None:
    fronts._metrics = Metrics(top_profiles=2)
    one, other = joined(fronts), joined(fronts)
    asked: list[tuple[Front, dict[str, int]]] = [
        (one, {"hot": 10, "x": 5}),
        (other, {"hot": 1000}),
        (one, {"x": 20, "y": 20}),
        (other, {"u": 40, "v": 30, "w": 20}),
        (one, {"u": 2000, "v": 3000}),
        (other, {"hot": 9}),
    ]
    before: dict[str, float] = {}
    for front, requests in asked:
        front.count(**requests)
        found = await profile_requests(fronts)
        assert len(found) <= 2 + 1
        assert {name: value for name, value in before.items() if found.get(name, value) < value} == {}
        before = found
    assert sum(before.values()) == sum(sum(requests.values()) for _, requests in asked)
    assert before.keys() == {"u", "v", "other"}


async def test_profiles_of_processes_that_ended_have_no_series_beside_those(fronts: FrontProcesses) -> None:
    fronts._metrics = Metrics(top_profiles=2)
    for number in range(10):
        front = joined(fronts)
        front.count(**{f"p{number}": 2, f"q{number}": 3})
        await fronts._families()
        fronts._listeners.clear()
        fronts._ended.add(pickle.loads(fronts._told.pop(cast("Peer", front))))  # noqa: S301
    found = await profile_requests(fronts)
    assert len(found) == 2 + 1
    assert sum(found.values()) == 10 * 5


async def test_what_a_process_counted_by_profile_is_counted_though_it_tells_too_late(
    fronts: FrontProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(front_processes, "_METRICS_SECONDS", 0.05)
    front = joined(fronts)
    front.count(desk=3)
    front.may_answer.clear()
    for _ in range(2):
        assert await profile_requests(fronts) == {"other": 0}
    front.count(desk=4)
    front.may_answer.set()
    await asyncio.gather(*fronts._hearing.values())
    assert await profile_requests(fronts) == {"desk": 7, "other": 0}
