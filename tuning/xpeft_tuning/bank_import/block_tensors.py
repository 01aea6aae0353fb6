"""Whose tensor is it: the names in a checkpoint, sorted by block."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

from xpeft_server.model.plm import Plm

from .checkpoint import Checkpoint
from .errors import CheckpointForeign, CheckpointInvalid

_SHOWN = 5


class SortedTensors(NamedTuple):
    """``blocks``: number → part → tensor; ``paths``: what stands before the parts; ``others``: names of no block."""

    blocks: Mapping[int, Mapping[str, Tensor]]
    paths: Mapping[int, str]
    others: tuple[str, ...]


def block_pattern(plm: Plm) -> str:
    """Matches a block's path, from the model with a head or from the bare one, as the group ``block``."""
    prefix, blocks = re.escape(plm.model.base_model_prefix), re.escape(plm.family.blocks)
    return rf"(?:{prefix}\.)?{blocks}\.(?P<block>[0-9]+)"


def sort_tensors(checkpoint: Checkpoint, pattern: str) -> SortedTensors:
    """Sort by the pattern's groups ``block`` and ``part``. Raises: CheckpointInvalid if a part is there twice."""
    blocks: dict[int, dict[str, Tensor]] = {}
    paths: dict[int, str] = {}
    others: list[str] = []
    for name, tensor in checkpoint.tensors.items():
        match = re.fullmatch(pattern, name)
        if match is None:
            others.append(name)
            continue
        number = int(match["block"])
        paths[number] = name[: match.start("part") - 1]
        parts = blocks.setdefault(number, {})
        if match["part"] in parts:
            raise CheckpointInvalid(f"{checkpoint.path}: {name} is there twice, with and without the model's prefix")
        parts[match["part"]] = tensor
    return SortedTensors(blocks, paths, tuple(others))


def check_blocks(checkpoint: Checkpoint, blocks: Iterable[int], plm: Plm) -> None:
    """Raises: CheckpointInvalid without a block, CheckpointForeign for one that the model does not have."""
    last = max(blocks, default=None)
    if last is None:
        raise CheckpointInvalid(f"{checkpoint.path}: there is no adapter in it")
    if last >= plm.facts.blocks:
        raise CheckpointForeign(
            f"{checkpoint.path}: it has an adapter in block {last}, so {last + 1} blocks at least, "
            f"the {plm.facts.model_type} model has {plm.facts.blocks}"
        )


def check_hidden(checkpoint: Checkpoint, what: str, hidden: int, plm: Plm) -> None:
    """Raises: CheckpointForeign, with both numbers."""
    if hidden != plm.facts.hidden:
        raise CheckpointForeign(
            f"{checkpoint.path}: {what} is {hidden}, "
            f"the {plm.facts.model_type} model's hidden size is {plm.facts.hidden}"
        )


def listed(names: Iterable[str]) -> str:
    """The first few names, and how many there are."""
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more
