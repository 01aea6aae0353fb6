"""Ray Serve's choice of a replica, by the profile of the request."""

from __future__ import annotations

from typing import Any, Final

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from xpeft_server.engine.requests import ClassifyRequest, GenerateRequest

from .ranking import ranked

SLACK: Final = 1.25
"""A replica may have so many times the mean load before another is preferred for its profiles."""


class ProfileRouter(RequestRouter):
    """Ranks all replicas for each request; Serve takes the first that has room, at once."""

    def initialize_state(self, *, slack: float = SLACK, **unknown: Any) -> None:
        """Called by Serve with ``request_router_kwargs``. Raises: TypeError, ValueError."""
        if unknown:
            raise TypeError(f"request_router_kwargs has {', '.join(sorted(unknown))}, and only slack is known")
        if not slack >= 1:
            raise ValueError(f"slack = {slack!r} in request_router_kwargs is less than 1")
        self._slack = slack

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        if pending_request is not None:
            # Where every replica is full, Serve shall pause before it asks again.
            pending_request.routing_context.should_backoff = True
        replicas = {each.replica_id.unique_id: each for each in candidate_replicas}
        loads = {name: self.replica_queue_len_cache.get(each.replica_id) or 0 for name, each in replicas.items()}
        order = ranked(profile_of(pending_request), loads, self._slack)
        return [[replicas[name]] for name in order]


def profile_of(pending_request: PendingRequest | None) -> str | None:
    """A name of the request's profile that is unique across tenants; None without a profile."""
    if pending_request is None or not pending_request.args:
        return None
    match pending_request.args[0]:
        case ClassifyRequest(profile=profile) | GenerateRequest(profile=profile) if profile is not None:
            return f"{profile.tenant}/{profile.name}"
    return None
