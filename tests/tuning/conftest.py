"""A tiny model, a small bank over it, and data whose labels words decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from xpeft_server.model.bank import Bank
from xpeft_server.model.bank_source import open_bank
from xpeft_server.model.plm import Plm, load_plm
from xpeft_tuning.dataset import Dataset, Example

MakeDataset = Callable[..., Dataset]


@pytest.fixture(scope="session")
def plm(tiny_bert: Path) -> Plm:
    return load_plm(str(tiny_bert))


@pytest.fixture(scope="session")
def bank(plm: Plm) -> Bank:
    return open_bank("random:N=8,R=8,seed=1,std=0.3", plm.facts)


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """Rows of six words of the label's own ten, in turn from each label."""

    def make(rows: int, labels: tuple[str, ...] = ("red", "green", "blue"), seed: int = 0) -> Dataset:
        rng = np.random.default_rng(seed)
        examples = []
        for row in range(rows):
            number = row % len(labels)
            words = rng.integers(10 * number, 10 * (number + 1), 6)
            examples.append(Example(" ".join(f"w{word}" for word in words), labels[number]))
        return Dataset(tuple(examples), labels)

    return make
