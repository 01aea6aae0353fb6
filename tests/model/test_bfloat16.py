"""bfloat16 on CPU: a batch's company may move a last bit, never more than the precision itself does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from xpeft_server.model.plm import load_plm


@pytest.mark.parametrize("model", ["minilm", "mistral"])
def test_company_changes_a_bfloat16_answer_by_less_than_twice_the_precisions_own_error(lab: Any, model: str) -> None:
    """Let e be the largest error of a request alone in bfloat16, against float32 over the same (bfloat16) weights.

    Alone and in a mixed batch a request goes through the same operations in the same dtype, only that sums may be
    taken in another order. Both answers are roundings of one exact value and within e of it, so by the triangle
    inequality they are within 2e of each other.
    """
    half, exact = lab.plm(model, torch.bfloat16), load_plm(lab.plm(model).name)
    exact.model.to(torch.bfloat16).float()
    bank = lab.bank(half)
    bank = replace(bank, down=bank.down.bfloat16(), up=bank.up.bfloat16())
    served, truth = lab.crowd(half, bank, 32), lab.crowd(exact, bank, 32)
    assert served.classifier.buffers.adapters.dtype == torch.bfloat16
    rng = np.random.default_rng(2)
    texts = [lab.text(rng, length) for length in (1, 2, 5, 15, 16, 17, 80, *rng.integers(3, 60, 25).tolist())]
    requests = list(enumerate(texts))
    together = served.classifier.logits([served.input(*request) for request in requests])
    alone = [served.classifier.logits([served.input(*request)])[0] for request in requests]
    true = truth.classifier.logits([truth.input(*request) for request in requests])
    error = np.abs(np.concatenate(alone) - np.concatenate(true)).max()
    assert 1e-4 < error < 0.1 * np.abs(np.concatenate(true)).max()
    assert np.abs(np.concatenate(together) - np.concatenate(alone)).max() <= 2 * error
