"""What became of many profiles, in one table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from xpeft_tuning.dataset import Task
from xpeft_tuning.journal import Entry, RefusedEntry, TunedEntry

from ..screen import say, show_facts
from .plan import Plan

_TOLD: Final = 5  # refusals; the journal has all of them


def show_summary(plan: Plan, entries: Sequence[Entry], *, task: Task, seconds: float, journal: Path) -> int:
    """Say what this run and the earlier ones came to. Args: entries: of this run. Returns: how many are refused."""
    tuned = [entry for entry in entries if isinstance(entry, TunedEntry)]
    refused = [*plan.refused, *(entry for entry in entries if isinstance(entry, RefusedEntry))]
    every = [*plan.skipped, *tuned]
    facts = {
        "profiles tuned": f"{len(tuned):,}",
        "  skipped, done before": f"{len(plan.skipped):,}",
        "  refused": f"{len(refused):,}",
        **_means(every, task),
        "wall time": f"{seconds:.1f} s",
        "profiles a second": f"{len(tuned) / seconds:.2f}" if tuned else "-",
    }
    show_facts(facts.items())
    cut = sum(entry.cut for entry in every)
    if cut:
        say(f"{cut:,} texts were longer than the model takes; what was beyond its limit was not read.")
    for entry in refused[:_TOLD]:
        say(f"refused {entry.name}: {entry.refused}")
    if len(refused) > _TOLD:
        say(f"refused {len(refused) - _TOLD:,} more: see {journal}")
    return len(refused)


def _means(entries: Iterable[TunedEntry], task: Task) -> dict[str, str]:
    """Means over the held-out rows of all profiles, tuned now or before, so that each row counts the same."""
    measured = [(entry.held_out, entry.majority, entry.bare) for entry in entries if entry.held_out is not None]
    rows = f"{sum(score.rows for score, _, _ in measured):,}, of {len(measured):,} profiles"
    loss = _mean([(score.loss, score.rows) for score, _, _ in measured], ".4g")
    match task:
        case "classify":
            means = {
                "  mean accuracy": _mean([(score.accuracy, score.rows) for score, _, _ in measured], ".3f"),
                "  always the most frequent label": _mean([(share, score.rows) for score, share, _ in measured], ".3f"),
            }
        case "regress":
            correlation = _mean([(score.correlation, score.rows) for score, _, _ in measured], ".3f")
            means = {"  mean correlation": correlation, "  mean squared error": loss}
        case "complete":
            bare = _mean([(alone and alone.loss, score.rows) for score, _, alone in measured], ".4g")
            means = {"  a token's mean loss, nats": loss, "  that of the bare model": bare}
    return {"held-out rows": rows, **means}


def _mean(weighted: Sequence[tuple[float | None, int]], form: str) -> str:
    """Of the values that are there."""
    known = [(value, weight) for value, weight in weighted if value is not None]
    if not known:
        return "-"
    return format(sum(value * weight for value, weight in known) / sum(weight for _, weight in known), form)
