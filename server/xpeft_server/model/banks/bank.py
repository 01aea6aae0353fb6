"""The bank: N bottleneck adapters for each of a model's L blocks, shared by every profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from xpeft_profiles import BankGeometry

from ..fingerprint import DTYPE_NAMES, fingerprint, is_fingerprint
from .checks import check_adapters, check_head
from .errors import BankInvalid

Activation = Literal["relu", "gelu"]
Pooling = Literal["mean", "cls", "last"]

BANK_FORMAT = "xpeft-bank-1"


@dataclass(frozen=True, eq=False)
class SharedHead:
    """A classifier that profiles can name instead of bringing one: weight [C,H], bias [C], C labels."""

    weight: Tensor
    bias: Tensor
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", self.weight.detach().contiguous())
        object.__setattr__(self, "bias", self.bias.detach().contiguous())
        object.__setattr__(self, "labels", tuple(self.labels))


@dataclass(frozen=True, eq=False, kw_only=True)
class Bank:
    """Adapters and shared heads, checked when it is made; whoever holds one can rely on its shapes.

    Semantics: h' = h + act(LN_R(h · down[l,n] + down_bias[l,n])) · up[l,n] + up_bias[l,n] for adapter n alone
    (LN_R only if ``layer_norm``); a profile's masks add up adapters before that. X-PEFT, arXiv 2401.16137.

    Args:
        down: ``[L, N, H, R]``, float32, float16 or bfloat16, as are ``up`` and the biases, all of one dtype.
        up: ``[L, N, R, H]``.
        down_bias: ``[L, N, R]`` or none.
        up_bias: ``[L, N, H]`` or none.
        heads: name → head; their dtypes may differ from the adapters'.
        plm: fingerprint of the language model that it belongs to.
        pooling: how a text's token rows become one row: their mean, the first, or the last.
        pooling_by_default: nobody chose ``pooling``; it is what suits the model, and the fingerprint says null.
        provenance: where it comes from, for people; not part of the fingerprint.
    Raises: BankInvalid if shapes, dtypes, values, labels or settings do not fit.
    """

    down: Tensor
    up: Tensor
    plm: str
    down_bias: Tensor | None = None
    up_bias: Tensor | None = None
    heads: Mapping[str, SharedHead] = field(default_factory=dict)
    activation: Activation = "relu"
    layer_norm: bool = True
    pooling: Pooling = "mean"
    pooling_by_default: bool = False
    provenance: str = ""

    def __post_init__(self) -> None:
        for name in ("down", "up", "down_bias", "up_bias"):
            tensor: Tensor | None = getattr(self, name)
            if tensor is not None:
                object.__setattr__(self, name, tensor.detach().contiguous())
        object.__setattr__(self, "heads", MappingProxyType(dict(sorted(self.heads.items()))))
        self._check_settings()
        check_adapters(self.adapter_tensors())
        for name, head in self.heads.items():
            check_head(name, head.weight, head.bias, head.labels, hidden=self.hidden)

    def _check_settings(self) -> None:
        if not is_fingerprint(self.plm):
            raise BankInvalid(f"plm is {self.plm!r}, it must be a model's fingerprint, sha256: and 64 hex digits")
        if self.activation not in get_args(Activation):
            raise BankInvalid(f"activation is {self.activation!r}, it must be relu or gelu")
        if self.pooling not in get_args(Pooling):
            raise BankInvalid(f"pooling is {self.pooling!r}, it must be mean, cls or last")

    @property
    def blocks(self) -> int:
        return self.down.shape[0]

    @property
    def adapters(self) -> int:
        return self.down.shape[1]

    @property
    def hidden(self) -> int:
        return self.down.shape[2]

    @property
    def width(self) -> int:
        return self.down.shape[3]

    @property
    def dtype(self) -> torch.dtype:
        """The adapters' dtype."""
        return self.down.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def adapter_tensors(self) -> dict[str, Tensor]:
        """The adapters' tensors that are there, under their names in the file."""
        every = {"down": self.down, "up": self.up, "down_bias": self.down_bias, "up_bias": self.up_bias}
        return {name: tensor for name, tensor in every.items() if tensor is not None}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under its name in the file, sorted by name."""
        named = self.adapter_tensors()
        for name, head in self.heads.items():
            named[f"heads.{name}.weight"] = head.weight
            named[f"heads.{name}.bias"] = head.bias
        return dict(sorted(named.items()))

    @cached_property
    def fingerprint(self) -> str:
        """``sha256:HEX`` of everything that changes an answer, so of all but the provenance.

        Semantics: SHA-256 over one line of JSON and then the bytes of the tensors. The JSON has the keys
        ``format`` ("xpeft-bank-1"), ``plm``, ``activation``, ``layer_norm`` (true or false), ``pooling`` (null if
        the file names none), ``heads`` (name → labels) and ``tensors``, a list of ``{"name", "dtype", "shape"}``
        sorted by name, where dtype is F32, F16 or BF16. It is written with sorted keys, without spaces, in
        ASCII with ``\\uXXXX`` for the rest, and ends in one newline. The tensors follow in the order of the
        list, row-major, little-endian, nothing between them. A shared head without a bias counts as one with
        a bias of zeros in its weight's dtype.
        """
        tensors = self.tensors()
        header = {
            "format": BANK_FORMAT,
            "plm": self.plm,
            "activation": self.activation,
            "layer_norm": self.layer_norm,
            "pooling": None if self.pooling_by_default else self.pooling,
            "heads": {name: list(head.labels) for name, head in self.heads.items()},
            "tensors": [
                {"name": name, "dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape)}
                for name, tensor in tensors.items()
            ],
        }
        return fingerprint(header, tensors.values())

    @property
    def geometry(self) -> BankGeometry:
        """What a profile has to fit, without a tensor."""
        return BankGeometry(
            fingerprint=self.fingerprint,
            blocks=self.blocks,
            adapters=self.adapters,
            hidden=self.hidden,
            width=self.width,
            layer_norm=self.layer_norm,
            shared_heads={name: head.labels for name, head in self.heads.items()},
        )
