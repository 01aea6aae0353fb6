"""Which of many profiles are still to be tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from xpeft_tuning.dataset import Dataset
from xpeft_tuning.journal import Entry, RefusedEntry, TunedEntry

from .sinks import Sink


class Candidate(NamedTuple):
    """A profile that is asked for.

    Args:
        value: of the field that tells its rows from the others'.
        digest: of what it depends on.
    """

    name: str
    value: str
    dataset: Dataset
    digest: str


class Plan(NamedTuple):
    """What to do, and what was done by earlier runs.

    Args:
        changed: how many of ``to_tune`` the journal has with another digest.
        lost: how many of them it has with this one, but they are not where they were put.
    """

    to_tune: Sequence[Candidate]
    skipped: Sequence[TunedEntry]
    refused: Sequence[RefusedEntry]
    changed: int
    lost: int


def plan_of(candidates: Sequence[Candidate], journalled: Mapping[str, Entry], sinks: Sequence[Sink]) -> Plan:
    """Skip what the journal has with the same digest and every sink in the same version, or what was refused.

    Raises: SinkFailed.
    """
    known = [(each, journalled[each.name]) for each in candidates if each.name in journalled]
    same = [entry for each, entry in known if entry.digest == each.digest]
    tuned = [entry for entry in same if isinstance(entry, TunedEntry)]
    there = [sink.versions([entry.name for entry in tuned]) for sink in sinks]
    skipped = [entry for entry in tuned if all(versions.get(entry.name) == entry.version for versions in there)]
    refused = [entry for entry in same if isinstance(entry, RefusedEntry)]
    done = {entry.name for entry in skipped} | {entry.name for entry in refused}
    return Plan(
        to_tune=[each for each in candidates if each.name not in done],
        skipped=skipped,
        refused=refused,
        changed=len(known) - len(same),
        lost=len(tuned) - len(skipped),
    )
