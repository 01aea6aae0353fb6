from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch

from xpeft_server.model.device_memory import is_out_of_memory, reclaim_memory, room_for
from xpeft_server.model.errors import ModelUnusable


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


def test_what_there_is_no_room_for_is_named_and_other_errors_stay_as_they_are() -> None:
    room = partial(room_for, "slots: 9 of 8 bytes", "cpu")
    with pytest.raises(ModelUnusable, match=r"^slots: 9 of 8 bytes, which cpu has no memory for$"), room():
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), room():
        torch.ones(2, 3) @ torch.ones(2, 3)


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
