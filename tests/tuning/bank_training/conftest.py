"""Users of two tastes, what a model with one adapter a block computes, written out, and settings for tiny banks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from xpeft_kernels import Norm
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm
from xpeft_server.model.tokens.tokenizing import TokenizedText
from xpeft_tuning.bank_training.settings import BankTrainingSettings
from xpeft_tuning.dataset import Dataset, Example, Split

_SMALL = {
    "adapters": 4,
    "width": 4,
    "epochs": 2,
    "std_down": 0.3,
    "std_up": 0.1,
    "weight_decay": 0.0,
    "lr_bank": 0.01,
    "lr_head": 0.03,
    "lr_masks": 0.1,
    "lr_norm": 0.002,
    "lr_own_head": 0.002,
    "gumbel": 0.0,
    "batch_rows": 32,
    "batch_users": 24,
    "user_rows": 8,
    "own_head_penalty": 0.01,
    "consistency": 1.0,
}


@pytest.fixture(scope="session")
def small() -> Callable[..., BankTrainingSettings]:
    """Settings of a bank that a tiny model needs, quickly learned."""

    def settings(**changes: Any) -> BankTrainingSettings:
        return BankTrainingSettings(**{**_SMALL, **changes})

    return settings


@pytest.fixture(scope="session")
def make_tastes() -> Callable[..., dict[str, Dataset]]:
    """Pairs of users who read the same texts and never agree: what one calls yes is the other's no."""

    def make(pairs: int, *, train: int, test: int, first: int = 0) -> dict[str, Dataset]:
        users = {}
        for number in range(first, first + pairs):
            rng = np.random.default_rng(number)
            topics = np.arange(train + test) % 2
            texts = [" ".join(f"w{word}" for word in rng.integers(10 * topic, 10 * topic + 10, 6)) for topic in topics]
            splits: list[Split] = ["train"] * train + ["test"] * test
            for name, labels in (("pro", ("yes", "no")), ("contra", ("no", "yes"))):
                rows = zip(texts, topics, splits, strict=True)
                examples = tuple(Example(text, labels[topic], None, split) for text, topic, split in rows)
                users[f"{name}-{number}"] = Dataset(examples, ("yes", "no"))
        return users

    return make


class OneAdapter(NamedTuple):
    """An adapter in every block: ``[L, H, R]``, ``[L, R]``, ``[L, R, H]``, ``[L, H]``, and LN_R's affine ``[L, R]``."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    ln_weight: Tensor
    ln_bias: Tensor

    def pooled(self, plm: Plm, text: TokenizedText) -> Tensor:
        """``[H]``, the mean of one text's last hidden states, nothing else in the batch."""

        def applied(block: int, hidden: Tensor, residual: Tensor | None, norm: Norm | None) -> Tensor:
            assert residual is not None
            assert norm is not None
            z = functional.layer_norm(hidden @ self.down[block] + self.down_bias[block], self.ln_weight.shape[1:])
            z = functional.relu(z * self.ln_weight[block] + self.ln_bias[block])
            out = hidden + z @ self.up[block] + self.up_bias[block] + residual
            return functional.layer_norm(out, out.shape[1:], norm.weight, norm.bias, norm.eps)

        batch = pack([text], None, first_position=plm.first_position)
        return plm.forward(batch, applied)[: len(text)].mean(dim=0)


@pytest.fixture(scope="session")
def one_adapter() -> type[OneAdapter]:
    return OneAdapter


@pytest.fixture
def frozen(plm: Plm) -> Iterator[Mapping[str, Tensor]]:
    """What the PLM is made of; the test fails if it ends otherwise."""
    before = {name: value.clone() for name, value in plm.model.state_dict().items()}
    yield before
    after = plm.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(parameter.grad is None for parameter in plm.model.parameters())
