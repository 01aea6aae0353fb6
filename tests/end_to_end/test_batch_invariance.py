"""An answer depends on its text and its profile: not on company, slots, evictions, uploads, restarts or replicas.

On a GPU in bfloat16 up to rounding, as products of other numbers of rows are added up in another order there.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import safetensors.numpy

from xpeft_profiles import Profile, write_profile_file

BANK = "random:N=12,R=8,seed=1,std=0.3"
STRANGERS = 31
ROUNDS = 50 if os.environ.get("NIGHTLY") == "1" else 4
TIGHT_SLOTS = 4
CPU = ("cpu", "float32")
GPU = ("cuda", "bfloat16")
Bits = dict[str, Any]
Answers = dict[tuple[str, str], Bits]


class Maker:
    """Profiles of every kind for a server's bank; another seed is another profile."""

    def __init__(self, info: dict[str, Any]) -> None:
        bank = info["bank"]
        self.fingerprint = bank["fingerprint"]
        self.blocks, self.adapters = bank["blocks"], bank["adapters"]
        self.hidden, self.width = bank["hidden"], bank["width"]

    def make(
        self, seed: int, *, soft: bool = False, norm: bool = False, labels: int = 3, shared: bool = False
    ) -> bytes:
        rng = np.random.default_rng(seed)
        shape = (2, self.blocks, self.adapters)
        if soft:
            weights = np.exp(rng.normal(0, 2, shape))
            masks = (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)
        else:
            masks = rng.permuted(np.broadcast_to(np.arange(self.adapters) < 3, shape), axis=-1)
        parts: dict[str, Any] = {}
        if norm:
            affine = (self.blocks, self.width)
            parts |= {"ln_weight": rng.normal(1, 0.3, affine), "ln_bias": rng.normal(0, 0.3, affine)}
        if shared:
            parts |= {"shared_head": "topics"}
        else:
            parts |= {"head_weight": rng.normal(0, 1, (labels, self.hidden)), "head_bias": rng.normal(0, 1, labels)}
            parts |= {"labels": tuple(f"label{number}" for number in range(labels))}
        halves = {
            name: each.astype(np.float16) if isinstance(each, np.ndarray) else each for name, each in parts.items()
        }
        return write_profile_file(Profile(bank=self.fingerprint, mask_a=masks[0], mask_b=masks[1], **halves))


KINDS: dict[str, dict[str, Any]] = {
    "hard": {},
    "soft": {"soft": True, "labels": 7},
    "hard-norm": {"norm": True, "labels": 2},
    "soft-norm": {"soft": True, "norm": True},
    "hard-shared": {"shared": True},
    "soft-norm-shared": {"soft": True, "norm": True, "shared": True},
    "number": {"labels": 1},
}


def words(rng: random.Random, length: int) -> str:
    return " ".join(f"w{rng.randrange(100)}" for _ in range(length))


_rng = random.Random(5)
TEXTS: dict[str, Any] = {
    "short": "w7",
    "long": words(_rng, 60),
    "pair": [{"text": words(_rng, 5), "text_pair": words(_rng, 11)}],
    "several": [words(_rng, length) for length in (1, 33, 2, 17, 9, 60)],
}
ASKED = [(kind, text) for kind in KINDS for text in TEXTS]


class House(NamedTuple):
    """Starts servers over one store, one model and one bank; ``roomy`` runs already, ``alone`` is what it answered."""

    start: Callable[..., Any]
    maker: Maker
    roomy: Any
    alone: Answers
    sameness: Sameness

    def check(self, found: Answers) -> None:
        self.sameness.count(found)
        self.sameness.check(found)


class Sameness:
    """What all answers are compared with: those that were given alone.

    Without ``exact`` they are the same bits. With it, answers in float32 over the same (bfloat16) numbers, let e be the
    largest error of an answer alone. Whatever the company, an answer is a rounding of one exact value and within e of
    it, so by the triangle inequality two of them are within 2e of each other.
    """

    def __init__(self, alone: Answers, exact: Answers | None) -> None:
        self._alone = alone
        self._errors = None if exact is None else largest_differences(alone, exact)
        self.counted = self.equal = 0

    def count(self, found: Answers) -> None:
        """How many are the same bits, wherever they are computed."""
        self.counted += len(found)
        self.equal += sum(answer == self._alone[asked] for asked, answer in found.items())

    def check(self, found: Answers) -> None:
        if self._errors is None:
            assert found == {asked: self._alone[asked] for asked in found}
            return
        for asked, answer in found.items():
            assert {**answer, "data": None} == {**self._alone[asked], "data": None}
            for each in answer["data"]:
                best = int(np.argmax(each["probs"] or [0]))
                assert each["label"] == answer["labels"][best]
        for scale, difference in largest_differences(found, self._alone).items():
            assert difference <= 2 * self._errors[scale], (scale, difference)


def largest_differences(some: Answers, others: Answers) -> dict[str, float]:
    """Of probabilities, and of numbers, which have another scale."""
    found = {"probability": 0.0, "number": 0.0}
    for asked, answer in some.items():
        for one, other in zip(answer["data"], others[asked]["data"], strict=True):
            scale = "probability" if one["probs"] else "number"
            values = np.array([each["probs"] or [each["score"]] for each in (one, other)])
            found[scale] = max(found[scale], float(np.abs(values[0] - values[1]).max()))
    return found


def bits(answer: httpx.Response) -> Bits:
    """The numbers of an answer, and what they were computed from; a float is written so that it is read the same."""
    assert answer.status_code == 200, answer.text
    document = answer.json()
    return {name: document[name] for name in ("profile_version", "labels", "data", "usage")}


def body(kind: str, text: str) -> dict[str, Any]:
    return {"profile": kind, "input": TEXTS[text]}


def ask_all(server: Any) -> Answers:
    """One after the other, each alone."""
    return {asked: bits(server.client.post("/v1/classify", json=body(*asked))) for asked in ASKED}


def stranger_body(rng: random.Random) -> dict[str, Any]:
    texts = [words(rng, rng.randint(1, 60)) for _ in range(rng.choice((1, 1, 1, 5)))]
    return {"profile": f"stranger{rng.randrange(STRANGERS)}", "input": texts}


def in_company(server: Any, rounds: int) -> list[Answers]:
    """What is asked, all at once and in another order each time, among strangers of other profiles and lengths."""

    async def crowd(rng: random.Random) -> Answers:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.client.base_url, timeout=60, limits=limits) as client:

            async def ask(asked: tuple[str, str] | None) -> tuple[tuple[str, str] | None, Bits]:
                document = stranger_body(rng) if asked is None else body(*asked)
                return asked, bits(await client.post("/v1/classify", json=document))

            everybody: list[tuple[str, str] | None] = [*ASKED, *[None] * STRANGERS]
            rng.shuffle(everybody)
            answers = await asyncio.gather(*map(ask, everybody))
        return {asked: answer for asked, answer in answers if asked is not None}

    return [asyncio.run(crowd(random.Random(seed))) for seed in range(rounds)]


def in_halves(tensors: dict[str, Any]) -> dict[str, Any]:
    """As bfloat16 keeps them: no server's dtype changes these numbers."""
    import torch

    return {name: torch.from_numpy(each).bfloat16().float().numpy() for name, each in tensors.items()}


@pytest.fixture(scope="module")
def model(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves") / "model"
    shutil.copytree(tiny_bert, folder)
    weights = folder / "model.safetensors"
    safetensors.numpy.save_file(in_halves(safetensors.numpy.load_file(weights)), weights, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bank_file(model: Path, warm_programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with a shared head."""
    path = tmp_path_factory.mktemp("bank") / "bank.safetensors"
    options = ["--plm", str(model), "--bank", BANK, "--out", str(path)]
    subprocess.run([warm_programs / "xpeft", "bank", "create", *options], check=True, capture_output=True)
    with safetensors.safe_open(path, "np") as opened:
        metadata = opened.metadata()
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        hidden = tensors["down"].shape[2]
    weight = np.random.default_rng(3).normal(0, 1, (4, hidden)).astype(np.float32)
    tensors |= {"heads.topics.weight": weight, "heads.topics.bias": weight[:, 0].copy()}
    metadata |= {"heads": json.dumps({"topics": ["air", "land", "sea", "other"]})}
    safetensors.numpy.save_file(in_halves(tensors), path, metadata)
    return path


def _require(device: str) -> None:
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU here")


@pytest.fixture(scope="module", params=[CPU, GPU], ids="-".join)
def house(
    request: pytest.FixtureRequest,
    model: Path,
    bank_file: Path,
    server_of: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[House]:
    _require(request.param[0])
    store = tmp_path_factory.mktemp("store") / "profiles.db"
    options = [
        "--plm",
        str(model),
        "--bank",
        str(bank_file),
        "--store",
        f"sqlite:///{store}",
        "--queue-seconds",
        "3600",
    ]
    servers = []

    def start(*more: str, on: tuple[str, str] = request.param) -> Any:
        servers.append(server_of(*options, "--device", on[0], "--dtype", on[1], *more))
        servers[-1].wait_until_ready()
        return servers[-1]

    roomy = start()
    maker = Maker(roomy.client.get("/info").json())
    for seed, (kind, form) in enumerate(KINDS.items()):
        assert roomy.put(kind, maker.make(seed, **form)).status_code == 201
    for number in range(STRANGERS):
        form = list(KINDS.values())[number % len(KINDS)]
        assert roomy.put(f"stranger{number}", maker.make(1000 + number, **form)).status_code == 201
    alone = ask_all(roomy)
    sameness = Sameness(alone, None if request.param == CPU else ask_all(start(on=CPU)))
    yield House(start, maker, roomy, alone, sameness)
    assert {server.stop() for server in servers if server.process.poll() is None} == {0}
    if request.param != CPU:
        with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
            said = f"\n{sameness.equal} of {sameness.counted} answers had the bits that they have alone\n"
            sys.stdout.write(said)


def test_another_profile_or_another_word_gives_other_bits(house: House) -> None:
    """Else the comparisons below would say nothing."""
    for text in TEXTS:
        for one in KINDS:
            for other in KINDS:
                if one != other:
                    assert house.alone[one, text]["data"] != house.alone[other, text]["data"]
        wrong = {**house.alone["hard", text], "data": house.alone["soft-norm", text]["data"]}
        with pytest.raises(AssertionError):
            house.sameness.check({("hard", text): wrong})
    changed = house.roomy.client.post("/v1/classify", json={"profile": "hard", "input": "w8"})
    assert bits(changed)["data"] != house.alone["hard", "short"]["data"]
    # The same profile but for one adapter of one block.
    assert house.roomy.put("close", close_to(house.maker.make(0))).status_code == 201
    close = house.roomy.client.post("/v1/classify", json={"profile": "close", "input": TEXTS["short"]})
    assert bits(close)["data"] != house.alone["hard", "short"]["data"]


def close_to(file: bytes) -> bytes:
    """The profile with another adapter in the last row of ``mask_b``."""
    from xpeft_profiles import read_profile_file

    profile = read_profile_file(file)
    mask = profile.mask_b.copy()
    mask[-1] = np.roll(mask[-1], 1)
    words_ = {name: getattr(profile, name) for name in ("bank", "mask_a", "head_weight", "head_bias", "labels")}
    return write_profile_file(Profile(mask_b=mask, **words_))


def test_alone_twice(house: House) -> None:
    house.check(ask_all(house.roomy))


def test_among_strangers(house: House) -> None:
    before = house.roomy.metric("batch_profiles_count"), house.roomy.metric('batch_profiles_bucket{le="8.0"}')
    for answers in in_company(house.roomy, ROUNDS):
        house.check(answers)
    batches, small = house.roomy.metric("batch_profiles_count"), house.roomy.metric('batch_profiles_bucket{le="8.0"}')
    assert batches - before[0] > small - before[1], "no batch had more than eight profiles"


def test_on_a_second_replica_whose_slots_are_few(house: House) -> None:
    tight = house.start("--slots", str(TIGHT_SLOTS), "--max-batch-tokens", "256")
    house.check(ask_all(tight))
    for answers in in_company(tight, ROUNDS):
        house.check(answers)
    assert tight.metric('profile_cache_evictions_total{tier="device"}') > 50
    house.check(ask_all(tight))
    assert tight.stop() == 0


def test_after_uploads_of_the_same_profile_and_of_another_between(house: House) -> None:
    for seed, (kind, form) in enumerate(KINDS.items()):
        assert house.roomy.put(kind, house.maker.make(seed, **form)).status_code == 200
    house.check(ask_all(house.roomy))
    for seed, (kind, form) in enumerate(KINDS.items()):
        assert house.roomy.put(kind, house.maker.make(2000 + seed, **form)).status_code == 200
        between = bits(house.roomy.client.post("/v1/classify", json=body(kind, "long")))
        assert between["data"] != house.alone[kind, "long"]["data"]
        assert house.roomy.client.delete(f"/v1/profiles/{kind}").status_code == 204
        assert house.roomy.put(kind, house.maker.make(seed, **form)).status_code == 201
    house.check(ask_all(house.roomy))


def test_after_a_restart(house: House) -> None:
    again = house.start()
    house.check(in_company(again, 1)[0])
    house.check(ask_all(again))
    assert again.stop() == 0
