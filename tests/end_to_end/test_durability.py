from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx


def upload_until_it_breaks(server: Any, acknowledged: dict[str, str], enough: threading.Event) -> None:
    for number in range(100_000):
        try:
            answer = server.put(f"p{number % 50}", server_profile(server, number))
        except httpx.TransportError:
            return
        if answer.status_code >= 500:
            return
        acknowledged[f"p{number % 50}"] = answer.json()["version"]
        if number == 60:
            enough.set()


def server_profile(server: Any, seed: int) -> bytes:
    body: bytes = server.profile(seed)
    return body


def test_every_acknowledged_upload_survives_kill_9_of_the_server(start_server: Any, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/profiles.db"
    server = start_server(store)
    server.wait_until_ready()
    acknowledged: dict[str, str] = {}
    enough = threading.Event()
    writer = threading.Thread(target=upload_until_it_breaks, args=(server, acknowledged, enough))
    writer.start()
    assert enough.wait(60)
    server.process.kill()
    writer.join(60)
    server.end()
    again = start_server(store)
    again.wait_until_ready()
    found = again.versions()
    lost = {name for name, version in acknowledged.items() if found.get(name) != version}
    assert len(acknowledged) == 50
    # The upload that the kill cut off may have been written though nobody was told.
    assert len(lost) <= 1
    for name in lost:
        assert name in found
    assert again.classify("p7").json()["profile_version"] == found["p7"]
    assert again.stop() == 0


def test_a_server_starts_while_its_store_is_down_and_is_ready_when_it_comes(start_server: Any, own_redis: Any) -> None:
    own_redis.kill()
    server = start_server(own_redis.url)
    waiting = server.client.get("/ready")
    assert waiting.status_code == 503
    assert waiting.json()["checks"]["store"] != "ok"
    assert server.classify("p").status_code == 503
    own_redis.start()
    server.wait_until_ready(20)
    assert server.classify("p").status_code == 404
