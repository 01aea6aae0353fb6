from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from xpeft_profiles import Profile, ProfileKey
from xpeft_server.engine.device_memory import is_out_of_memory, reclaim_memory
from xpeft_server.engine.errors import Unavailable
from xpeft_server.engine.requests import ClassifyRequest, TextInput


def test_what_torch_says_of_a_tensor_that_is_too_large_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported at some other call"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("not enough memory"), False),
    ],
)
def test_other_errors_are_not(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_a_failed_forward_held_is_let_go_while_its_error_is_still_there() -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def forward() -> None:
        activation = torch.zeros(8)
        held.append(weakref.ref(activation))
        raise torch.OutOfMemoryError(str(activation.shape))

    try:
        forward()
    except torch.OutOfMemoryError as caught:
        error = caught
    assert held[0]() is not None
    reclaim_memory(error)
    gc.collect()
    assert held[0]() is None
    assert error.__traceback__ is not None


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
