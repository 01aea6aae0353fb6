"""The process that runs the Classifier on the same texts and profiles, without a server."""

from __future__ import annotations

import time
from collections import deque
from itertools import cycle, islice
from typing import Any, Final

from xpeft_server.model.banks.errors import BankError
from xpeft_server.model.errors import ModelError
from xpeft_server.model.launched import Launched
from xpeft_server.model.tokens.tokenizing import TokenizedText

from ..ops.resident import ResidentProfiles, load_resident
from ..processes.workers import answer_jobs

Pair = tuple[TokenizedText, int]

_AHEAD: Final = 2
"""Batches in flight on an asynchronous device, as in the server."""


class EngineWorker:
    """Jobs: ``open`` once (model, bank, texts and their profiles), then ``run`` batches of a size for a time."""

    def __init__(self) -> None:
        self._resident: ResidentProfiles | None = None
        self._pairs: list[Pair] = []

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        return self._open(job) if job["job"] == "open" else self._run(job["batch"], job["seconds"], job["requests"])

    def _open(self, job: dict[str, Any]) -> dict[str, Any]:
        resident = load_resident(
            job["plm"],
            job["bank"],
            device=job["device"],
            dtype=job["dtype"],
            profiles=job["profiles"],
            seed=job["seed"],
            graph_tokens=job["graph_tokens"],
        )
        plm = resident.classifier.plm
        tokenized = plm.tokenizer.encode([(text, None) for text in job["texts"]], truncate=True)
        self._resident = resident
        self._pairs = list(zip(tokenized, job["owners"], strict=True))
        return {
            "folder": str(plm.model.name_or_path),
            "bank": resident.classifier.geometry.fingerprint,
            "mean_tokens": sum(map(len, tokenized)) / len(tokenized),
        }

    def _run(self, batch: int, seconds: float, requests: int | None) -> dict[str, Any]:
        """Batches of neighbours, from the first text on, over and over."""
        resident = self._resident
        assert resident is not None
        # A text alone is what one request at a time is compared with.
        most = _AHEAD if batch > 1 and resident.classifier.asynchronous else 1
        ahead: deque[tuple[float, Launched]] = deque()
        pending = islice(cycle(self._pairs), requests)
        answered, latencies = 0, []
        start = time.perf_counter()
        while (begun := time.perf_counter()) - start < seconds and (taken := list(islice(pending, batch))):
            ahead.append((begun, resident.launch([text for text, _ in taken], [owner for _, owner in taken])))
            answered += len(taken)
            if len(ahead) == most:
                latencies.append(_ended(*ahead.popleft()))
        latencies += [_ended(*each) for each in ahead]
        return {"answered": answered, "seconds": time.perf_counter() - start, "latencies": latencies}


def _ended(begun: float, launched: Launched) -> float:
    """Seconds of a batch, once its answers are there."""
    launched.result()
    return time.perf_counter() - begun


if __name__ == "__main__":
    answer_jobs(EngineWorker(), (ModelError, BankError))
