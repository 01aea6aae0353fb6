"""How one adapter lies in memory: a flat row that the bank, the slots and every operator share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["relu", "gelu"]

LN_EPS = 1e-5
"""Under the root of LN_R."""


@dataclass(frozen=True, slots=True)
class AdapterForm:
    """Sizes and kind of a bottleneck adapter, and the layout of its row.

    A bank row is ``[down H·R | down_bias R? | up R·H | up_bias H?]``; mask a owns what comes before ``split``,
    mask b what comes after. A slot's row goes on with the profile's own ``[ln_weight R | ln_bias R]`` where the
    bank has a LayerNorm.

    Args:
        hidden: H, width of the PLM's residual stream.
        width: R, bottleneck.
        activation: applied to the normalised bottleneck; ``gelu`` is the exact one (erf).
        layer_norm: whether LN_R (`LN_EPS`) stands before the activation.
        down_bias, up_bias: whether the bank has them.
    """

    hidden: int
    width: int
    activation: Activation = "relu"
    layer_norm: bool = True
    down_bias: bool = False
    up_bias: bool = False

    @property
    def split(self) -> int:
        """Where mask a's part of a row ends and mask b's begins."""
        return self.hidden * self.width + (self.width if self.down_bias else 0)

    @property
    def bank_row(self) -> int:
        """Elements of one adapter in the bank."""
        return self.split + self.width * self.hidden + (self.hidden if self.up_bias else 0)

    @property
    def slot_row(self) -> int:
        """Elements of one materialised adapter in a slot."""
        return self.bank_row + (2 * self.width if self.layer_norm else 0)
