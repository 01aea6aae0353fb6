from __future__ import annotations

import pytest

from xpeft_kernels import AdapterForm


@pytest.mark.parametrize(
    ("form", "split", "bank_row", "slot_row"),
    [
        (AdapterForm(10, 3), 30, 60, 66),
        (AdapterForm(10, 3, layer_norm=False), 30, 60, 60),
        (AdapterForm(10, 3, down_bias=True), 33, 63, 69),
        (AdapterForm(10, 3, up_bias=True), 30, 70, 76),
        (AdapterForm(10, 3, down_bias=True, up_bias=True, layer_norm=False), 33, 73, 73),
    ],
)
def test_a_row_is_as_long_as_its_parts(form: AdapterForm, split: int, bank_row: int, slot_row: int) -> None:
    assert (form.split, form.bank_row, form.slot_row) == (split, bank_row, slot_row)
