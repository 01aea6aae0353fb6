"""A step of few shapes: on a GPU each is a CUDA graph, and the host waits for none of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xpeft_server.model.graphs.graph_set import Captured, GraphSet
from xpeft_server.model.lanes import Lanes

from .packed_step import PackedStep
from .padded_pass import PaddedPass
from .static_turns import StaticTurns
from .step_parts import StepParts
from .step_shape import Need, StepShape, StepShapes
from .trainee import Turn


class GraphedStep:
    """Trainees by length of their texts, as many together as `TuningSettings.batch_tokens` allows, padding included.

    A shape is captured when it is first needed. Whom no shape holds, or the device has no room to capture, goes by
    `PackedStep`, which waits.

    Args:
        nobody: the place that stands where a part has fewer trainees than places; no trainee has it.
    """

    def __init__(self, on: StepParts, lanes: Lanes, *, nobody: int) -> None:
        self._on = on
        self._lanes = lanes
        self._nobody = nobody
        settings = on.settings
        self._shapes = StepShapes(
            places=nobody, rows=settings.batch_rows, limit=on.plm.tokenizer.limit, tokens=settings.batch_tokens
        )
        self._graphs = GraphSet[StepShape, StaticTurns](lanes, on.plm.device, "steps of tuning")
        self._without: set[StepShape] = set()
        self._losses = torch.zeros(nobody + 1, device=on.plm.device)
        self._packed = PackedStep(on)
        self._live = self._computed = 0

    @property
    def padding(self) -> float:
        """Share of padding tokens."""
        return 1 - self._live / self._computed if self._computed else 0.0

    def step(self, turns: Sequence[Turn], losses: Tensor) -> None:
        """One update of each trainee.

        Args: losses: ``[P]``, where each one's mean loss goes.
        """
        parts, left = self._shapes.cut([self._need(turn) for turn in turns])
        waiting = [turns[number] for number in left]
        for shape, members in parts:
            chosen = [turns[number] for number in members]
            if self._has(shape):
                self._launch(shape, chosen)
            else:
                waiting += chosen
        losses.copy_(self._losses[: self._nobody])
        if waiting:
            self._packed.step(waiting, losses)

    def _launch(self, shape: StepShape, turns: Sequence[Turn]) -> None:
        static, repeat = self._graphs[shape]
        static.load(turns)
        repeat()
        self._computed += shape.tokens
        self._live += sum(int(turn.trainee.train.lengths[turn.rows].sum()) for turn in turns)

    def _has(self, shape: StepShape) -> bool:
        if shape not in self._graphs and shape not in self._without:
            self._graphs.capture([shape], self._prepared)
            if shape not in self._graphs:
                self._without.add(shape)
        return shape in self._graphs

    def _prepared(self, shape: StepShape) -> Captured[StaticTurns]:
        static = StaticTurns(shape, self._on, self._lanes, nobody=self._nobody)
        return Captured(static, PaddedPass(self._on, static, self._losses))

    def _need(self, turn: Turn) -> Need:
        texts, rows = turn.trainee.train, turn.rows
        length = texts.lengths[rows]
        if self._on.vocabulary is None:
            return Need(len(rows), int(length.max()))
        prompts = texts.targets.numpy()[rows]
        return Need(len(rows), int(length.max()), int((length - prompts).max()))
