from __future__ import annotations

import pytest

from xpeft_benchmarks.random_profiles import random_profile
from xpeft_profiles import BankGeometry

GEOMETRY = BankGeometry("sha256:" + "ab" * 32, 2, 10, 8, 4)


def test_a_random_profile_fits_its_bank_and_chooses_half_of_it() -> None:
    profile = random_profile(GEOMETRY, seed=0, index=3)
    profile.check_fits(GEOMETRY)
    assert profile.k == 5
    assert profile.labels is not None


def test_the_same_seed_and_index_give_the_same_profile_in_every_process() -> None:
    first, second = (random_profile(GEOMETRY, seed=1, index=2).version for _ in range(2))
    assert first == second


@pytest.mark.parametrize(("seed", "index"), [(0, 1), (1, 0)])
def test_another_seed_or_index_is_another_profile(seed: int, index: int) -> None:
    assert random_profile(GEOMETRY, seed=seed, index=index).version != random_profile(GEOMETRY, seed=0, index=0).version


def test_a_bank_without_layer_norm_gets_profiles_without_affine() -> None:
    plain = BankGeometry("sha256:" + "ab" * 32, 2, 10, 8, 4, layer_norm=False)
    profile = random_profile(plain, seed=0, index=0)
    profile.check_fits(plain)
    assert profile.ln_weight is None
