"""Batches that fail on the device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from xpeft_profiles import Profile, ProfileKey
from xpeft_server.engine.errors import Unavailable
from xpeft_server.engine.requests import ClassifyRequest, TextInput


async def test_a_batch_without_memory_is_halved_after_its_tensors_are_gone(
    start_engine: Any, store: Any, profile: Callable[..., Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = await start_engine()
    await store.put(ProfileKey("t", "p"), profile(engine.geometry, 1))
    whole = engine._classifier.launch
    held: list[weakref.ref[torch.Tensor]] = []

    def logits(inputs: Any) -> Any:
        assert all(tensor() is None for tensor in held), "the failed forward's tensors are still there"
        activation = torch.zeros(8)
        if sum(len(each.text) for each in inputs) > 12:
            held.append(weakref.ref(activation))
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return whole(inputs)

    monkeypatch.setattr(engine._classifier, "launch", logits)
    texts = tuple(TextInput(" ".join(["w1"] * (1 + n % 9))) for n in range(20))
    answer = await engine.classify(ClassifyRequest(ProfileKey("t", "p"), texts))
    assert held
    assert len(answer.data) == 20
    with pytest.raises(Unavailable, match="no memory for a text of 22 tokens"):
        await engine.classify(ClassifyRequest(ProfileKey("t", "p"), (TextInput(" ".join(["w1"] * 20)),)))
