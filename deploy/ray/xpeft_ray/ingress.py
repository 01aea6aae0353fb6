"""What Ray Serve runs for HTTP: it reads, checks and answers requests, and has no model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from xpeft_profiles import open_store
from xpeft_server.cli.serve.http_parts import build_http_parts
from xpeft_server.cli.serve.server_logging import configure_server_logging
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import choose_tenant_limits

from .door import Door
from .exposition import Exposition, ReplicatedMetrics
from .serve_replicas import ServePeers, ServeReplicas

DEPLOYMENT: Final = "ingress"


class Ingress:
    """Builds the door in its own process; Serve starts and stops it by its lifespan.

    Raises: SettingsInvalid, KeysInvalid, LimitsInvalid or StoreUrlInvalid if one of its parts cannot be used.
    """

    def __init__(self, settings: Settings, engine: DeploymentHandle[Any]) -> None:
        configure_server_logging(settings)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._metrics = ReplicatedMetrics(
            top_profiles=settings.metrics_top_profiles, name=self._name, others=self._others
        )
        self._door = Door(
            settings,
            replicas=ServeReplicas(engine),
            store=open_store(settings.store),
            parts=build_http_parts(settings, os.environ, self._metrics),
            tenants=choose_tenant_limits(settings),
            metrics=self._metrics,
            peers=ServePeers(serve.get_deployment_handle(DEPLOYMENT)),
        )

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._door

    def exposition(self) -> Exposition:
        """Asked for by every ingress, each of which shows the metrics of all."""
        return Exposition(self._name, self._metrics.own())

    def _others(self) -> Mapping[str, bytes]:
        return self._door.expositions
