from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.errors import BankInvalid, BankSpecInvalid, ForeignBank
from xpeft_server.model.banks.file import write_bank_file
from xpeft_server.model.banks.random_bank import random_bank
from xpeft_server.model.banks.source import check_bank_source, open_bank
from xpeft_server.model.banks.spec import RandomBankSpec
from xpeft_server.model.plm_facts import PlmFacts

FACTS = PlmFacts("sha256:" + "ab" * 32, "bert", 2, 8, 100, decoder=False)


@pytest.fixture
def made() -> Bank:
    return random_bank(RandomBankSpec(adapters=3, width=4), plm=FACTS)


def test_a_spec_and_the_file_made_of_it_are_the_same_bank(made: Bank, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    write_bank_file(made, path)
    assert open_bank(str(path), FACTS).fingerprint == open_bank("random:N=3,R=4", FACTS).fingerprint


def test_the_bank_of_another_model_of_the_same_shape_is_refused_with_both_fingerprints(
    made: Bank, tmp_path: Path
) -> None:
    path = tmp_path / "bank.safetensors"
    write_bank_file(made, path)
    other = replace(FACTS, fingerprint="sha256:" + "cd" * 32)
    with pytest.raises(ForeignBank, match=f"it is for sha256:{'ab' * 32}, the bert model is sha256:{'cd' * 32}"):
        open_bank(str(path), other)


@pytest.mark.parametrize(
    ("plm", "message"),
    [
        (replace(FACTS, blocks=12), r"has L=2 \(blocks\), the bert model has L=12"),
        (replace(FACTS, hidden=768), r"has H=8 \(hidden size\), the bert model has H=768"),
    ],
)
def test_a_bank_of_another_shape_is_refused_with_both_numbers(
    made: Bank, tmp_path: Path, plm: PlmFacts, message: str
) -> None:
    path = tmp_path / "bank.safetensors"
    write_bank_file(made, path)
    with pytest.raises(ForeignBank, match=message):
        open_bank(str(path), plm)


def test_a_file_that_names_no_pooling_gets_the_models(made: Bank, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    write_bank_file(replace(made, pooling_by_default=True), path)
    encoder, decoder = open_bank(str(path), FACTS), open_bank(str(path), replace(FACTS, decoder=True))
    assert (encoder.pooling, decoder.pooling) == ("mean", "last")
    assert encoder.fingerprint == decoder.fingerprint


def test_a_pooling_that_the_file_names_is_kept_on_a_decoder(made: Bank, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    write_bank_file(made, path)
    assert open_bank(str(path), replace(FACTS, decoder=True)).pooling == "mean"


def test_a_bad_spec_and_a_missing_file_are_refused_by_name_without_a_model() -> None:
    for refuse in (check_bank_source, lambda source: open_bank(source, FACTS)):
        with pytest.raises(BankSpecInvalid, match="N is 'many'"):
            refuse("random:N=many")
        with pytest.raises(BankInvalid, match="rnd:N=3: no such file"):
            refuse("rnd:N=3")


def test_what_may_be_a_bank_is_not_refused_before_its_model_is_known(made: Bank, tmp_path: Path) -> None:
    path = tmp_path / "bank.safetensors"
    write_bank_file(made, path)
    check_bank_source(str(path))
    check_bank_source("random:N=3,R=4")
