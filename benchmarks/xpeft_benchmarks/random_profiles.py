"""Profiles that nobody tuned: what a profile computes does not depend on its values."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from xpeft_profiles import BankGeometry, Profile

CLASSES: Final = 4
_HEAD_STD: Final = 0.05


def random_profile(geometry: BankGeometry, *, seed: int, index: int) -> Profile:
    """Profile ``index`` of the family ``seed``: the same in every process.

    Hard masks that choose half of the bank, an LN affine near the identity, a head of four labels.
    """
    rng = np.random.default_rng((seed, index))
    chosen = max(1, geometry.adapters // 2)
    affine = (geometry.blocks, geometry.width)
    normed = geometry.layer_norm
    return Profile(
        bank=geometry.fingerprint,
        mask_a=_hard_mask(geometry, chosen, rng),
        mask_b=_hard_mask(geometry, chosen, rng),
        ln_weight=(1 + 0.1 * rng.standard_normal(affine)).astype(np.float16) if normed else None,
        ln_bias=(0.1 * rng.standard_normal(affine)).astype(np.float16) if normed else None,
        head_weight=(_HEAD_STD * rng.standard_normal((CLASSES, geometry.hidden))).astype(np.float16),
        head_bias=np.zeros(CLASSES, np.float16),
        labels=tuple(f"label-{number}" for number in range(CLASSES)),
    )


def _hard_mask(geometry: BankGeometry, chosen: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    order = rng.random((geometry.blocks, geometry.adapters)).argsort(axis=1)
    return order < chosen
