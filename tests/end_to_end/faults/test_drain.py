"""SIGTERM in the middle of much traffic."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx

CLIENTS = 12


def test_every_request_that_was_sent_before_sigterm_is_answered_and_the_server_ends_with_0(
    start_patient: Any, tmp_path: Path, until: Any
) -> None:
    server = start_patient(f"sqlite:///{tmp_path}/profiles.db", log=tmp_path / "server.log")
    server.wait_until_ready()
    bodies = [server.profile(number) for number in range(4)]
    acknowledged = {f"p{n}": server.put(f"p{n}", body).json()["version"] for n, body in enumerate(bodies)}
    told = threading.Event()
    answers: list[httpx.Response] = []
    lost: list[Exception] = []

    def ask(number: int) -> None:
        with httpx.Client(base_url=server.address, timeout=30) as client:
            texts = ["w1 w2 w3 " * 8] * (1 + 10 * (number % 4))
            while not told.is_set():
                try:
                    answers.append(client.post("/v1/classify", json={"profile": f"p{number % 4}", "input": texts}))
                except httpx.HTTPError as error:
                    lost.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) > 2 * CLIENTS)
    told.set()
    before = len(answers)
    server.process.terminate()
    for thread in threads:
        thread.join()
    assert lost == []
    in_flight = answers[before:]
    assert any(answer.status_code == 200 for answer in in_flight)
    for answer in answers:
        if answer.status_code == 503:
            # It was sent but had not come in yet: to be sent elsewhere.
            assert answer.headers["retry-after"]
        else:
            assert answer.status_code == 200, answer.text
            assert answer.json()["profile_version"] == acknowledged[answer.json()["profile"]]
    assert server.end() == 0
    assert "Traceback" not in server.log.read_text()
