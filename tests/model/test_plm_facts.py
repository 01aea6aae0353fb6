from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch

from xpeft_server.model.plm_facts import plm_fingerprint

WEIGHT = torch.arange(6, dtype=torch.float32).reshape(2, 3) / 7


def fingerprint(**changes: Any) -> str:
    facts = {"model_type": "bert", "hidden": 2, "blocks": 1, "vocab_size": 9, "first_feed_forward": WEIGHT}
    return plm_fingerprint(**{**facts, **changes})


def test_a_models_fingerprint_is_a_json_line_and_the_bytes_of_a_bfloat16_weight() -> None:
    line = (
        b'{"blocks":1,"first_feed_forward":{"dtype":"BF16","shape":[2,3]},'
        b'"hidden":2,"model_type":"bert","vocab_size":9}\n'
    )
    weight = WEIGHT.bfloat16().view(torch.int16).numpy().astype("<i2").tobytes()
    assert fingerprint() == "sha256:" + hashlib.sha256(line + weight).hexdigest()


def test_a_checkpoint_and_its_bfloat16_copy_are_one_model() -> None:
    assert fingerprint(first_feed_forward=WEIGHT.bfloat16()) == fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "electra"},
        {"hidden": 3},
        {"blocks": 2},
        {"vocab_size": 10},
        {"first_feed_forward": -WEIGHT},
        {"first_feed_forward": WEIGHT.reshape(3, 2)},
    ],
)
def test_another_model_has_another_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(**change) != fingerprint()
