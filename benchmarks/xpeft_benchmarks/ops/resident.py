"""A classifier with random profiles in its slots: what the server's engine runs, without a server."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from xpeft_server.model.banks.bank import Pooling
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.launched import Launched
from xpeft_server.model.plm import load_plm
from xpeft_server.model.prepacked import prepack
from xpeft_server.model.slots import SlotFill
from xpeft_server.model.tokens.tokenizing import TokenizedText

from ..random_profiles import CLASSES, random_profile


class ResidentProfiles:
    """Profile p of the family ``seed`` in slot p, its head in the label rows from p·CLASSES on."""

    def __init__(self, classifier: Classifier, pooling: Pooling, *, profiles: int, seed: int) -> None:
        self.classifier = classifier
        self.pooling = pooling
        geometry = classifier.geometry
        self._head_rows = [np.arange(p * CLASSES, (p + 1) * CLASSES) for p in range(profiles)]
        self._fills = [
            SlotFill(p, random_profile(geometry, seed=seed, index=p), rows) for p, rows in enumerate(self._head_rows)
        ]
        self.fill(range(profiles))

    def fill(self, profiles: Sequence[int]) -> None:
        """Materialise these, whether they are there or not."""
        self.classifier.fill([self._fills[p] for p in profiles])

    def classify(self, texts: Sequence[TokenizedText], owners: Sequence[int]) -> list[NDArray[np.float32]]:
        """Logits of one batch; ``owners`` are the texts' profiles."""
        return self.launch(texts, owners).result()

    def launch(self, texts: Sequence[TokenizedText], owners: Sequence[int]) -> Launched:
        """As `classify`, without waiting for a device that works by itself."""
        return self.classifier.launch(
            [ClassifierInput(text, p, self._head_rows[p]) for text, p in zip(texts, owners, strict=True)]
        )


def load_resident(
    plm: str, bank: str, *, device: str, dtype: str, profiles: int, seed: int, graph_tokens: int = 0
) -> ResidentProfiles:
    """Warm, as the engine has its classifier before it takes a request.

    Args:
        graph_tokens: on a GPU, batches of up to so many tokens run as CUDA graphs.
    Raises: ModelError or BankError.
    """
    loaded = load_plm(plm, device=torch.device(device), dtype=getattr(torch, dtype))
    prepack(loaded)
    opened = open_bank(bank, loaded.facts)
    classifier = Classifier(loaded, opened, slots=profiles, head_rows=profiles * CLASSES, graph_tokens=graph_tokens)
    classifier.warm_up()
    return ResidentProfiles(classifier, opened.pooling, profiles=profiles, seed=seed)
