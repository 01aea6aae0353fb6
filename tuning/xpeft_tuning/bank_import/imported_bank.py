"""A bank of adapters that were trained elsewhere, one checkpoint each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm

from .adapterhub import read_bottleneck
from .checkpoint import Checkpoint, Kind, read_checkpoint
from .errors import CheckpointsDiffer, FitTextsInvalid
from .fit_texts import MIN_FIT, FitTexts
from .imported_adapter import ImportedAdapter
from .lora_fit import fit_loras
from .peft_lora import Lora, read_lora


class ImportedBank(NamedTuple):
    """``adapters[n]`` is what the bank's adapter n was."""

    bank: Bank
    adapters: tuple[ImportedAdapter, ...]


def import_bank(
    paths: Sequence[Path], plm: Plm, *, fit_texts: FitTexts | None = None, min_fit: float = MIN_FIT
) -> ImportedBank:
    """Make a bank with biases and without LN_R, an adapter for each checkpoint, in the order given.

    Adapters of the ``adapters`` library come over exactly, LoRAs of PEFT as closely as texts show (see `fit_loras`).

    Args:
        paths: folders of checkpoints, or the weights' files in them; one at least.
        fit_texts: needed for LoRAs.
        min_fit: least share of a LoRA's variance, in any block, that its adapter must explain.
    Raises: BankImportError.
    """
    checkpoints = [read_checkpoint(path) for path in paths]
    read = [
        read_lora(checkpoint, plm) if checkpoint.kind is Kind.PEFT else read_bottleneck(checkpoint, plm)
        for checkpoint in checkpoints
    ]
    loras = [each for each in read if isinstance(each, Lora)]
    _check_activations(read)
    fitted = iter(_fitted(loras, plm, fit_texts, min_fit) if loras else ())
    adapters = tuple(next(fitted) if isinstance(each, Lora) else each for each in read)
    return ImportedBank(_bank(adapters, plm), adapters)


def _check_activations(read: Sequence[ImportedAdapter | Lora]) -> None:
    of: dict[str, Checkpoint] = {}
    for each in read:
        activation = "relu" if isinstance(each, Lora) else each.activation
        of.setdefault(activation, each.checkpoint)
    if len(of) > 1:
        named = " and ".join(f"{checkpoint.path} has {activation}" for activation, checkpoint in of.items())
        raise CheckpointsDiffer(
            f"{named} (a LoRA counts as relu): a bank has one activation, so these make a bank for each"
        )


def _fitted(loras: Sequence[Lora], plm: Plm, texts: FitTexts | None, min_fit: float) -> list[ImportedAdapter]:
    if texts is None:
        raise FitTextsInvalid(
            f"{loras[0].checkpoint.path}: a LoRA reads what goes into the feed-forward's last matrix, an adapter of a "
            "bank what comes out of it: how the one follows from the other is fitted over texts (--fit-texts, a file "
            "with a text a line), and there are none"
        )
    return fit_loras(loras, plm, texts, min_fit=min_fit)


def _bank(adapters: Sequence[ImportedAdapter], plm: Plm) -> Bank:
    """Narrow adapters end in zeros, which both activations keep at zero; absent blocks are zeros throughout."""
    blocks, hidden = plm.facts.blocks, plm.facts.hidden
    count, width = len(adapters), max(adapter.width for adapter in adapters)
    down, down_bias = torch.zeros(blocks, count, hidden, width), torch.zeros(blocks, count, width)
    up, up_bias = torch.zeros(blocks, count, width, hidden), torch.zeros(blocks, count, hidden)
    for number, adapter in enumerate(adapters):
        for block, part in adapter.blocks.items():
            down[block, number, :, : part.width] = part.down
            down_bias[block, number, : part.width] = part.down_bias
            up[block, number, : part.width] = part.up
            up_bias[block, number] = part.up_bias
    return Bank(
        down=down,
        up=up,
        down_bias=down_bias,
        up_bias=up_bias,
        plm=plm.facts.fingerprint,
        activation=adapters[0].activation,
        layer_norm=False,
        pooling="last" if plm.facts.decoder else "mean",
        provenance=json.dumps({"imported": [_source(adapter) for adapter in adapters]}),
    )


def _source(adapter: ImportedAdapter) -> dict[str, object]:
    checkpoint = adapter.checkpoint
    source: dict[str, object] = {
        "kind": checkpoint.kind.value,
        "name": checkpoint.name,
        "sha256": checkpoint.sha256,
    }
    return source if adapter.fit is None else {**source, "fit": round(adapter.fit, 4)}
