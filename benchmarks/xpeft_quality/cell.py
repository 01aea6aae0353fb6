"""One number of the table: a method on a set with a seed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """``value`` is the set's metric on rows that nothing was learned from.

    Args:
        details: whatever else was measured, units in the names.
        context: command, machine, versions and date.
    """

    set: str
    method: str
    seed: int
    value: float
    seconds: float
    details: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)


def read_cells(path: Path) -> list[Cell]:
    """Of equal set, method and seed the last counts."""
    if not path.exists():
        return []
    cells = (Cell(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())
    return list({(cell.set, cell.method, cell.seed): cell for cell in cells}.values())


def append_cells(path: Path, cells: Iterable[Cell]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(cell), sort_keys=True) + "\n" for cell in cells)
