"""Steps of generation as CUDA graphs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from xpeft_kernels import Impl, piece_rows

from ..batches.step_packing import StepRows
from ..kv.arena import ArenaRow, KvArena
from ..plm import Plm
from ..recorded import recorded
from ..slots import SlotAdapters, SlotBuffers
from .buckets import steps_up_to
from .graph_set import Captured, GraphFacts, GraphSet
from .placed_step import StaticStep


class GraphedStep:
    """A graph for every size of step (see `steps_up_to`): static inputs in, last hidden states out.

    A step may decode, prefill, or both: the graph is the same.

    Args:
        tokens: of the largest step that has a graph.
        impl: of the operators; tests ask for Triton's, which runs without a GPU in its interpreter.
    """

    def __init__(self, plm: Plm, buffers: SlotBuffers, arena: KvArena, *, tokens: int, impl: Impl = Impl.AUTO) -> None:
        self._plm = plm
        self._buffers = buffers
        self._arena = arena
        self._impl = impl
        self._sizes = steps_up_to(tokens)
        self._graphs = GraphSet[int, StaticStep](buffers.lanes, plm.device, "steps of generation")
        self._memory = torch.zeros(StaticStep.size_of(tokens, arena), dtype=torch.uint8, device=plm.device)
        self._hidden = torch.zeros(tokens, plm.facts.hidden, dtype=plm.dtype, device=plm.device)

    @property
    def facts(self) -> GraphFacts:
        return GraphFacts(len(self._graphs), max(self._graphs, default=0), self._graphs.bytes)

    def capture(self) -> None:
        """A graph for every size that the device has room for."""
        self._graphs.capture(self._sizes[::-1], self._prepared)

    def hidden(self, rows: StepRows[ArenaRow]) -> Tensor | None:
        """``[T, H]``, valid until the next step; None if no graph holds this step."""
        size = next((each for each in self._sizes if each >= rows.ids.size and each in self._graphs), None)
        if size is None:
            return None
        static, repeat = self._graphs[size]
        with recorded("pack"):
            staged = static.stage(rows)
        with recorded("forward"):
            static.load(staged)
            repeat()
        return self._hidden[: rows.ids.size]

    def _prepared(self, tokens: int) -> Captured[StaticStep]:
        plm, buffers = self._plm, self._buffers
        rows = piece_rows(tokens, buffers.form, plm.dtype.itemsize)
        static = StaticStep(tokens, rows, self._arena, self._memory, buffers.lanes, impl=self._impl)
        slots = SlotAdapters(buffers.adapters, static.step.tiles, buffers.form, impl=self._impl)
        into = self._hidden[:tokens]

        def run() -> None:
            into.copy_(plm.forward(static.step, slots))

        # One token of the bare PLM that belongs to no sequence and so writes to no row.
        none = np.zeros(1, np.int64)
        bare = np.array([buffers.bare_slot])
        static.load(static.stage(StepRows(none, none, bare, np.ones(1, np.int64), none[:0], [])))
        return Captured(static, run)
