"""A checkpoint's folder: its configuration and its tensors, and nothing that could run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from .errors import CheckpointInvalid

CONFIG_FILE = "adapter_config.json"

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Kind(Enum):
    """Which library wrote it."""

    ADAPTERS = "adapters"
    PEFT = "peft"


_WEIGHTS: Mapping[Kind, tuple[str, ...]] = {
    Kind.ADAPTERS: ("pytorch_adapter.bin", "adapter.safetensors"),
    Kind.PEFT: ("adapter_model.safetensors", "adapter_model.bin"),
}


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What one training left behind.

    Args:
        path: as it was given, for messages; ``name`` is its folder's.
        config: the content of `CONFIG_FILE`.
        tensors: float32, finite, on CPU.
        sha256: of the weights' file, 64 hex digits.
    """

    path: Path
    name: str
    folder: Path
    kind: Kind
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's folder, or the weights' file in one (for a folder with several).

    Pickles are read for tensors only.
    Raises: CheckpointInvalid, its message starting with the path.
    """
    try:
        folder = path if path.is_dir() else path.parent
        if not path.exists():
            raise CheckpointInvalid("no such file or folder")
        config = read_object(folder / CONFIG_FILE)
        kind = _kind(config)
        file = _weights_file(folder, kind) if path.is_dir() else path
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        tensors = {name: _plain(name, value) for name, value in _load(file).items()}
    except CheckpointInvalid as error:
        raise CheckpointInvalid(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointInvalid(f"{path}: cannot be read: {error.strerror or error}") from None
    return Checkpoint(path, folder.resolve().name, folder, kind, config, tensors, digest)


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises: CheckpointInvalid, OSError."""
    if not file.exists():
        raise CheckpointInvalid(f"there is no {file.name}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"{file.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointInvalid(f"{file.name} holds a {type(content).__name__}, it must hold an object")
    return content


def check_finite(path: Path, field: str, value: float) -> None:
    """Raises: CheckpointInvalid for a number that float32 does not have."""
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise CheckpointInvalid(f"{path}: {field} is {json.dumps(value):.80}, it must be finite in float32")


def _kind(config: Mapping[str, Any]) -> Kind:
    if "peft_type" in config:
        return Kind.PEFT
    if "config" in config:
        return Kind.ADAPTERS
    raise CheckpointInvalid(
        f"{CONFIG_FILE} has neither peft_type, as PEFT writes it, nor config, as the adapters library does"
    )


def _weights_file(folder: Path, kind: Kind) -> Path:
    names = _WEIGHTS[kind]
    there = [folder / name for name in names if (folder / name).exists()]
    if not there:
        raise CheckpointInvalid(f"there is neither {' nor '.join(names)} in the folder")
    if len(there) > 1:
        raise CheckpointInvalid(f"there are both {' and '.join(names)} in the folder: name the file that is meant")
    return there[0]


def _load(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # two libraries read these files, and each has its own errors for damaged ones
        reason = str(error).strip().split("\n")[0]
        raise CheckpointInvalid(
            f"{file.name} cannot be read as tensors alone: {type(error).__name__}: {reason}"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise CheckpointInvalid(f"{file.name} holds a {type(content).__name__}, it must hold tensors by their names")
    return content


def _plain(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype not in _FLOATS or value.layout != torch.strided:
        what = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise CheckpointInvalid(f"{name} is {what}, it must be a dense tensor of floating-point numbers")
    tensor = value.detach().float()
    wrong = torch.nonzero(~torch.isfinite(tensor))
    if len(wrong):
        where = wrong[0].tolist()
        raise CheckpointInvalid(f"{name}{where} is {tensor[tuple(where)].item()}, it must be finite")
    return tensor
