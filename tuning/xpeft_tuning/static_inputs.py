"""Static inputs of a captured step: tensors at addresses that never change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xpeft_server.model.batches.padded_batch import PaddedBatch, PaddedSequences
from xpeft_server.model.graphs.static_fields import Field, StaticFields
from xpeft_server.model.lanes import Lanes

from .step_shape import StepShape
from .train_state import TrainState
from .trainee import TraineeBatch


class StaticInputs:
    """One part of a step: P' places with some rows each; padding places and rows weigh 0.

    Args:
        padding_place: see `GraphedStep`.
    Attributes:
        device: the arrays; ``places`` int64 and ``temperature``, ``share`` (of the peak learning rate), ``penalty``,
            ``bias_penalty`` float32 are ``[P']``; ``live`` (tokens), ``targets`` (labels, or tokens of the prompt)
            int64, ``numbers`` (targets that are numbers), ``mean`` (1 / rows) and ``weight`` (that, times the row's
            weight) float32, ``are_numbers`` int32 are ``[P' · rows]``; ``noise``, where there is any, is ``[P', 2, L,
            N]``.
    """

    def __init__(self, shape: StepShape, state: TrainState, lanes: Lanes, *, padding_place: int) -> None:
        self.shape = shape
        self._padding_place = padding_place
        fields = _fields(shape, state.stack.learned.logits.shape[1:] if state.settings.gumbel else None)
        memory = torch.zeros(StaticFields.size_of(fields), dtype=torch.uint8, device=state.plm.device)
        self._fields = StaticFields(fields, memory, lanes)
        self.device = self._fields.device
        self.load([])

    def batch(self) -> PaddedBatch:
        """For one forward."""
        ids, positions, types = (self.device[name][None] for name in ("ids", "positions", "types"))
        return PaddedBatch(ids, positions, types, PaddedSequences(self.device["live"], self.shape.length))

    def load(self, batches: Sequence[TraineeBatch]) -> None:
        """Copy them to the device without waiting for it. Args: batches: at most as many as the shape has places."""
        staged = self._fields.stage()
        for name, values in staged.fields.items():
            values.fill({"places": self._padding_place, "temperature": 1}.get(name, 0))
        for slot, batch in enumerate(batches):
            self._write(staged.fields, slot, batch)
        self._fields.load(staged)

    def _write(self, to: Mapping[str, NDArray[Any]], slot: int, batch: TraineeBatch) -> None:
        trainee, rows = batch
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
