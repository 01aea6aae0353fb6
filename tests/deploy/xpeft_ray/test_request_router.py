"""What Ray Serve is told of a request; the order itself is test_ranking's."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from ray.serve.request_router import PendingRequest, RequestRouter

from xpeft_profiles import ProfileKey
from xpeft_ray.application import build
from xpeft_ray.request_router import ProfileRouter, profile_of
from xpeft_server.engine.requests import ClassifyRequest, GenerateRequest, TextInput

DESK = ProfileKey("acme", "desk")


def pending(*arguments: Any) -> PendingRequest:
    return PendingRequest(args=list(arguments), kwargs={}, metadata=None)


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        (pending(ClassifyRequest(DESK, (TextInput("hello"),))), "acme/desk"),
        (pending(GenerateRequest("acme", DESK, "Say")), "acme/desk"),
        (pending(GenerateRequest("acme", None, "Say")), None),
        (pending(), None),
        (None, None),
    ],
)
def test_a_request_is_known_by_its_tenants_profile(request_: PendingRequest | None, key: str | None) -> None:
    assert profile_of(request_) == key


@pytest.mark.parametrize(("told", "error"), [({"slck": 2}, "slck"), ({"slack": 0.5}, "slack = 0.5")])
def test_arguments_of_the_router_that_cannot_be_used_are_refused(told: dict[str, float], error: str) -> None:
    router = object.__new__(ProfileRouter)
    with pytest.raises((TypeError, ValueError), match=error):
        router.initialize_state(**told)


def test_the_engines_are_chosen_by_this_router_and_refuse_before_serve_does() -> None:
    ingress = build({"store": "redis://db", "device": "cuda", "min_replicas": "2", "max_replicas": "4"})
    engine = ingress._bound_deployment.init_args[1]._bound_deployment
    module, _, name = engine._deployment_config.request_router_config.request_router_class.partition(":")
    assert issubclass(getattr(importlib.import_module(module), name), RequestRouter)
    assert engine.max_ongoing_requests > 1024
    assert engine.ray_actor_options == {"num_cpus": 1.0, "num_gpus": 1.0}
    assert ingress._bound_deployment.ray_actor_options["num_cpus"] == 0
