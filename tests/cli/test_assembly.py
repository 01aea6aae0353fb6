from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_kernels import AdapterForm
from xpeft_server.cli.assembly import choose_slots, load_classifier
from xpeft_server.model.bank_errors import BankSpecInvalid
from xpeft_server.model.plm import load_plm
from xpeft_server.settings import Settings


def test_a_bad_bank_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(BankSpecInvalid, match="N is 'x'"):
        load_classifier(Settings(plm="/no/model/there", bank="random:N=x"))


def test_slots_of_a_cpu_fit_into_a_gib(tiny_bert: Path) -> None:
    plm = load_plm(str(tiny_bert))
    blocks, hidden = plm.facts.blocks, plm.facts.hidden

    def chosen(width: int) -> int:
        return choose_slots("auto", AdapterForm(hidden=hidden, width=width), plm)

    slot_bytes = 4 * blocks * (2 * hidden * 4000 + 2 * 4000)
    assert 32 < chosen(4000) == (1 << 30) // slot_bytes < 4096
    assert chosen(8) == 4096
    assert chosen(1 << 20) == 32
    assert choose_slots(7, AdapterForm(hidden=hidden, width=8), plm) == 7
