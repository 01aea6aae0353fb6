from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from xpeft_kernels import (
    AdapterForm,
    Impl,
    ImplUnavailable,
    PlacedSteps,
    Sequences,
    Tiles,
    aggregate_adapters,
    apply_adapters,
    apply_heads,
    attend_cache,
    attend_packed,
    chosen_implementations,
    mean_rows,
)
from xpeft_kernels.dispatch import Operator


def reference() -> str:
    return "reference"


def triton() -> str:
    return "triton"


@pytest.fixture
def both() -> Operator:
    return Operator("both", {Impl.REFERENCE: reference, Impl.TRITON: triton})


def test_auto_takes_the_kernel_where_the_device_can_run_it(both: Operator) -> None:
    assert both("cuda", Impl.AUTO)() == "triton"
    assert both("cpu", Impl.AUTO)() == "reference"
    assert Operator("one", {Impl.REFERENCE: reference})("cuda", Impl.AUTO)() == "reference"


def test_an_explicit_choice_is_what_runs(both: Operator) -> None:
    assert both("cuda", Impl.REFERENCE)() == "reference"
    assert both("cuda", Impl.TRITON)() == "triton"


def test_an_explicit_choice_that_cannot_be_had_is_refused_by_name(
    both: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ImplUnavailable, match=r"both: .*'triton' cannot run on 'cpu' \(it has: reference\)"):
        both("cpu", Impl.TRITON)
    with pytest.raises(ImplUnavailable, match=r"one: .*'triton' cannot run on 'cuda'"):
        Operator("one", {Impl.REFERENCE: reference})("cuda", Impl.TRITON)


def test_the_interpreter_runs_a_kernel_on_cpu_only_for_who_asks_for_it(
    both: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert both("cpu", Impl.TRITON)() == "triton"
    assert both("cpu", Impl.AUTO)() == "reference"


def test_what_runs_is_logged_once_a_device(both: Operator, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="xpeft_kernels.dispatch")
    for device in ("cpu", "cpu", "cuda", "cpu"):
        both(device, Impl.AUTO)
    assert caplog.messages == ["both runs as reference on cpu", "both runs as triton on cuda"]


def test_every_operator_says_what_auto_means() -> None:
    assert chosen_implementations("cpu") == {
        "aggregate_adapters": "reference",
        "apply_adapters": "reference",
        "apply_heads": "reference",
        "attend_packed": "reference",
        "attend_cache": "reference",
        "mean_rows": "reference",
    }
    assert chosen_implementations("cuda") == dict.fromkeys(chosen_implementations("cpu"), "triton")


FORM = AdapterForm(8, 4)
WIDE, ROWS = torch.zeros(1, 3, FORM.bank_row), torch.zeros(2, FORM.slot_row)
INDEX = torch.zeros(1, dtype=torch.int64)
QUERY = torch.zeros(3, 2, 8)
STEPS = PlacedSteps(torch.tensor([[0, 1, 0, 2, 0, 0, 0]], dtype=torch.int32), torch.zeros(0, 3, dtype=torch.int32), 0)
CALLS: dict[str, Callable[[Impl], object]] = {
    "aggregate_adapters": lambda impl: aggregate_adapters(
        WIDE, torch.full((1, 2, 1, 1), 7, dtype=torch.uint8), ROWS[None].clone(), INDEX, split=FORM.split, impl=impl
    ),
    "apply_adapters": lambda impl: apply_adapters(torch.zeros(5, 8), ROWS, Tiles.of([1], [5]), FORM, impl=impl),
    "apply_heads": lambda impl: apply_heads(ROWS[:, :8], ROWS[:, :8], ROWS[:, 0], INDEX, INDEX, impl=impl),
    "attend_packed": lambda impl: attend_packed(QUERY, QUERY, QUERY, Sequences.of([3]), impl=impl),
    "mean_rows": lambda impl: mean_rows(ROWS, INDEX, INDEX, impl=impl),
    "attend_cache": lambda impl: attend_cache(QUERY, QUERY, QUERY, STEPS, scale=1.0, impl=impl),
}


@pytest.mark.parametrize("operator", CALLS)
def test_each_operator_runs_as_auto_and_as_reference_and_not_as_a_kernel_on_cpu(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    CALLS[operator](Impl.AUTO)
    CALLS[operator](Impl.REFERENCE)
    with pytest.raises(ImplUnavailable, match=f"{operator}: implementation 'triton' cannot run on 'cpu'"):
        CALLS[operator](Impl.TRITON)
