"""LoRA of PEFT on the last matrix of the feed-forward: the pairs, before anything is fitted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from xpeft_server.model.plm import Plm

from .block_tensors import block_pattern, check_blocks, check_hidden, listed, sort_tensors
from .checkpoint import Checkpoint
from .errors import CheckpointForeign, CheckpointInvalid, CheckpointUnsupported
from .feed_forward_end import last_matrix
from .lora_config import HEADS, LoraConfig

_ROOT = "base_model.model."


class LoraPair(NamedTuple):
    """Adds ``scale · B(A x)`` to the matrix' output; ``a`` ``[r, I]``, ``b`` ``[H, r]`` with the scale in it."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True, eq=False)
class Lora:
    """Pairs by the block's number; a block without one changes nothing."""

    checkpoint: Checkpoint
    pairs: Mapping[int, LoraPair]
    skipped: tuple[str, ...]


def read_lora(checkpoint: Checkpoint, plm: Plm) -> Lora:
    """Raises: CheckpointUnsupported if any of it lies elsewhere; CheckpointForeign, CheckpointInvalid."""
    config = LoraConfig(checkpoint)
    weight = re.escape(plm.family.weight)
    found = sort_tensors(
        checkpoint, rf"{re.escape(_ROOT)}{block_pattern(plm)}\.{weight}\.(?P<part>lora_A\.weight|lora_B\.weight)"
    )
    head = tuple(name for name in found.others if name.removeprefix(_ROOT).split(".")[0] in HEADS)
    _check_others(checkpoint, [name for name in found.others if name not in head], plm)
    check_blocks(checkpoint, found.blocks, plm)
    inner = last_matrix(plm, 0).get_parameter("weight").numel() // plm.facts.hidden
    pairs = {}
    for number, parts in sorted(found.blocks.items()):
        a, b = _matrices(checkpoint, number, parts, inner, plm)
        pairs[number] = LoraPair(a, b * config.scale(found.paths[number].removeprefix(_ROOT), rank=a.shape[0]))
    return Lora(checkpoint, pairs, ("prediction head",) if head else ())


def _check_others(checkpoint: Checkpoint, names: list[str], plm: Plm) -> None:
    if not names:
        return
    modules = {_module(name) for name in names if ".lora_" in name}
    if modules:
        raise CheckpointUnsupported(
            f"{checkpoint.path}: it has LoRA on {listed(sorted(modules))}; an adapter of a bank stands at the "
            f"feed-forward's output, so only LoRA on {plm.family.blocks}.*.{plm.family.weight} can become one, "
            "and without the rest it would not be what was trained"
        )
    raise CheckpointUnsupported(f"{checkpoint.path}: {listed(names)}: no tensors of a plain LoRA")


def _module(name: str) -> str:
    """The path of what a pair changes, with a star for the block."""
    return re.sub(r"\.[0-9]+\.", ".*.", name.removeprefix(_ROOT).split(".lora_")[0])


def _matrices(
    checkpoint: Checkpoint, number: int, parts: Mapping[str, Tensor], inner: int, plm: Plm
) -> tuple[Tensor, Tensor]:
    """A ``[r, I]`` and B ``[H, r]``."""
    a, b = parts.get("lora_A.weight"), parts.get("lora_B.weight")
    if a is None or b is None:
        lacking = "lora_A.weight" if a is None else "lora_B.weight"
        raise CheckpointInvalid(f"{checkpoint.path}: block {number} has no {lacking}")
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise CheckpointInvalid(
            f"{checkpoint.path}: lora_A and lora_B of block {number} have the shapes {list(a.shape)} and "
            f"{list(b.shape)}, they must be [r, I] and [H, r]"
        )
    check_hidden(checkpoint, f"the output of lora_B in block {number}", b.shape[0], plm)
    if a.shape[1] != inner:
        raise CheckpointForeign(
            f"{checkpoint.path}: the input of lora_A in block {number} is {a.shape[1]}, "
            f"the {plm.facts.model_type} model's feed-forward is {inner} wide inside"
        )
    return a, b
