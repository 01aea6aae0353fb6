"""A part of a step at addresses that never change, which is what a captured step reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_server.model.batches.padded_batch import PaddedBatch, PaddedSequences
from xpeft_server.model.graphs.static_fields import Field, StaticFields
from xpeft_server.model.lanes import Lanes

from .step_parts import StepParts
from .step_shape import StepShape
from .trainee import Turn


class StaticTurns:
    """P' places of a shape, each with rows of its own; places and rows without anything weigh 0.

    Args:
        nobody: the place that stands where a part has fewer trainees than places.
    Attributes:
        device: the arrays; ``places`` int64 and ``temperature``, ``share`` (of the peak learning rate), ``penalty``,
            ``bias_penalty`` float32 are ``[P']``; ``live`` (tokens), ``targets`` (labels, or tokens of the prompt)
            int64, ``numbers`` (targets that are numbers), ``mean`` (1 / rows) and ``weight`` (that, times the row's
            weight) float32, ``are_numbers`` int32 are ``[P' · rows]``; ``noise``, where there is any, is ``[P', 2, L,
            N]``.
    """

    def __init__(self, shape: StepShape, on: StepParts, lanes: Lanes, *, nobody: int) -> None:
        self.shape = shape
        self._nobody = nobody
        fields = _fields(shape, on.stack.learned.logits.shape[1:] if on.settings.gumbel else None)
        memory = torch.zeros(StaticFields.size_of(fields), dtype=torch.uint8, device=on.plm.device)
        self._fields = StaticFields(fields, memory, lanes)
        self.device = self._fields.device
        self.load([])

    def batch(self) -> PaddedBatch:
        """For one forward."""
        ids, positions, types = (self.device[name][None] for name in ("ids", "positions", "types"))
        return PaddedBatch(ids, positions, types, PaddedSequences(self.device["live"], self.shape.length))

    @property
    def noise(self) -> Tensor | None:
        return self.device.get("noise")

    def load(self, turns: Sequence[Turn]) -> None:
        """Bring them to the device, without waiting for it. Args: turns: at most as many as the shape has places."""
        staged = self._fields.stage()
        for name, values in staged.fields.items():
            values.fill({"places": self._nobody, "temperature": 1}.get(name, 0))
        for slot, turn in enumerate(turns):
            self._write(staged.fields, slot, turn)
        self._fields.load(staged)

    def _write(self, to: Mapping[str, NDArray[Any]], slot: int, turn: Turn) -> None:
        trainee, rows = turn
        first = slot * self.shape.rows
        here = slice(first, first + len(rows))
        texts, length = trainee.train.end_to_end, trainee.train.lengths[rows]
        # Padding repeats a text's last token.
        start = trainee.train.starts[rows]
        at = start[:, None] + np.minimum(np.arange(self.shape.length), length[:, None] - 1)
        for name, values in (("ids", texts.ids), ("positions", texts.positions), ("types", texts.types)):
            to[name].reshape(-1, self.shape.length)[here] = values[at]
        targets = trainee.train.targets.numpy()[rows]
        are_numbers = targets.dtype == np.float32
        to["live"][here] = length
        to["numbers" if are_numbers else "targets"][here] = targets
        to["are_numbers"][here] = are_numbers
        to["mean"][here] = 1 / len(rows)
        to["weight"][here] = trainee.row_weights.numpy()[rows] / np.float32(len(rows))
        to["places"][slot] = trainee.place
        to["temperature"][slot] = trainee.temperature
        to["share"][slot] = 1 - trainee.share_done
        to["penalty"][slot], to["bias_penalty"][slot] = trainee.penalty
        if "noise" in to:
            to["noise"][slot] = trainee.noise.numpy()


def _fields(shape: StepShape, noise: Sequence[int] | None) -> list[Field]:
    fields = [
        *(Field(name, np.int64, (shape.tokens,)) for name in ("ids", "positions", "types")),
        *(Field(name, np.int64, (shape.texts,)) for name in ("live", "targets")),
        Field("are_numbers", np.int32, (shape.texts,)),
        *(Field(name, np.float32, (shape.texts,)) for name in ("numbers", "mean", "weight")),
        Field("places", np.int64, (shape.places,)),
        *(Field(name, np.float32, (shape.places,)) for name in ("temperature", "share", "penalty", "bias_penalty")),
    ]
    return fields if noise is None else [*fields, Field("noise", np.float32, (shape.places, *noise))]
