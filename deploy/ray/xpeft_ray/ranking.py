"""Which replica a request should go to: where its profile is likely to be resident, unless that one is busier."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping


def ranked(key: str | None, loads: Mapping[str, int], slack: float) -> list[str]:
    """All replicas, the best first.

    A key has an order of replicas of its own, the same in every process and for as long as a replica lives
    (rendezvous hashing; Thaler and Ravishankar, 1998): what is sent by this order finds its profile resident. A replica
    is passed over while it has more than its part of the load (consistent hashing with bounded loads; Mirrokni,
    Thorup and Zadimoghaddam, 2016), so nobody waits at one replica while another has less to do.

    Args:
        key: of the profile; None has no order of its own and goes by load alone.
        loads: requests that each replica has now.
        slack: a replica may have so many times the mean load, this request included.
    """
    if key is None:
        return sorted(loads, key=lambda replica: (loads[replica], replica))
    room = max(1, math.floor(slack * (sum(loads.values()) + 1) / max(1, len(loads))))
    order = sorted(loads, key=lambda replica: _weight(key, replica), reverse=True)
    # Sorting is stable: among equal loads the key's order decides.
    return sorted(order, key=lambda replica: 0 if loads[replica] < room else 1 + loads[replica])


def _weight(key: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{replica}\0{key}".encode(), digest_size=8).digest()
