"""A profile: what one user's model is, over a bank that many share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BankMismatch, ProfileInvalid, shown
from .geometry import BankGeometry
from .halves import as_halves, check_floats, check_shape
from .masks import served_masks
from .record.writer import encode_record
from .texts import check_bank, check_description, check_labels, check_shared_head


@dataclass(frozen=True, eq=False)
class Profile:
    """Masks, optional LN affine and optional head, bound to one bank. Checked and frozen: arrays are read-only.

    The constructor takes what a profile file may hold (masks bool or uint8, or float16 or float32; numbers
    float16 or float32) and keeps what is served (bool or float16); one of the two LN arrays alone is completed
    with the identity, a head without a bias gets zeros.

    Shapes: masks ``[L, N]``, LN affine ``[L, R]``, head ``[C, H]`` and ``[C]``.
    Raises: ProfileInvalid, naming tensor and value.
    """

    bank: str
    mask_a: NDArray[Any]
    mask_b: NDArray[Any]
    ln_weight: NDArray[Any] | None = None
    ln_bias: NDArray[Any] | None = None
    head_weight: NDArray[Any] | None = None
    head_bias: NDArray[Any] | None = None
    labels: tuple[str, ...] | None = None
    shared_head: str | None = None
    description: str | None = None

    def __post_init__(self) -> None:
        check_bank(self.bank)
        mask_a, mask_b = served_masks(self.mask_a, self.mask_b)
        self._keep(mask_a=mask_a, mask_b=mask_b)
        self._keep_layer_norm(blocks=mask_a.shape[0])
        self._keep_head()
        if self.shared_head is not None:
            check_shared_head(self.shared_head)
        if self.description is not None:
            check_description(self.description)

    def _keep(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _keep_layer_norm(self, blocks: int) -> None:
        weight, bias = self.ln_weight, self.ln_bias
        known = {"L": blocks}
        if weight is not None:
            check_shape(weight, "LR", known, "ln_weight")
            check_floats(weight, "ln_weight")
            known["R"] = weight.shape[1]
        if bias is not None:
            check_shape(bias, "LR", known, "ln_bias")
            check_floats(bias, "ln_bias")
        if weight is None and bias is not None:
            weight = np.ones(bias.shape, np.float16)
        if bias is None and weight is not None:
            bias = np.zeros(weight.shape, np.float16)
        if weight is not None and bias is not None:
            self._keep(ln_weight=as_halves(weight), ln_bias=as_halves(bias))

    def _keep_head(self) -> None:
        weight, bias, labels = self.head_weight, self.head_bias, self.labels
        if weight is None:
            if bias is not None:
                raise ProfileInvalid("there is no head.weight that it could belong to", "head.bias")
            if labels is not None:
                raise ProfileInvalid(f"{shown(labels)} stand there without a head.weight", "labels")
            return
        if self.shared_head is not None:
            raise ProfileInvalid(
                f"'shared:{self.shared_head}' and an own head.weight: a profile has one head at most", "head"
            )
        check_shape(weight, "CH", {}, "head.weight")
        check_floats(weight, "head.weight")
        classes = weight.shape[0]
        if bias is None:
            bias = np.zeros(classes, np.float16)
        check_shape(bias, "C", {"C": classes}, "head.bias")
        check_floats(bias, "head.bias")
        labels = check_labels(labels, classes)
        self._keep(head_weight=as_halves(weight), head_bias=as_halves(bias), labels=labels)

    @property
    def hard(self) -> bool:
        return bool(self.mask_a.dtype == np.bool_)

    @cached_property
    def k(self) -> int | None:
        """How many adapters each row of a hard profile selects; None for a soft one."""
        return int(np.count_nonzero(self.mask_a[0])) if self.hard else None

    @cached_property
    def version(self) -> str:
        """``sha256:HEX`` over the canonical record: equal values have equal versions."""
        return record_version(encode_record(self))

    def check_fits(self, geometry: BankGeometry) -> None:
        """Raises: BankMismatch over another bank; ProfileInvalid if a shape or the shared head is not the bank's."""
        if self.bank != geometry.fingerprint:
            raise BankMismatch(
                f"the profile was made for bank {shown(self.bank)}, this server has {geometry.fingerprint}"
            )
        sizes = {"L": geometry.blocks, "N": geometry.adapters, "R": geometry.width, "H": geometry.hidden}
        check_shape(self.mask_a, "LN", sizes, "mask_a")
        if self.ln_weight is not None:
            if not geometry.layer_norm:
                raise ProfileInvalid(
                    f"shape is {list(self.ln_weight.shape)}, but this bank's adapters have no LayerNorm", "ln_weight"
                )
            check_shape(self.ln_weight, "LR", sizes, "ln_weight")
        if self.head_weight is not None:
            check_shape(self.head_weight, "CH", {"H": geometry.hidden}, "head.weight")
        if self.shared_head is not None and self.shared_head not in geometry.shared_heads:
            there = ", ".join(sorted(geometry.shared_heads)) or "none"
            raise ProfileInvalid(f"'shared:{self.shared_head}' is not a head of this bank (it has: {there})", "head")

    def label_names(self, geometry: BankGeometry) -> tuple[str, ...] | None:
        """The labels of its own or shared head; None if it has no head, or the bank no such shared head."""
        if self.shared_head is not None:
            return geometry.shared_heads.get(self.shared_head)
        return self.labels


def record_version(record: bytes) -> str:
    """The version that a canonical record's bytes stand for."""
    return "sha256:" + hashlib.sha256(record).hexdigest()
