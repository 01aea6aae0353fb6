"""Everything that a profile depends on, as one digest: with the same one it need not be tuned again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from .dataset import Dataset
from .settings import TuningSettings


@dataclass(frozen=True)
class Recipe:
    """All that the profiles of a run have in common.

    Args:
        plm, bank: fingerprints.
        dtype: of the PLM while tuning.
    """

    plm: str
    bank: str
    dtype: str
    settings: TuningSettings

    def digest(self, dataset: Dataset) -> str:
        """``sha256:HEX`` of the recipe, of task and labels in their order, and of the rows in theirs.

        Which profiles are tuned together is no part of it: they do not influence each other beyond rounding.
        """
        found = hashlib.sha256(_line(asdict(self)))
        found.update(_line([dataset.task, dataset.labels]))
        for row in dataset.examples:
            found.update(_line([row.text, row.label, row.text_pair, row.split]))
        return f"sha256:{found.hexdigest()}"


def _line(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode() + b"\n"
