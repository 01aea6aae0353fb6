"""The rules that a bank's tensors and labels keep; every refusal names the tensor, its value and the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from xpeft_profiles.names import NAME_PATTERN, NAME_RULE

from ..fingerprint import DTYPE_NAMES
from .errors import BankInvalid


def check_adapters(tensors: Mapping[str, Tensor]) -> None:
    """Check ``down`` [L,N,H,R], ``up`` [L,N,R,H], ``down_bias`` [L,N,R], ``up_bias`` [L,N,H] against each other.

    Semantics: ``down`` says what L, N, H and R are; one dtype for all; every value finite.
    Raises: BankInvalid.
    """
    down = tensors["down"]
    if down.dim() != 4 or 0 in down.shape:
        raise BankInvalid(f"down has the shape {list(down.shape)}, it must be [L, N, H, R], none of them 0")
    blocks, adapters, hidden, width = down.shape
    shapes = {
        "down": [blocks, adapters, hidden, width],
        "up": [blocks, adapters, width, hidden],
        "down_bias": [blocks, adapters, width],
        "up_bias": [blocks, adapters, hidden],
    }
    for name, tensor in tensors.items():
        if list(tensor.shape) != shapes[name]:
            raise BankInvalid(
                f"{name} has the shape {list(tensor.shape)}, it must be {shapes[name]} beside down {list(down.shape)}"
            )
        check_dtype(name, tensor)
        if tensor.dtype != down.dtype:
            raise BankInvalid(
                f"{name} is {DTYPE_NAMES[tensor.dtype]} and down is {DTYPE_NAMES[down.dtype]}: "
                "the tensors of the adapters must be of one dtype"
            )
        check_finite(name, tensor)


def check_head(name: str, weight: Tensor, bias: Tensor, labels: Sequence[str], *, hidden: int) -> None:
    """Check one shared head: weight [C,H], bias [C], C distinct labels. Raises: BankInvalid."""
    if NAME_PATTERN.fullmatch(name) is None:
        raise BankInvalid(f"shared head {name!r}: a name is {NAME_RULE}")
    if weight.dim() != 2 or weight.shape[0] == 0 or weight.shape[1] != hidden:
        raise BankInvalid(
            f"heads.{name}.weight has the shape {list(weight.shape)}, it must be [C, {hidden}] "
            f"with a row for each label (H={hidden} as in down)"
        )
    classes = weight.shape[0]
    if list(bias.shape) != [classes]:
        raise BankInvalid(f"heads.{name}.bias has the shape {list(bias.shape)}, it must be [{classes}]")
    if len(labels) != classes:
        raise BankInvalid(
            f"shared head {name!r} has {len(labels)} labels, its weight has {classes} rows: they must be as many"
        )
    seen: set[str] = set()
    for i, label in enumerate(labels):
        if not isinstance(label, str) or not label:
            raise BankInvalid(f"shared head {name!r}: label {i} is {label!r}, it must be a non-empty string")
        if label in seen:
            raise BankInvalid(f"shared head {name!r}: the label {label!r} is there twice, labels must be distinct")
        seen.add(label)
    for part, tensor in (("weight", weight), ("bias", bias)):
        check_dtype(f"heads.{name}.{part}", tensor)
        check_finite(f"heads.{name}.{part}", tensor)


def check_dtype(name: str, tensor: Tensor) -> None:
    """Raises: BankInvalid unless the tensor is float32, float16 or bfloat16."""
    if tensor.dtype not in DTYPE_NAMES:
        raise BankInvalid(
            f"{name} is {str(tensor.dtype).removeprefix('torch.')}, it must be float32, float16 or bfloat16"
        )


def check_finite(name: str, tensor: Tensor) -> None:
    """Look for NaN and infinity a row of the first axis at a time, so that a mapped file costs no copy.

    Raises: BankInvalid with the first such value and where it is.
    """
    for i, row in enumerate(tensor):
        low, high = torch.aminmax(row)
        if not bool(torch.isfinite(low) and torch.isfinite(high)):
            where = [i, *torch.nonzero(~torch.isfinite(row))[0].tolist()]
            raise BankInvalid(f"{name}{where} is {tensor[tuple(where)].item()}, it must be finite")
