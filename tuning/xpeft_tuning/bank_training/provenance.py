"""Where a trained bank comes from, as a line of JSON in its metadata."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Literal

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm

from ..evaluation import Score
from .settings import BankTrainingSettings
from .training_rows import TrainingRows


def provenance(
    method: Literal["warm start", "branches", "mixture"],
    plm: Plm,
    settings: BankTrainingSettings,
    rows: TrainingRows,
    score: Score | None,
    start: Bank | None,
) -> str:
    """Method, model type, the bank to start from, what the rows were, settings and the score on held-out rows.

    No texts, no names, no paths.
    """
    data: dict[str, int | str] = {"rows": rows.rows, "rows_sha256": rows.sha256}
    if method != "mixture":
        data["users"] = len(rows.train)
    facts = {
        "method": method,
        "model_type": plm.facts.model_type,
        "start": None if start is None else start.fingerprint,
        "data": data,
        "settings": asdict(settings),
        "held_out": score and score.record(),
    }
    return json.dumps(facts, sort_keys=True, allow_nan=False)
