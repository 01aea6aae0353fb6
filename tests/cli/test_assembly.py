from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_kernels import AdapterForm
from xpeft_server.cli import assembly
from xpeft_server.cli.assembly import choose_slots, load_classifier
from xpeft_server.model.bank_errors import BankSpecInvalid
from xpeft_server.model.plm import load_plm
from xpeft_server.settings import Settings


def test_a_bad_bank_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(BankSpecInvalid, match="N is 'x'"):
        load_classifier(Settings(plm="/no/model/there", bank="random:N=x"))


@pytest.mark.parametrize(
    ("slots_of_memory", "expected"),
    [(4 * 1000, 1000), (4 * 1000 + 3, 1000), (4 * 31, 32), (0, 32), (4 * 16384, 16384), (4 * 16385, 16384)],
)
def test_slots_take_a_quarter_of_a_cpu_s_memory(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, slots_of_memory: int, expected: int
) -> None:
    plm = load_plm(str(tiny_bert))
    form = AdapterForm(hidden=plm.facts.hidden, width=8)
    slot_bytes = plm.facts.blocks * (2 * plm.facts.hidden * 8 + 2 * 8) * 4
    monkeypatch.setattr(assembly, "host_memory", lambda: slots_of_memory * slot_bytes)
    assert choose_slots("auto", form, plm) == expected
    assert choose_slots(7, form, plm) == 7
