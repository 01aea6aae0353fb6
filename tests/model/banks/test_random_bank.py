from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from xpeft_server.model.banks.random_bank import random_bank
from xpeft_server.model.banks.spec import RandomBankSpec
from xpeft_server.model.fingerprint import tensor_bytes
from xpeft_server.model.plm_facts import PlmFacts

WORD = 2**64 - 1


def facts(*, blocks: int = 2, hidden: int = 8, decoder: bool = False) -> PlmFacts:
    return PlmFacts("sha256:" + "ab" * 32, "bert", blocks, hidden, 100, decoder)


def sha256(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


@pytest.mark.parametrize(
    ("spec", "down", "up"),
    [
        (
            "random:N=3,R=2,seed=0,std=0.1",
            "cd6534337316bb8ad9dffbd77caed1d426eddb17a8b32b0c76d451943f42dc60",
            "b20c60eaea4b4b0cbed1e989fbdc7fb18aaaaf1ec80a541cd8f8ff93e59de3ba",
        ),
        (
            "random:N=5,R=4,seed=7,std=0.5",
            "6733245091cd6eefcb1f63aa2b4912e2e6eb0d9cf323d7eb05c27af0f3a191e8",
            "905a39501a200eea66441a368007e6e72bc0e6109567b9af08e8f1d1da908d9c",
        ),
    ],
)
def test_the_bytes_of_a_random_bank_never_change(spec: str, down: str, up: str) -> None:
    bank = random_bank(RandomBankSpec.parse(spec), plm=facts())
    assert (sha256(bank.down), sha256(bank.up)) == (down, up)


def test_the_fingerprint_of_a_random_bank_never_changes() -> None:
    bank = random_bank(RandomBankSpec.parse("random:N=3,R=2,seed=0,std=0.1"), plm=facts())
    assert bank.fingerprint == "sha256:bd41ff55b873a73d2a014132568554a83bd20ffc9eab2321b722f6b6d591b536"


def philox_words(key: tuple[int, int], count: int) -> list[int]:
    """Philox4x64-10 as published (Salmon et al., SC 2011), on Python's integers; its counter starts at 1."""

    def block(counter: int) -> Iterator[int]:
        a, b, c, d = counter, 0, 0, 0
        k, m = key
        for _ in range(10):
            x, y = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
            a, b, c, d = (y >> 64) ^ b ^ k, y & WORD, (x >> 64) ^ d ^ m, x & WORD
            k, m = (k + 0x9E3779B97F4A7C15) & WORD, (m + 0xBB67AE8584CAA73B) & WORD
        yield from (a, b, c, d)

    return [word for counter in range(1, -(-count // 4) + 1) for word in block(counter)][:count]


@pytest.mark.parametrize(("tensor", "block"), [("down", 0), ("down", 1), ("up", 1)])
def test_every_value_can_be_computed_as_the_docstring_says(tensor: str, block: int) -> None:
    bank = random_bank(RandomBankSpec.parse("random:N=3,R=5,seed=11,std=0.3"), plm=facts())
    digest = hashlib.sha256(f"xpeft-random-bank-1 seed=11 tensor={tensor} block={block}".encode()).digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little"))
    scale = np.float32(0.3 / math.sqrt(1431655765))
    expected = [
        np.float32(sum(word >> shift & 0xFFFF for shift in (0, 16, 32, 48)) - 131070) * scale
        for word in philox_words(key, 3 * 5 * 8)
    ]
    values: torch.Tensor = getattr(bank, tensor)[block]
    assert values.flatten().tolist() == [float(value) for value in expected]


def test_a_block_is_the_same_in_a_model_of_more_blocks() -> None:
    spec = RandomBankSpec(adapters=3, width=4)
    few, many = random_bank(spec, plm=facts(blocks=2)), random_bank(spec, plm=facts(blocks=5))
    assert torch.equal(few.down, many.down[:2])
    assert torch.equal(few.up, many.up[:2])


def test_an_adapter_is_the_same_in_a_bank_of_more_adapters() -> None:
    few = random_bank(RandomBankSpec(adapters=3, width=4), plm=facts())
    many = random_bank(RandomBankSpec(adapters=9, width=4), plm=facts())
    assert torch.equal(few.down, many.down[:, :3])
    assert torch.equal(few.up, many.up[:, :3])


def test_another_seed_block_or_tensor_has_other_values() -> None:
    bank = random_bank(RandomBankSpec(adapters=3, width=8), plm=facts())
    other = random_bank(RandomBankSpec(adapters=3, width=8, seed=1), plm=facts())
    blocks = [bank.down[0], bank.down[1], bank.up[0], bank.up[1], other.down[0], other.up[0]]
    assert len({sha256(block) for block in blocks}) == len(blocks)


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = random_bank(RandomBankSpec(adapters=2, width=2), plm=facts())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(random_bank(RandomBankSpec(adapters=2, width=2), plm=facts()).down, first.down)


@pytest.mark.parametrize("std", [1e-6, 0.1, 0.5, 1e3])
def test_values_are_about_normal_with_the_asked_standard_deviation(std: float) -> None:
    bank = random_bank(RandomBankSpec(adapters=64, width=64, std=std), plm=facts(hidden=64))
    for tensor in (bank.down, bank.up):
        values = tensor.double().flatten().numpy() / std
        count = values.size
        assert abs(values.mean()) < 5 / math.sqrt(count)
        assert abs(values.var() - 1) < 5 * math.sqrt(2 / count)
        assert abs((values**3).mean()) < 5 * math.sqrt(15 / count)
        assert (values**4).mean() == pytest.approx(3 - 0.3, abs=5 * math.sqrt(96 / count))
        assert np.abs(values).max() <= math.sqrt(12) + 1e-6


def test_a_bank_for_a_decoder_pools_the_last_token_unless_told_otherwise() -> None:
    assert random_bank(RandomBankSpec(), plm=facts()).pooling == "mean"
    assert random_bank(RandomBankSpec(), plm=facts(decoder=True)).pooling == "last"
    assert random_bank(RandomBankSpec(pooling="cls"), plm=facts(decoder=True)).pooling == "cls"


def test_the_spec_s_settings_are_the_banks() -> None:
    spec = RandomBankSpec(adapters=2, width=3, activation="gelu", layer_norm=False)
    bank = random_bank(spec, plm=facts())
    assert (bank.adapters, bank.width, bank.activation, bank.layer_norm) == (2, 3, "gelu", False)
    assert bank.plm == facts().fingerprint
    assert bank.provenance == f"{spec} for bert"
