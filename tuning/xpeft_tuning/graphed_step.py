"""A training step in few shapes: on a GPU each is a CUDA graph, and the host waits for none of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xpeft_server.model.graphs.graph_set import Captured, GraphSet
from xpeft_server.model.lanes import Lanes

from .packed_step import PackedStep
from .padded_pass import PaddedPass
from .static_inputs import StaticInputs
from .step_shape import Need, StepShape, StepShapes
from .train_state import TrainState
from .trainee import TraineeBatch


class GraphedStep:
    """Trainees sorted by length, as many in a part as `TuningSettings.batch_tokens` allows, padding included.

    A shape is captured when it is first needed. Batches that fit no shape, or whose shape the device has no memory to
    capture, are left to `PackedStep`, which waits for the device.

    Args:
        padding_place: fills parts that have fewer trainees than places; no trainee has it.
    """

    def __init__(self, state: TrainState, lanes: Lanes, *, padding_place: int) -> None:
        self._state = state
        self._lanes = lanes
        self._padding_place = padding_place
        settings = state.settings
        self._shapes = StepShapes(
            places=padding_place,
            rows=settings.batch_rows,
            limit=state.plm.tokenizer.limit,
            tokens=settings.batch_tokens,
        )
        self._graphs = GraphSet[StepShape, StaticInputs](lanes, state.plm.device, "steps of tuning")
        self._too_large: set[StepShape] = set()
        self._losses = torch.zeros(padding_place + 1, device=state.plm.device)
        self._packed = PackedStep(state)
        self._live = self._computed = 0

    @property
    def padding(self) -> float:
        """Share of padding tokens."""
        return 1 - self._live / self._computed if self._computed else 0.0

    def step(self, batches: Sequence[TraineeBatch], losses: Tensor) -> None:
        """One update of each trainee.

        Args: losses: ``[P]``, where each one's mean loss goes.
        """
        parts, left = self._shapes.cut([self._need(batch) for batch in batches])
        packed = [batches[number] for number in left]
        for shape, members in parts:
            chosen = [batches[number] for number in members]
            if self._capture(shape):
                self._replay(shape, chosen)
            else:
                packed += chosen
        losses.copy_(self._losses[: self._padding_place])
        if packed:
            self._packed.step(packed, losses)

    def _replay(self, shape: StepShape, batches: Sequence[TraineeBatch]) -> None:
        inputs, replay = self._graphs[shape]
        inputs.load(batches)
        replay()
        self._computed += shape.tokens
        self._live += sum(int(batch.trainee.train.lengths[batch.rows].sum()) for batch in batches)

    def _capture(self, shape: StepShape) -> bool:
        """Whether there is a graph of this shape, be it a new one."""
        if shape not in self._graphs and shape not in self._too_large:
            self._graphs.capture([shape], self._prepare)
            if shape not in self._graphs:
                self._too_large.add(shape)
        return shape in self._graphs

    def _prepare(self, shape: StepShape) -> Captured[StaticInputs]:
        inputs = StaticInputs(shape, self._state, self._lanes, padding_place=self._padding_place)
        return Captured(inputs, PaddedPass(self._state, inputs, self._losses))

    def _need(self, batch: TraineeBatch) -> Need:
        texts, rows = batch.trainee.train, batch.rows
        length = texts.lengths[rows]
        if self._state.vocabulary is None:
            return Need(len(rows), int(length.max()))
        prompts = texts.targets.numpy()[rows]
        return Need(len(rows), int(length.max()), int((length - prompts).max()))
