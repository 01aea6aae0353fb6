"""The shape of a bank, as far as profiles must fit it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BankGeometry:
    """What a profile must fit; no tensors. ``blocks`` L, ``adapters`` N, ``hidden`` H, ``width`` R.

    ``fingerprint`` is ``sha256:HEX``; ``layer_norm`` says whether the bank's adapters have LN_R;
    ``shared_heads`` maps a shared head's name to its labels.
    """

    fingerprint: str
    blocks: int
    adapters: int
    hidden: int
    width: int
    layer_norm: bool = True
    shared_heads: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
