"""A real decoder beside the project, where there is one: packed classification against the original model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm, load_plm

PROMPTS = [
    "Film: Heat (1995)\nVerdict: fresh\nReview:",
    "Film: The Room (2003)\nVerdict: rotten\nReview: A",
    "Article: Stocks fell on Monday as oil prices rose and investors looked for safer places.\nHeadline:",
    "a",
]
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def critic(project_root: Path) -> Plm:
    path = project_root.parent / "shared" / "models" / "critic-lm"
    if not (path / "config.json").exists():
        pytest.skip("the model critic-lm is not beside the project")
    return load_plm(str(path))


def test_each_texts_last_token_is_the_original_models(lab: Any, critic: Plm) -> None:
    texts = critic.tokenizer.encode([(prompt, None) for prompt in PROMPTS])
    original = lab.one_at_a_time(critic.name, lab.bank(critic))
    with torch.inference_mode():
        batch = pack(texts, None, feed_forward=critic.feed_forward)
        found = critic.forward(batch)[batch.ends - 1]
    expected = torch.stack([original.hidden(text)[-1] for text in texts])
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)


def test_the_logits_of_every_token_are_the_original_models(critic: Plm) -> None:
    texts = critic.tokenizer.encode([(prompt, None) for prompt in PROMPTS])
    original = AutoModelForCausalLM.from_pretrained(critic.name, dtype=torch.float32).eval()
    assert critic.vocabulary_head is not None
    with torch.inference_mode():
        hidden = critic.forward(pack(texts, None, feed_forward=critic.feed_forward))
        logits = critic.vocabulary_head(hidden[: sum(map(len, texts))]).split([len(text) for text in texts])
        for text, found in zip(texts, logits, strict=True):
            expected = original(torch.from_numpy(text.ids[None].astype(np.int64))).logits[0]
            torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_profiles_classify_by_the_last_token_and_company_does_not_matter(lab: Any, critic: Plm) -> None:
    bank = lab.bank(critic, width=16)
    assert bank.pooling == "last"
    crowd, original = lab.crowd(critic, bank, 8), lab.one_at_a_time(critic.name, bank)
    texts = critic.tokenizer.encode([(prompt, None) for prompt in PROMPTS * 2])
    inputs = [crowd.input(i, text) for i, text in enumerate(texts)]
    for each, text, profile, logits in zip(inputs, texts, crowd.profiles, crowd.classifier.logits(inputs), strict=True):
        assert crowd.classifier.logits([each])[0].tobytes() == logits.tobytes()
        expected = original.logits(text, profile).numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=TOLERANCE)
