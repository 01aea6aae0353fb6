"""The application that ``serve run`` and ``serve deploy`` build: an ingress over engines."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from ray import serve

from xpeft_server.cli.heap import PRODUCT_CACHES, TUNABLES, VARIABLE
from xpeft_server.settings import Settings

from .engine_replica import EngineReplica
from .ingress import DEPLOYMENT, Ingress
from .options import Scale, read_options

# Calls for reports, which a replica gets beside its requests.
_REPORTS: Final = 64
# An ingress waits for engines and holds streams open; it is the engines that refuse.
_INGRESS_REQUESTS: Final = 10_000
_STARTS: Final = 3
# Serve learns of a dead process at its next check.
_HEALTH_SECONDS: Final = 2.0
_ROUTER: Final = "xpeft_ray.request_router:ProfileRouter"
# Serve would log every call and report of a replica.
_QUIET: Final = {"enable_access_log": False}


def build(arguments: Mapping[str, object]) -> serve.Application:
    """Args: ``arguments``: see `read_options`. Raises: SettingsInvalid."""
    settings, scale = read_options(arguments, os.environ)
    engine = _engine(settings, scale).bind(settings)
    return _ingress(scale).bind(settings, engine)


def _engine(settings: Settings, scale: Scale) -> serve.Deployment:
    resources: dict[str, Any] = {"num_cpus": scale.cpus_per_replica}
    if settings.device == "cuda":
        resources["num_gpus"] = scale.gpus_per_replica
    else:
        # What `xpeft serve` re-executes itself for: glibc reads it only when a process begins.
        wanted = {VARIABLE: TUNABLES, **PRODUCT_CACHES}
        resources["runtime_env"] = {"env_vars": {name: os.environ.get(name, value) for name, value in wanted.items()}}
    return serve.deployment(
        name="engine",
        ray_actor_options=resources,
        # Requests wait in the engine's queue, which is fair between tenants and refuses; Serve's own has no order.
        max_ongoing_requests=settings.queue_limit + _REPORTS,
        max_queued_requests=settings.queue_limit,
        request_router_config={"request_router_class": _ROUTER},
        # An engine that cannot be built will not be built at the twentieth try.
        max_constructor_retry_count=_STARTS,
        health_check_period_s=_HEALTH_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        logging_config=_QUIET,
        **_replicas(scale),
    )(EngineReplica)


def _replicas(scale: Scale) -> dict[str, Any]:
    if scale.min_replicas == scale.max_replicas:
        return {"num_replicas": scale.min_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": scale.min_replicas,
            "max_replicas": scale.max_replicas,
            "target_ongoing_requests": scale.target_ongoing_requests,
        }
    }


def _ingress(scale: Scale) -> serve.Deployment:
    return serve.deployment(
        name=DEPLOYMENT,
        num_replicas=scale.ingress_replicas,
        # HTTP needs little, and must not take a machine's last processor from an engine.
        ray_actor_options={"num_cpus": 0},
        logging_config=_QUIET,
        max_ongoing_requests=_INGRESS_REQUESTS,
    )(serve.ingress()(Ingress))
