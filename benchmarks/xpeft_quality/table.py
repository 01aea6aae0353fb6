"""Cells as a Markdown table: methods down, sets across, mean ± standard deviation over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from .cell import Cell


def table(cells: Sequence[Cell]) -> str:
    """Methods and sets in the order in which they come; a cell with fewer than three seeds says how many."""
    values: dict[tuple[str, str], list[float]] = defaultdict(list)
    for cell in cells:
        values[cell.method, cell.set].append(cell.value)
    sets = list(dict.fromkeys(cell.set for cell in cells))
    methods = list(dict.fromkeys(cell.method for cell in cells))
    lines = [
        f"| method | {' | '.join(sets)} |",
        f"|---|{'---|' * len(sets)}",
        *(f"| {method} | {' | '.join(_shown(values[method, each]) for each in sets)} |" for method in methods),
    ]
    return "\n".join(lines) + "\n"


def _shown(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = f"{statistics.mean(values):.3f}"
    if len(values) == 1:
        return f"{mean} (1 seed)"
    spread = f"{mean} ± {statistics.stdev(values):.3f}"
    return spread if len(values) >= 3 else f"{spread} ({len(values)} seeds)"
