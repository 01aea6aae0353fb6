"""The wall clock jumps by hours, there and back, while the server runs: only what is dated by it notices."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from typer.testing import CliRunner

from xpeft_server.cli.main import app

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
HOUR = 3600.0
GOOD_TIME = 30.0  # seconds, on a machine that has other things to do; the clock jumps by hours
MINUTES = 180.0  # a worker loads a model with what processor time others leave

# A tuning process is left its own clock: libfaketime breaks time.sleep, which the server itself does not use.
PROGRAM = """
import os
from xpeft_server.cli import main
del os.environ["LD_PRELOAD"]
main.app()
"""

pytestmark = pytest.mark.skipif(not LIBRARIES, reason="libfaketime is not installed (apt install faketime)")


class Dated(NamedTuple):
    """A server, and what sets its wall clock: hours from now."""

    server: Any
    jump: Callable[[int], None]
    lasting: str
    expiring: str

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.server.address, headers={"authorization": f"Bearer {key}"}, timeout=30)


@pytest.fixture(scope="module")
def dated_server(server_starter: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dated]:
    folder = tmp_path_factory.mktemp("clock")
    clock, keys = folder / "clock", folder / "keys.json"
    clock.write_text("+0h\n")

    def created(*arguments: str) -> str:
        command = ["keys", "create", "--tenant", "acme", "--file", str(keys), *arguments]
        return CliRunner().invoke(app, command).stdout.strip()

    def jump(hours: int) -> None:
        later = clock.with_name("later")
        later.write_text(f"{hours:+d}h\n")
        later.replace(clock)

    lasting, expiring = created("--role", "admin"), created("--role", "infer", "--expires", "2h")
    fake = {"FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    server = server_starter(
        f"sqlite:///{folder}/profiles.db",
        "--api-keys",
        str(keys),
        program=PROGRAM,
        warm=None,
        log=folder / "server.log",
        environ=fake | {"LD_PRELOAD": str(LIBRARIES[0])},
    )
    server.client.headers["authorization"] = f"Bearer {lasting}"
    server.wait_until_ready()
    yield Dated(server, jump, lasting, expiring)
    assert server.stop() == 0
    assert "Traceback" not in server.log.read_text()


@pytest.fixture
def dated(dated_server: Dated) -> Dated:
    """The server, at the right time."""
    dated_server.jump(+0)
    return dated_server


def asked(client: httpx.Client, name: str) -> dict[str, Any]:
    """An answer in good time, whose times are sane, and whose version is the current one: asked for until it is said to
    be, as a busy machine may keep the store from saying so."""
    began = time.monotonic()
    while True:
        answer = client.post("/v1/classify", json={"profile": name, "input": "w1 w2"})
        assert time.monotonic() - began < GOOD_TIME
        assert answer.status_code == 200, answer.text
        if "x-profile-unverified" not in answer.headers:
            break
    for header in ("x-queue-time", "x-inference-time", "x-total-time"):
        assert 0 <= float(answer.headers[header]) < GOOD_TIME
    document: dict[str, Any] = answer.json()
    return document


def test_requests_dates_and_keys_when_the_clock_jumps(dated: Dated) -> None:
    server = dated.server
    now = time.time()
    first = server.put("p", server.profile(1)).json()
    assert first["created"] == pytest.approx(now, abs=60)
    with dated.client(dated.expiring) as guest:
        assert asked(guest, "p")["created"] == pytest.approx(now, abs=60)
        dated.jump(+6)
        assert asked(server.client, "p")["created"] == pytest.approx(now + 6 * HOUR, abs=60)
        expired = guest.post("/v1/classify", json={"profile": "p", "input": "w1"})
        assert (expired.status_code, expired.json()["error"]["type"]) == (401, "authentication_error")
        later = server.put("p", server.profile(2)).json()
        assert later["created"] == first["created"]
        assert later["updated"] == pytest.approx(now + 6 * HOUR, abs=60)
        assert asked(server.client, "p")["profile_version"] == later["version"]
        dated.jump(-6)
        assert asked(guest, "p")["profile_version"] == later["version"]
        earlier = server.put("p", server.profile(3)).json()
        assert (earlier["created"], earlier["updated"]) == (first["created"], pytest.approx(now - 6 * HOUR, abs=60))
        assert asked(guest, "p")["profile_version"] == earlier["version"] == server.versions()["p"]
    assert server.client.get("/ready").status_code == 200


def test_a_tuning_job_survives_the_jumps_and_its_lease_with_it(dated: Dated) -> None:
    server = dated.server
    examples = [{"text": f"w{n % 2 * 50 + n}", "label": ("low", "high")[n % 2]} for n in range(40)]
    body = {"examples": examples, "settings": {"epochs": 5}}
    answer = server.client.post("/v1/profiles/tuned/tune", json=body)
    assert answer.status_code == 202, answer.text
    job = f"/v1/jobs/{answer.json()['id']}"
    deadline = time.monotonic() + MINUTES
    for hours in cycle([+6, -6]):
        dated.jump(hours)
        ended = server.client.get(job).json()
        if ended["status"] not in ("queued", "running"):
            break
        assert time.monotonic() < deadline, ended
        time.sleep(0.05)
    assert ended["status"] == "succeeded", ended
    assert asked(server.client, "tuned")["profile_version"] == ended["result"]["profile_version"]
