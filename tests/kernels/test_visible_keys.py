"""The mask is the formula, for every combination of what narrows it."""

from __future__ import annotations

import pytest
import torch

from xpeft_kernels import visible_keys


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("past", [0, 4, 6])
def test_a_query_sees_the_keys_that_direction_and_window_leave(causal: bool, window: int | None, past: int) -> None:
    end = 7
    found = visible_keys(end, torch.device("cpu"), causal=causal, window=window, past=past)
    expected = [
        [(not causal or j <= i) and (window is None or abs(i - j) < window) for j in range(end)]
        for i in range(past, end)
    ]
    assert found.tolist() == expected
