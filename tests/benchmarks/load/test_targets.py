from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest

from xpeft_benchmarks.load import targets as load_targets
from xpeft_benchmarks.load.plan import Kind, LoadPlan, TargetPlan
from xpeft_benchmarks.load.slo import Slo
from xpeft_benchmarks.load.targets import open_targets
from xpeft_benchmarks.popularity import Popularity
from xpeft_benchmarks.processes.server_client import ServerClient, ServerRefused
from xpeft_benchmarks.processes.xpeft_target import XpeftTarget

BANK = {"fingerprint": "sha256:" + "ab" * 32, "blocks": 2, "adapters": 8, "hidden": 32, "width": 4, "layer_norm": True}


class Described(ServerClient):
    """A server that only its description stands for."""

    def __init__(self, url: str, **facts: Any) -> None:
        super().__init__(url)
        self.facts = {
            "version": "0.1.0",
            "plm": "/models/tiny",
            "model_type": "bert",
            "dtype": "float32",
            "device": "cpu",
            "kernels": {},
            "store": "memory",
            "generates": False,
            "bank": BANK,
            **facts,
        }
        self.uploaded: list[tuple[str, str | None]] = []

    def info(self, key: str | None) -> dict[str, Any]:
        return self.facts

    def put_profile(self, name: str, geometry: Any, key: str | None, *, seed: int, index: int) -> None:
        self.uploaded.append((name, key))


def plan(kind: Kind = Kind.CLASSIFY) -> LoadPlan:
    return LoadPlan(
        targets=(TargetPlan("one", "http://one:1", "k1"), TargetPlan("two", "https://two", None)),
        kind=kind,
        rates=(20.0,),
        seconds=1.0,
        rounds=1,
        profiles=2,
        popularity=Popularity.parse("distinct"),
        texts=2,
        slo=Slo(0.1),
        server={},
        tenants=1,
        plm="tiny",
    )


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> dict[str, Described]:
    known = {"http://one:1": Described("http://one:1"), "https://two": Described("https://two")}
    monkeypatch.setattr(load_targets, "met_at", lambda url, key, _: XpeftTarget(known[url], (key,), None))
    return known


def test_every_target_gets_the_profiles_with_its_own_key(clients: dict[str, Described]) -> None:
    targets = open_targets(plan(), ExitStack(), on_step=lambda _: None)
    assert clients["http://one:1"].uploaded == [("bench-000000", "k1"), ("bench-000001", "k1")]
    assert clients["https://two"].uploaded == [("bench-000000", None), ("bench-000001", None)]
    assert targets["two"].url == "https://two/v1/classify"
    assert targets["two"].facts["plm"] == "tiny"
    assert targets["two"].counters() == {}


def test_nothing_is_written_anywhere_if_one_target_cannot_be_measured(clients: dict[str, Described]) -> None:
    clients["http://one:1"].facts["generates"] = True
    with pytest.raises(ServerRefused, match=r"two: its language model .* \(bert\) does not generate"):
        open_targets(plan(Kind.GENERATE), ExitStack(), on_step=lambda _: None)
    assert clients["http://one:1"].uploaded == []


def test_targets_that_differ_are_measured_and_it_is_said(clients: dict[str, Described]) -> None:
    clients["https://two"].facts["dtype"] = "bfloat16"
    steps: list[str] = []
    open_targets(plan(), ExitStack(), on_step=steps.append)
    assert "the targets differ in dtype: bfloat16, float32" in steps
    assert not [step for step in steps if "differ in plm" in step]
