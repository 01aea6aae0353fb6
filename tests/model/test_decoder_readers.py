"""On a device that works by itself, a slot that a step of generation reads is not filled before the step is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from xpeft_server.model.batches.step_packing import Chunk
from xpeft_server.model.classifier import Classifier
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.lanes import HostLanes, Mark
from xpeft_server.model.slots import SlotFill
from xpeft_server.model.vocabulary_head import VocabularyHead


class NotYet:
    passed = False

    def wait(self) -> None: ...

    def seconds_since(self, earlier: Mark) -> float:
        return 0.0


class SlowLanes(HostLanes):
    """Nothing has passed yet; notes what fills were told to wait for."""

    asynchronous = True

    def __init__(self) -> None:
        self.marks: list[NotYet] = []
        self.fills: list[list[Mark] | None] = []

    def mark(self) -> Mark:
        self.marks.append(NotYet())
        return self.marks[-1]

    @contextmanager
    def filling(self, *, after: Sequence[Mark] | None) -> Iterator[None]:
        self.fills.append(None if after is None else list(after))
        yield


def test_a_fill_waits_for_a_step_that_only_reads_a_prompt(lab: Any) -> None:
    plm = lab.plm("llama")
    embeddings = plm.model.get_input_embeddings().weight
    plm = replace(plm, vocabulary_head=VocabularyHead(torch.nn.Parameter(embeddings.detach(), requires_grad=False)))
    bank = lab.bank(plm)
    classifier = Classifier(plm, bank, slots=3, head_rows=8)
    decoder = Decoder(plm, classifier.buffers, kv_tokens=256)
    nobody = np.empty(0, np.int64)
    profile = replace(lab.profile(bank, 2), head_weight=None, head_bias=None, labels=None)
    classifier.fill([SlotFill(slot, profile, nobody) for slot in range(3)])
    lanes = SlowLanes()
    classifier.buffers.lanes = lanes
    row = decoder.cache.claim(8)
    logits = decoder.step([Chunk(np.arange(5, dtype=np.int32), 0, row, 1, asks=False)]).logits
    assert logits.shape[0] == 0
    step = lanes.marks[-1]
    classifier.fill([SlotFill(1, profile, nobody)], overlap=True)
    classifier.fill([SlotFill(2, profile, nobody)], overlap=True)
    assert lanes.fills == [[step], []]
