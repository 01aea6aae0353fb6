"""A device without enough memory: batches are halved until they fit, and everybody is answered.

One that is lost ends the process, which says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

# A device that has memory for 40 tokens at a time; it says so as CUDA does, then as torch's allocator for CPUs.
PROGRAM = """
from itertools import cycle
import torch
from xpeft_server.cli import main
from xpeft_server.model.classifier import Classifier

errors = cycle([
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
])
whole = Classifier.launch

def launch(self, inputs):
    if sum(len(each.text) for each in inputs) > 40:
        raise next(errors)()
    return whole(self, inputs)

Classifier.launch = launch
main.app()
"""


# A device that is lost by the first text of more than 40 tokens, once there is a file, and says so at every call from
# then on.
LOST = """
import time
from pathlib import Path
import torch
from xpeft_server.cli import main
from xpeft_server.model.classifier import Classifier

whole = Classifier.launch

def fail(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def launch(self, inputs):
    if any(len(each.text) > 40 for each in inputs):
        while not Path({file!r}).exists():
            time.sleep(0.01)
        torch.cuda.synchronize = fail
        fail()
    return whole(self, inputs)

Classifier.launch = launch
main.app()
"""


@pytest.fixture
def small_device(start_patient: Any, tmp_path: Path) -> Iterator[Any]:
    server = start_patient("memory://", program=PROGRAM, log=tmp_path / "server.log")
    server.wait_until_ready()
    yield server
    assert server.stop() == 0


def test_a_batch_too_large_for_the_device_is_halved_and_every_text_is_answered(
    small_device: Any, assert_unavailable: Any
) -> None:
    for number in range(8):
        assert small_device.put(f"p{number}", small_device.profile(number)).status_code == 201
    texts = [" ".join(["w1"] * (1 + number % 30)) for number in range(64)]
    alone = [small_device.classify("p0", text).json()["data"][0]["probs"] for text in texts]
    together = small_device.classify("p0", texts)
    assert together.status_code == 200
    assert [line["probs"] for line in together.json()["data"]] == alone
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda number: small_device.classify(f"p{number % 8}", texts), range(12)))
        assert {answer.status_code for answer in answers} == {200}
        hopeless = pool.submit(small_device.classify, "p1", " ".join(["w1"] * 50))
        others = list(pool.map(lambda number: small_device.classify(f"p{number % 8}"), range(32)))
        assert_unavailable(hopeless.result(), "unavailable")
        assert "no memory for a text of 52 tokens" in hopeless.result().json()["error"]["message"]
        assert {answer.status_code for answer in others} == {200}
    log = small_device.log.read_text()
    assert re.search(r"the device has no memory for \d+ texts, \d+ tokens: they are halved", log)
    assert "the device has no memory for one text of 52 tokens: " in log
    assert "Traceback" not in log
    assert small_device.client.get("/ready").status_code == 200


def test_a_device_that_is_lost_fails_everybody_at_once_and_ends_the_process(
    start_patient: Any, tmp_path: Path, until: Any
) -> None:
    file = tmp_path / "others wait"
    server = start_patient("memory://", program=LOST.format(file=str(file)), log=tmp_path / "server.log")
    server.wait_until_ready()
    for number in range(8):
        assert server.put(f"p{number}", server.profile(number)).status_code == 201
    assert server.classify("p0").status_code == 200
    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(server.classify, "p0", " ".join(["w1"] * 50))]
        until(lambda: server.metric("requests_running") == 1)
        asked += [pool.submit(server.classify, f"p{number}") for number in range(8)]
        until(lambda: server.metric("requests_waiting") == 8)
        file.touch()
        answers = [each.result() for each in asked]
    assert [answer.status_code for answer in answers] == [500] * 9
    assert not any("illegal memory access" in answer.text for answer in answers)
    assert server.process.wait(30) == 1
    assert server.stop() == 1
    log = server.log.read_text()
    assert "illegal memory access" in log
    assert log.count('"message": "the device thread ended"') == 1
    assert "this process ends with exit code 1" in log
