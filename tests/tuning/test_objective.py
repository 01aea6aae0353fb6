from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm
from xpeft_tuning.objective import completion_losses, label_losses


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_labels_have_cross_entropy_and_numbers_half_the_squared_error() -> None:
    logits, targets = _normal(5, 3), torch.tensor([0, 2, 1, 1, 0])
    wanted = -logits.log_softmax(1)[torch.arange(5), targets]
    torch.testing.assert_close(label_losses(logits, targets), wanted)
    numbers = _normal(5, seed=1)
    torch.testing.assert_close(label_losses(logits, numbers), (logits[:, 0] - numbers) ** 2 / 2)


def test_a_label_beyond_a_narrow_head_has_no_gradient() -> None:
    logits = torch.cat([_normal(4, 2), torch.full((4, 3), -torch.inf)], dim=1).requires_grad_()
    for targets in (torch.tensor([0, 1, 1, 0]), _normal(4, seed=1)):
        (gradient,) = torch.autograd.grad(label_losses(logits, targets).sum(), logits)
        assert gradient.isfinite().all()
        assert gradient[:, 0].all()
        assert not gradient[:, 2:].any()


@pytest.mark.parametrize("prompts", [[3, 1, 2, 4], [1, 1, 1, 1], [6, 1, 6, 4]])
def test_a_completion_is_scored_token_by_token_and_its_prompt_is_not(decoder: Plm, prompts: list[int]) -> None:
    head = decoder.vocabulary_head
    assert head is not None
    words = ["w1 w2 w3 w4 w5 w6 w7", "w8 w9", "w3 w3 w3 w3 w3 w3 w3", "w1 w2 w1 w2 w1"]
    texts = decoder.tokenizer.encode([(each, None) for each in words])
    batch = pack(texts, None)
    hidden = _normal(batch.input_ids.shape[1], 32).requires_grad_()
    found = completion_losses(hidden, batch, torch.tensor(prompts), head)
    read = torch.zeros(len(hidden), dtype=torch.bool)
    for loss, text, start, prompt in zip(found, texts, batch.starts.tolist(), prompts, strict=True):
        rows = torch.arange(start + prompt - 1, start + len(text) - 1)
        read[rows] = True
        wanted = functional.cross_entropy(head(hidden[rows]), torch.from_numpy(text.ids[prompt:]).long())
        torch.testing.assert_close(loss, wanted)
    (gradient,) = torch.autograd.grad(found.sum(), hidden)
    assert torch.equal(gradient.abs().sum(1) > 0, read)
