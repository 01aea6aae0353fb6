"""The servers that `xpeft bench load` sends to, with the profiles that it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from ..command_line import shown_word
from ..processes.server_client import ServerRefused, geometry_of
from ..processes.xpeft_target import XpeftTarget, met_at, started
from ..stretches import Counters, server_counters
from .plan import Kind, LoadPlan, TargetPlan

_FACTS: Final = ("version", "plm", "model_type", "dtype", "device", "kernels", "store")
_TO_BE_ALIKE: Final = ("plm", "dtype", "device")


@dataclass(frozen=True, slots=True)
class LoadTarget:
    """A server that is ready for the load.

    Args:
        facts: what /info says of it.
        counters: what it has used and done so far, empty unless it was started here: behind a URL may be many servers.
    """

    server: XpeftTarget
    url: str
    facts: Mapping[str, Any]
    counters: Counters


def open_targets(plan: LoadPlan, stack: ExitStack, *, on_step: Callable[[str], None]) -> dict[str, LoadTarget]:
    """Start or meet every target of the plan and upload the profiles; those that were started end with ``stack``.

    Raises: ServerFailed, ServerRefused.
    """
    servers: dict[str, XpeftTarget] = {}
    for each in plan.targets:
        on_step(f"starting xpeft serve: {each.name}" if each.url is None else f"asking {each.name}")
        servers[each.name] = _server(plan, each, stack)
    # All must be fit before any is written to.
    infos = {name: _info(plan.kind, name, server) for name, server in servers.items()}
    targets = {}
    for name, server in servers.items():
        on_step(f"{name}: uploading {plan.profiles} profiles of {len(server.keys)} tenants")
        server.put_profiles(plan.profiles, geometry_of(infos[name]), seed=plan.seed)
        facts = {**{fact: infos[name][fact] for fact in _FACTS}, "plm": shown_word(infos[name]["plm"])}
        client = server.client if server.process is not None else None
        url = f"{server.client.url}/v1/{plan.kind}"
        targets[name] = LoadTarget(server, url, facts, server_counters(client, server.process))
    for fact in _TO_BE_ALIKE:
        if len(has := {str(target.facts[fact]) for target in targets.values()}) > 1:
            on_step(f"the targets differ in {fact}: {', '.join(sorted(has))}")
    return targets


def _server(plan: LoadPlan, target: TargetPlan, stack: ExitStack) -> XpeftTarget:
    if target.url is not None:
        return met_at(target.url, target.key, plan.tls)
    return stack.enter_context(started(plan.server, store=plan.store, tenants=plan.tenants))


def _info(kind: Kind, name: str, server: XpeftTarget) -> dict[str, Any]:
    info = server.client.info(server.keys[0])
    if kind is Kind.GENERATE and not info["generates"]:
        raise ServerRefused(f"{name}: its language model {info['plm']} ({info['model_type']}) does not generate")
    return info
