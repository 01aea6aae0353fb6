"""Where a bank comes from: a file, or a text that describes a random one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..plm_facts import PlmFacts
from .bank import Bank
from .errors import BankInvalid, ForeignBank
from .file import read_bank_file
from .random_bank import random_bank
from .spec import SPEC_PREFIX, RandomBankSpec


def check_bank_source(spec_or_path: str) -> None:
    """What can be said of a bank in no time, before a language model is loaded for it.

    Raises: BankSpecInvalid; BankInvalid if there is no such file.
    """
    if spec_or_path.startswith(SPEC_PREFIX):
        RandomBankSpec.parse(spec_or_path)
    elif not Path(spec_or_path).exists():
        raise BankInvalid(f"{spec_or_path}: no such file")


def open_bank(spec_or_path: str, plm: PlmFacts) -> Bank:
    """Open the bank at a path, or make the one that ``random:…`` describes, for one language model.

    A file that names no pooling gets the model's: last for a decoder, mean for an encoder. Its fingerprint
    stays the one that the file has without a model.

    Raises: BankSpecInvalid, BankInvalid; ForeignBank if it is for another model, with both values.
    """
    if spec_or_path.startswith(SPEC_PREFIX):
        return random_bank(RandomBankSpec.parse(spec_or_path), plm=plm)
    bank = read_bank_file(spec_or_path)
    for letter, meaning, has, wants in (
        ("L", "blocks", bank.blocks, plm.blocks),
        ("H", "hidden size", bank.hidden, plm.hidden),
    ):
        if has != wants:
            raise ForeignBank(
                f"bank {spec_or_path} has {letter}={has} ({meaning}), the {plm.model_type} model has {letter}={wants}"
            )
    if bank.plm != plm.fingerprint:
        raise ForeignBank(
            f"bank {spec_or_path} was made for another model of this shape: it is for {bank.plm}, "
            f"the {plm.model_type} model is {plm.fingerprint}"
        )
    return with_pooling(bank, plm)


def with_pooling(bank: Bank, plm: PlmFacts) -> Bank:
    """The bank of a file, with the model's pooling where it names none."""
    return replace(bank, pooling="last" if plm.decoder else "mean") if bank.pooling_by_default else bank
