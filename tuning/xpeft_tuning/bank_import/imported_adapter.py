"""One checkpoint as an adapter of a bank, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from xpeft_server.model.banks.bank import Activation

from .checkpoint import Checkpoint


class BlockAdapter(NamedTuple):
    """h + act(h · down + down_bias) · up + up_bias; ``[H, R]``, ``[R]``, ``[R, H]``, ``[H]``, float32."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    @property
    def width(self) -> int:
        """R."""
        return self.down.shape[1]


@dataclass(frozen=True, eq=False)
class ImportedAdapter:
    """An adapter, and how true it is.

    Args:
        blocks: by the block's number; one that is absent changes nothing.
        fits: of blocks that were fitted, the share of variance that is explained; empty if the adapter is exact.
        skipped: parts of the checkpoint that a bank's adapter does not need.
    """

    checkpoint: Checkpoint
    activation: Activation
    blocks: Mapping[int, BlockAdapter]
    fits: Mapping[int, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """The widest block's R."""
        return max(block.width for block in self.blocks.values())

    @property
    def fit(self) -> float | None:
        """Mean of ``fits``; None if the adapter is exact."""
        return sum(self.fits.values()) / len(self.fits) if self.fits else None
