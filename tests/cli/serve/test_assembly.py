from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from xpeft_kernels import AdapterForm
from xpeft_server.cli.serve.assembly import choose_slots, load_classifier, load_decoder
from xpeft_server.model.banks.errors import BankSpecInvalid
from xpeft_server.model.plm import load_plm
from xpeft_server.settings import Settings


def test_a_bad_bank_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(BankSpecInvalid, match="N is 'x'"):
        load_classifier(Settings(plm="/no/model/there", bank="random:N=x"))


def test_slots_of_a_cpu_fit_into_a_gib(tiny_bert: Path) -> None:
    plm = load_plm(str(tiny_bert))
    blocks, hidden = plm.facts.blocks, plm.facts.hidden

    def chosen(width: int) -> int:
        return choose_slots("auto", AdapterForm(hidden=hidden, width=width), plm, adapters=100)

    slot_bytes = 4 * blocks * (2 * hidden * 4000 + 2 * 4000)
    assert 32 < chosen(4000) == (1 << 30) // slot_bytes < 4096
    assert chosen(8) == 4096
    assert chosen(1 << 20) == 32
    assert choose_slots(7, AdapterForm(hidden=hidden, width=8), plm, adapters=100) == 7


@pytest.mark.parametrize(("adapters", "slots"), [(100, 7450), (512, 7244), (14000, 500), (16000, 32)])
def test_slots_of_a_gpu_get_half_of_what_model_and_bank_leave(
    tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, adapters: int, slots: int
) -> None:
    plm = replace(load_plm(str(tiny_bert)), device=torch.device("cuda"), dtype=torch.bfloat16)
    form = AdapterForm(hidden=4096, width=16, layer_norm=False)
    free = 15000 * plm.facts.blocks * form.slot_row * 2
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    assert choose_slots("auto", form, plm, adapters=adapters) == slots


@pytest.mark.parametrize(("kv_tokens", "limit"), [(64, 64), (100, 64), (128, 128), (1000, 128)])
def test_it_is_warned_of_room_for_shorter_texts_than_the_model_takes(
    tiny_llama: Path, caplog: pytest.LogCaptureFixture, kv_tokens: int, limit: int
) -> None:
    settings = Settings(plm=str(tiny_llama), bank="random:N=4,R=2", kv_tokens=kv_tokens, slots=4)
    classifier = load_classifier(settings)
    context = classifier.plm.tokenizer.limit
    with caplog.at_level(logging.WARNING):
        decoder = load_decoder(settings, classifier)
    assert decoder is not None
    assert decoder.limit == min(limit, context)
    warning = f"kv_tokens = {kv_tokens} is room for texts of {limit} tokens, prompt and answer together"
    assert [warning in message for message in caplog.messages] == [True] * (limit < context)
