"""Bottleneck adapters of AdapterHub's ``adapters`` library: the same arithmetic under other names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from xpeft_server.model.plm import Plm

from .block_tensors import block_pattern, check_blocks, check_hidden, listed, sort_tensors
from .bottleneck_config import BottleneckConfig, read_bottleneck_config
from .checkpoint import Checkpoint, read_object
from .errors import CheckpointForeign, CheckpointInvalid, CheckpointUnsupported
from .imported_adapter import BlockAdapter, ImportedAdapter

_INTERFACE_FILE = "adapter_interface.json"
_HEAD_FILES = ("head_config.json", "pytorch_model_head.bin", "model_head.safetensors")


def read_bottleneck(checkpoint: Checkpoint, plm: Plm) -> ImportedAdapter:
    """The adapter behind each block's feed-forward, scaling folded in.

    Semantics: down = Aᵀ, down_bias = c, up = scaling · Bᵀ, up_bias = scaling · d (zeros where a bias is absent).

    Raises: CheckpointUnsupported, CheckpointForeign, CheckpointInvalid.
    """
    config = read_bottleneck_config(checkpoint)
    _check_model(checkpoint, plm)
    _check_interface(checkpoint, plm)
    found = sort_tensors(checkpoint, _pattern(checkpoint, plm))
    if found.others:
        raise CheckpointUnsupported(
            f"{checkpoint.path}: {listed(found.others)}: no tensors of an adapter behind the feed-forward "
            f"that {plm.facts.model_type} models have by the name {checkpoint.config['name']!r}"
        )
    check_blocks(checkpoint, found.blocks, plm)
    _check_depth(checkpoint, config, {*found.blocks}, plm)
    blocks = {
        number: _block(checkpoint, number, parts, config.scaling, plm) for number, parts in sorted(found.blocks.items())
    }
    head = any((checkpoint.folder / name).exists() for name in _HEAD_FILES)
    return ImportedAdapter(checkpoint, config.activation, blocks, skipped=("prediction head",) if head else ())


def _check_model(checkpoint: Checkpoint, plm: Plm) -> None:
    kind = checkpoint.config.get("model_type")
    if kind != plm.facts.model_type:
        raise CheckpointForeign(
            f"{checkpoint.path}: model_type is {kind!r}, the language model's is {plm.facts.model_type!r}"
        )
    hidden = checkpoint.config.get("hidden_size")
    if hidden is not None:
        check_hidden(checkpoint, "hidden_size", hidden, plm)


def _check_interface(checkpoint: Checkpoint, plm: Plm) -> None:
    """Where the library hooks adapters into models by their modules' names, the file beside them tells which."""
    file = checkpoint.folder / _INTERFACE_FILE
    if not file.exists():
        return
    try:
        interface = read_object(file).get("interface")
    except CheckpointInvalid as error:
        raise CheckpointInvalid(f"{checkpoint.path}: {error}") from None
    place = interface.get("layer_output_proj") if isinstance(interface, dict) else None
    if place != plm.family.weight:
        raise CheckpointUnsupported(
            f"{checkpoint.path}: layer_output_proj in {_INTERFACE_FILE} is {place!r}, "
            f"the feed-forward of a {plm.facts.model_type} model ends with {plm.family.weight!r}"
        )


def _pattern(checkpoint: Checkpoint, plm: Plm) -> str:
    name = checkpoint.config.get("name")
    if not isinstance(name, str):
        raise CheckpointInvalid(f"{checkpoint.path}: name is {name!r}, it must be the adapter's name")
    # In models with BERT's Output the library keeps adapters in that module, elsewhere in the block.
    place = f"{plm.family.feed_forward}.adapters" if plm.family.post_norm else "output_adapters.adapters"
    part = r"(?P<part>adapter_down\.0\.weight|adapter_down\.0\.bias|adapter_up\.weight|adapter_up\.bias)"
    return rf"{block_pattern(plm)}\.{re.escape(place)}\.{re.escape(name)}\.{part}"


def _check_depth(checkpoint: Checkpoint, config: BottleneckConfig, blocks: set[int], plm: Plm) -> None:
    """The library writes every block but those in leave_out: where the last ones lack, the model had fewer."""
    if both := blocks & config.left_out:
        raise CheckpointInvalid(f"{checkpoint.path}: leave_out names block {min(both)}, which has an adapter")
    ours = range(plm.facts.blocks)
    depth = max(blocks | (config.left_out & {*ours})) + 1
    if depth != len(ours):
        raise CheckpointForeign(
            f"{checkpoint.path}: it has adapters for {depth} blocks, the {plm.facts.model_type} model has {len(ours)}"
        )


def _block(checkpoint: Checkpoint, number: int, parts: Mapping[str, Tensor], scaling: float, plm: Plm) -> BlockAdapter:
    down, up = parts.get("adapter_down.0.weight"), parts.get("adapter_up.weight")
    if down is None or up is None:
        lacking = "adapter_down.0.weight" if down is None else "adapter_up.weight"
        raise CheckpointInvalid(f"{checkpoint.path}: block {number} has no {lacking}")
    if down.dim() == 2:
        check_hidden(checkpoint, f"the input of adapter_down in block {number}", down.shape[1], plm)
    width, hidden = down.shape[0], plm.facts.hidden
    shapes = {
        "adapter_down.0.weight": [width, hidden],
        "adapter_down.0.bias": [width],
        "adapter_up.weight": [hidden, width],
        "adapter_up.bias": [hidden],
    }
    for part, tensor in parts.items():
        if list(tensor.shape) != shapes[part]:
            raise CheckpointInvalid(
                f"{checkpoint.path}: {part} of block {number} has the shape {list(tensor.shape)}, "
                f"it must be {shapes[part]}"
            )
    return BlockAdapter(
        down=down.T,
        down_bias=parts.get("adapter_down.0.bias", torch.zeros(width)),
        up=scaling * up.T,
        up_bias=scaling * parts.get("adapter_up.bias", torch.zeros(hidden)),
    )
