"""A bank as a safetensors file: read without copying it into memory, written whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from xpeft_server.output_file import output_file

from ..fingerprint import tensor_bytes
from .bank import Activation, Bank, Pooling, SharedHead
from .errors import BankInvalid
from .header import BankHeader, format_header, read_header


def read_bank_file(path: str | Path) -> Bank:
    """Read a bank; its tensors are views of the mapped file, their pages shared between processes.

    Nobody may write into the file while it is in use; :func:`write_bank_file` moves a new one into its place
    instead. A file that names no pooling reads as mean, by default (what it means on a decoder is ``open_bank``'s).

    Raises: BankInvalid, its message starting with the path, if the file is missing, damaged or no bank.
    """
    path = Path(path)
    try:
        header = read_header(path)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in header.tensors}
        return _bank(header, tensors)
    except FileNotFoundError:
        raise BankInvalid(f"{path}: no such file") from None
    except (BankInvalid, SafetensorError) as error:
        raise BankInvalid(f"{path}: {error}") from None
    except OSError as error:
        raise BankInvalid(f"{path}: cannot be read: {error.strerror or error}") from None


def write_bank_file(bank: Bank, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a bank; equal banks with equal provenance give equal bytes.

    Raises: FileExistsError if the file is there and ``overwrite`` is false; OSError.
    """
    start, tensors = format_header(bank)
    with output_file(Path(path), overwrite=overwrite) as file:
        file.write(start)
        for tensor in tensors:
            file.write(tensor_bytes(tensor))


def _bank(header: BankHeader, tensors: dict[str, Tensor]) -> Bank:
    heads = {}
    for name, labels in header.heads.items():
        weight = tensors[f"heads.{name}.weight"]
        bias = tensors.get(f"heads.{name}.bias")
        if bias is None:
            bias = torch.zeros(weight.shape[:1], dtype=weight.dtype)
        heads[name] = SharedHead(weight, bias, labels)
    metadata = header.metadata
    return Bank(
        down=tensors["down"],
        up=tensors["up"],
        down_bias=tensors.get("down_bias"),
        up_bias=tensors.get("up_bias"),
        heads=heads,
        plm=metadata["plm"],
        activation=cast(Activation, metadata.get("activation", "relu")),
        layer_norm=header.switch("layer_norm", default=True),
        pooling=cast(Pooling, metadata.get("pooling", "mean")),
        pooling_by_default="pooling" not in metadata,
        provenance=metadata.get("provenance", ""),
    )
