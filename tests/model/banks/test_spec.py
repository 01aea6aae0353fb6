from __future__ import annotations

import pytest

from xpeft_server.model.banks.errors import BankSpecInvalid
from xpeft_server.model.banks.spec import RandomBankSpec


def test_every_key_is_read() -> None:
    text = "random:N=800,R=64,seed=7,std=0.5,activation=gelu,layer_norm=false,pooling=cls"
    assert RandomBankSpec.parse(text) == RandomBankSpec(800, 64, 7, 0.5, "gelu", False, "cls")


def test_what_is_left_out_has_its_default() -> None:
    assert RandomBankSpec.parse("random:") == RandomBankSpec(100, 48, 0, 0.1, "relu", True, None)
    assert RandomBankSpec.parse("random:R=8") == RandomBankSpec(width=8)


@pytest.mark.parametrize("text", ["random:", "random:std=1e-3,seed=18446744073709551615", "random:pooling=last"])
def test_a_spec_as_text_is_the_same_spec(text: str) -> None:
    spec = RandomBankSpec.parse(text)
    assert RandomBankSpec.parse(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rnd:N=1", "'rnd:N=1' does not start with 'random:'"),
        ("random:N", "'N' is not KEY=VALUE"),
        ("random:N=1,", "'' is not KEY=VALUE"),
        ("random:M=1", "unknown key in 'M=1', the keys are N, R, seed, std"),
        ("random:n=1", "unknown key in 'n=1'"),
        ("random:N=1,N=2", "N is there twice"),
        ("random:N=0", "N is '0', it must be a whole number from 1 to 1024"),
        ("random:N=1025", "N is '1025', it must be a whole number from 1 to 1024"),
        ("random:R=257", "R is '257', it must be a whole number from 1 to 256"),
        ("random:R=4.5", "R is '4.5'"),
        ("random:R=٤", "R is '٤'"),
        ("random:R=-1", "R is '-1'"),
        ("random:seed=18446744073709551616", "seed is '18446744073709551616'"),
        ("random:seed=" + "9" * 5000, "seed is '9+'"),
        ("random:std=0", "std is '0', it must be a number from 1e-06 to 1000"),
        ("random:std=-0.1", "std is '-0.1'"),
        ("random:std=nan", "std is 'nan'"),
        ("random:std=inf", "std is 'inf'"),
        ("random:std=much", "std is 'much'"),
        ("random:activation=tanh", "activation is 'tanh', it must be relu or gelu"),
        ("random:layer_norm=yes", "layer_norm is 'yes', it must be true or false"),
        ("random:pooling=max", "pooling is 'max', it must be mean or cls or last"),
    ],
)
def test_what_cannot_be_used_is_refused_with_key_and_value(text: str, message: str) -> None:
    with pytest.raises(BankSpecInvalid, match=message):
        RandomBankSpec.parse(text)
