"""A tiny model, a small bank over it, and data whose labels words decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.model.pooling import pool
from xpeft_tuning.dataset import Dataset, Example, Split

MakeDataset = Callable[..., Dataset]


@pytest.fixture(autouse=True)
def one_thread(one_thread: None) -> None:
    """In every test."""


@pytest.fixture(scope="session")
def plm(tiny_bert: Path) -> Plm:
    return load_plm(str(tiny_bert))


@pytest.fixture(scope="session")
def bank(plm: Plm) -> Bank:
    return open_bank("random:N=8,R=8,seed=1,std=0.3", plm.facts)


@pytest.fixture(scope="session")
def decoder(tiny_llama: Path) -> Plm:
    return load_plm(str(tiny_llama))


@pytest.fixture(scope="session")
def make_dataset() -> MakeDataset:
    """Rows of some words of the label's own ten, in turn from each label."""

    def make(rows: int, labels: tuple[str, ...] = ("red", "green", "blue"), seed: int = 0, words: int = 6) -> Dataset:
        rng = np.random.default_rng(seed)
        examples = []
        for row in range(rows):
            number = row % len(labels)
            chosen = rng.integers(10 * number, 10 * (number + 1), words)
            examples.append(Example(" ".join(f"w{word}" for word in chosen), labels[number]))
        return Dataset(tuple(examples), labels)

    return make


@pytest.fixture(scope="session")
def linear(plm: Plm) -> Dataset:
    """Numbers that are a linear function of the bare PLM's features, of 120 texts to learn from and 40 others."""
    rng = np.random.default_rng(5)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 100, 6)) for _ in range(160)]
    batch = pack(plm.tokenizer.encode([(text, None) for text in texts]), None)
    features = pool(plm.forward(batch), batch, "mean")
    values = (features - features.mean(0)) @ torch.randn(32, generator=torch.Generator().manual_seed(6))
    labels = (3 + 2 * values / values.std()).tolist()
    splits: list[Split] = ["train" if place < 120 else "test" for place in range(160)]
    rows = [Example(text, label, None, split) for text, label, split in zip(texts, labels, splits, strict=True)]
    return Dataset(tuple(rows), ("value",))
