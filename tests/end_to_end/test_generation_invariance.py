"""A generated text depends on its prompt, profile and seed: not on company, preemption, slots, or restarts.

On a GPU a logit's last bits may depend on how many sequences there are. In float32 no token hangs on them here; in
bfloat16, where one may, it is only counted how many texts are the same.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

PROFILES = 12
ROUNDS = 20 if os.environ.get("NIGHTLY") == "1" else 2
CPU = ("cpu", "float32")
GPU = ("cuda", "float32")
HALF = ("cuda", "bfloat16")
WAYS: dict[str, dict[str, Any]] = {"greedy": {}, "drawn": {"temperature": 0.9, "seed": 7, "top_k": 20}}
Asked = tuple[str, int, str]
Told = dict[Asked, dict[str, Any]]


def words(rng: random.Random, length: int) -> str:
    return " ".join(f"w{rng.randrange(100)}" for _ in range(length))


_rng = random.Random(2)
PROMPTS = [words(_rng, length) for length in (1, 13, 40)]
ASKED: list[Asked] = [
    (profile, prompt, way) for profile in ("base", "p0", "p1") for prompt in range(len(PROMPTS)) for way in WAYS
]


def body(asked: Asked) -> dict[str, Any]:
    profile, prompt, way = asked
    return {"profile": profile, "prompt": PROMPTS[prompt], "max_new_tokens": 80, **WAYS[way]}


def stranger_body(rng: random.Random) -> dict[str, Any]:
    sampling = {"temperature": rng.choice([0, 1.2]), "seed": rng.randrange(99), "max_new_tokens": rng.randint(1, 100)}
    return {"profile": f"p{rng.randrange(PROFILES)}", "prompt": words(rng, rng.randint(1, 50)), **sampling}


def told(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return {name: document[name] for name in ("profile_version", "text", "finish_reason", "usage")}


def ask_all(server: Any) -> Told:
    """One after the other, each alone."""
    return {asked: told(server.client.post("/v1/generate", json=body(asked))) for asked in ASKED}


def in_company(server: Any, seed: int) -> Told:
    """All at once, among as many strangers."""

    async def crowd() -> Told:
        rng = random.Random(seed)
        async with httpx.AsyncClient(base_url=server.client.base_url, timeout=60) as client:

            async def ask(asked: Asked | None) -> tuple[Asked | None, Any]:
                document = stranger_body(rng) if asked is None else body(asked)
                return asked, told(await client.post("/v1/generate", json=document))

            everybody: list[Asked | None] = [*ASKED, *[None] * len(ASKED)]
            rng.shuffle(everybody)
            answers = await asyncio.gather(*map(ask, everybody))
        return {asked: answer for asked, answer in answers if asked is not None}

    return asyncio.run(crowd())


def preemptions(server: Any) -> float:
    lines = server.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("xpeft_preemptions_total "))


class House(NamedTuple):
    """Starts servers over one store; ``roomy`` runs already, ``alone`` is what it answered."""

    start: Callable[..., Any]
    roomy: Any
    alone: Told
    sameness: Sameness

    def check(self, found: Told) -> None:
        self.sameness.check(found)


class Sameness:
    """What all texts are compared with: those that were written alone.

    Args: rounded: a token may hang on a logit's last bits.
    """

    def __init__(self, alone: Told, *, rounded: bool) -> None:
        self._alone = alone
        self._rounded = rounded
        self.counted = self.equal = 0

    def check(self, found: Told) -> None:
        self.counted += len(found)
        self.equal += sum(each == self._alone[asked] for asked, each in found.items())
        if not self._rounded:
            assert found == self._alone
            return
        for asked, each in found.items():
            assert each["profile_version"] == self._alone[asked]["profile_version"]
            assert each["usage"]["prompt_tokens"] == self._alone[asked]["usage"]["prompt_tokens"]


@pytest.fixture(scope="module")
def long_llama(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With more positions than it was made with, for texts that grow."""
    folder = tmp_path_factory.mktemp("long-llama") / "model"
    shutil.copytree(tiny_llama, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 256}))
    return folder


@pytest.fixture(scope="module", params=[CPU, GPU, HALF], ids="-".join)
def house(
    request: pytest.FixtureRequest,
    long_llama: Path,
    server_of: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    device, dtype = request.param
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU here")
    store = tmp_path_factory.mktemp("store") / "writers.db"
    servers = []

    def start(*more: str) -> Any:
        options = ["--plm", str(long_llama), "--device", device, "--dtype", dtype, "--store", f"sqlite:///{store}"]
        servers.append(server_of(*options, *more))
        servers[-1].wait_until_ready()
        return servers[-1]

    roomy = start()
    for number in range(PROFILES):
        assert roomy.put(f"p{number}", roomy.profile(number)).status_code == 201
    alone = ask_all(roomy)
    sameness = Sameness(alone, rounded=request.param == HALF)
    yield House(start, roomy, alone, sameness)
    assert {server.stop() for server in servers if server.process.poll() is None} == {0}
    if request.param != CPU:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            sys.stdout.write(f"\n{sameness.equal} of {sameness.counted} texts were those that are written alone\n")


def test_other_profiles_and_other_seeds_write_other_texts(house: House) -> None:
    """Else the comparisons below would say nothing."""
    for prompt in range(len(PROMPTS)):
        for way in WAYS:
            assert len({house.alone[profile, prompt, way]["text"] for profile in ("base", "p0", "p1")}) == 3
    other = {**body(("p0", 1, "drawn")), "seed": 8}
    answer = told(house.roomy.client.post("/v1/generate", json=other))
    assert answer["text"] != house.alone["p0", 1, "drawn"]["text"]


def test_alone_twice_and_in_company(house: House) -> None:
    house.check(ask_all(house.roomy))
    assert preemptions(house.roomy) == 0
    for seed in range(ROUNDS):
        house.check(in_company(house.roomy, seed))


def test_where_room_is_scarce_and_after_a_restart(house: House) -> None:
    """Sequences lose their room and begin anew, profiles lose their slots; the server is another one."""
    tight = house.start("--kv-tokens", "600", "--slots", "4", "--max-batch-tokens", "64")
    for seed in range(ROUNDS):
        house.check(in_company(tight, seed))
    assert preemptions(tight) > 10
    house.check(ask_all(tight))
    assert tight.stop() == 0
