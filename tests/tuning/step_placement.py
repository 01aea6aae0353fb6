"""Steps of tuning on a GPU that is not there: what the model's placement.py pretends, for the placed step.

Prints what was stepped, as JSON lines, and how steps with a fault failed: one leaves an array on the host, one wants to
know a loss. Run: python step_placement.py
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

sys.path.append(str(Path(__file__).parents[1] / "model"))

import placement

from xpeft_benchmarks.shapes import random_plm
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.random_bank import random_bank
from xpeft_server.model.banks.spec import RandomBankSpec
from xpeft_server.model.graphs.static_fields import StaticFields
from xpeft_server.model.loading.families import FAMILIES
from xpeft_server.model.plm import Plm
from xpeft_server.model.tokens.tokenizing import TokenizedText
from xpeft_tuning import bank_parts
from xpeft_tuning.graphed_step import GraphedStep
from xpeft_tuning.labelled_texts import LabelledTexts
from xpeft_tuning.settings import TuningSettings
from xpeft_tuning.static_inputs import StaticInputs
from xpeft_tuning.train_state import TrainState
from xpeft_tuning.trainee import HeadPenalty, Trainee, TraineeBatch

PLACES, ROWS = 3, 6
SETTINGS = (
    TuningSettings(batch_rows=4, gumbel=0.5),
    TuningSettings(batch_rows=4, kind="soft", lr_norm=0.0),
)
# Which settings a step has does not depend on the family: one encoder and one decoder have all of them.
FAMILIES_OF_ALL_SETTINGS = FAMILIES if os.environ.get("NIGHTLY") == "1" else ("bert", "gpt2")


def texts(lengths: list[int], targets: torch.Tensor) -> LabelledTexts:
    made = LabelledTexts.__new__(LabelledTexts)
    made.texts = [TokenizedText(np.arange(each, dtype=np.int32), np.zeros(each, np.int32)) for each in lengths]
    made.targets, made.cut, made.first_position = targets, 0, 0
    return made


def trainee_batches(settings: TuningSettings, completes: bool, bank: Bank) -> list[TraineeBatch]:
    """Of a trainee with labels and one with numbers, or of completions; their texts of several lengths."""
    found = []
    for place in range(PLACES - 1):
        lengths = [7 * (place + 1) + row for row in range(ROWS)]
        numbers = place == 1 and not completes
        train = texts(lengths, torch.ones(ROWS, dtype=torch.float32 if numbers else torch.int64))
        none, labels = texts([], train.targets[:0]), () if completes else ("a", "b")[: 2 - numbers]
        trainee = Trainee(
            name=str(place),
            place=place,
            labels=labels,
            settings=settings,
            train=train,
            dev=none,
            held_out=none,
            row_weights=torch.ones(ROWS),
            penalty=HeadPenalty(0.1, 0.03),
        )
        trainee.draw_noise((2, bank.blocks, bank.adapters))
        found.append(TraineeBatch(trainee, np.arange(4)))
    return found


class Ready(NamedTuple):
    family: str
    plm: Plm
    bank: Bank
    settings: TuningSettings
    batches: list[TraineeBatch]
    completes: bool


def ready_to_step(family: str, settings: TuningSettings, completes: bool) -> Ready:
    config = {"model_type": family, **placement.CONFIGS[family]}
    plm = random_plm(config, device="cpu", dtype=torch.bfloat16)
    bank = random_bank(RandomBankSpec.parse("random:N=4,R=8,seed=0,std=0.1"), plm=plm.facts)
    return Ready(family, plm, bank, settings, trainee_batches(settings, completes, bank), completes)


def step(ready: Ready, *, asking: bool = False) -> dict[str, object]:
    _, plm, bank, settings, given, completes = ready
    state = TrainState.of(placement.moved(plm), bank, settings, places=PLACES + 1, classes=2, completes=completes)
    placed = GraphedStep(state, placement.GpuLanes(), padding_place=PLACES)
    losses = torch.empty(PLACES, device=placement.GPU)
    placed.step(given, losses)
    if asking:
        float(losses.sum())
    return {"graphs": len(placed._graphs), "padding": placed.padding, "values": list(placement.made(losses).shape)}


def unfaked(run: Callable[..., Any]) -> Callable[..., Any]:
    def plainly(*given: Any) -> Any:
        with unset_fake_temporarily():
            return run(*given)

    return plainly


def pretend() -> None:
    placement.pretend()
    bank_parts.bank_rows = lambda bank, *, device, dtype: torch.empty(  # type: ignore[attr-defined]
        bank.blocks, bank.adapters, bank_parts.adapter_form(bank).bank_row, device=device, dtype=dtype
    )
    # What the host lays out is real.
    GraphedStep._need = unfaked(GraphedStep._need)  # type: ignore[method-assign]
    StaticInputs._write = unfaked(StaticInputs._write)  # type: ignore[method-assign]


def leave_astray() -> None:
    made = StaticFields.__init__

    def astray(fields: StaticFields, *given: object) -> None:
        made(fields, *given)  # type: ignore[arg-type]
        fields.device = {**fields.device, "live": fields.device["live"].to("cpu")}

    StaticFields.__init__ = astray  # type: ignore[method-assign]


def failure(ready: Ready, *, asking: bool = False) -> str | None:
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            step(ready, asking=asking)
    except Exception:
        return traceback.format_exc()
    return None


def main() -> None:
    ready = [
        ready_to_step(family, settings, completes)
        for family in placement.CONFIGS
        for settings in SETTINGS[: None if family in FAMILIES_OF_ALL_SETTINGS else 1]
        for completes in ((False, True) if FAMILIES[family].decoder else (False,))
    ]
    asks, strays = (ready_to_step("bert", SETTINGS[0], completes=False) for _ in range(2))
    pretend()
    for each in ready:
        with FakeTensorMode(allow_non_fake_inputs=True):
            found = step(each)
        case = {"family": each.family, "kind": each.settings.kind, "completes": each.completes}
        sys.stdout.write(json.dumps(case | found) + "\n")
    asking = failure(asks, asking=True)
    leave_astray()
    astray = failure(strays)
    sys.stdout.write(json.dumps({"asking": asking, "astray": astray}) + "\n")


if __name__ == "__main__":
    main()
