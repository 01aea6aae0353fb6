"""``xpeft bench tune``: profiles that are tuned together, a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Annotated

import typer

from ..screen import fail
from .options import (
    RANDOM_BANK,
    BankSource,
    Data,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Plm,
    Rounds,
    Seed,
)
from .report import chosen, failures_told, run, step

if TYPE_CHECKING:
    from xpeft_benchmarks.tune import Row, TunePlan
    from xpeft_tuning.settings import TuningSettings

    from ..tune.input import Model

Together = Annotated[int, typer.Option("--profiles", min=1, help="Number of profiles tuned together.")]
Rows = Annotated[int, typer.Option(min=4, help="Train rows per profile.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over them.")]
BatchRows = Annotated[int, typer.Option(min=1, help="Rows in one step of a profile.")]
StepTokens = Annotated[int, typer.Option("--batch-tokens", min=1, help="Maximum tokens on the device at once.")]


def tune(
    plm: Plm = "minilm",
    bank: BankSource = RANDOM_BANK,
    dtype: DtypeOption = Dtype.FLOAT32,
    device: DeviceOption = Device.AUTO,
    profiles: Together = 32,
    rows: Rows = 60,
    epochs: Epochs = 15,
    batch_rows: BatchRows = 16,
    batch_tokens: StepTokens = 4096,
    rounds: Rounds = 3,
    data: Data = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Measure tuning many profiles together, by packed steps and by placed ones, which on a GPU are CUDA graphs.

    Profiles have hard masks and a head of their own. Measured from texts to profiles, without scoring and storing.
    Graphs captured at first use are not counted.

    Example: xpeft bench tune --device cuda --profiles 256 --batch-tokens 16384 --json tune.jsonl
    """
    from xpeft_benchmarks.tune import TunePlan, run_tune
    from xpeft_tuning.errors import TuningError

    with failures_told():
        device_name, dtype_name = chosen(device, dtype)
        plan = TunePlan(
            plm=plm,
            bank=bank,
            device=device_name,
            dtype=dtype_name,
            profiles=profiles,
            rows=rows,
            epochs=epochs,
            batch_rows=batch_rows,
            batch_tokens=batch_tokens,
            rounds=rounds,
            seed=seed,
        )
        try:
            make = partial(_Together, plan, cache(lambda: _model(plan)))
            run("tune", plan.settings(), lambda pool: run_tune(plan, pool, make, on_step=step), data, json)
        except TuningError as error:
            fail(str(error))


class _Together:
    """A cohort as the benchmark drives it. Args: model: loads it the first time."""

    def __init__(self, plan: TunePlan, model: Callable[[], Model], placed: bool) -> None:
        from xpeft_benchmarks.tune import LABELS
        from xpeft_tuning.cohort import Cohort

        self._plm, bank = model()
        self._settings = _settings(plan)
        self._labels = LABELS
        self._cohort = Cohort(self._plm, bank, self._settings, places=plan.profiles, classes=len(LABELS), placed=placed)

    @property
    def padding(self) -> float:
        return self._cohort.padding

    def begin(self, rows: Sequence[Sequence[Row]]) -> None:
        from xpeft_tuning.dataset import Dataset, Example
        from xpeft_tuning.trainee import enrol

        datasets = [Dataset(tuple(Example(*row) for row in each), self._labels) for each in rows]
        self._cohort.admit([enrol(self._plm, "", each, self._labels, self._settings) for each in datasets])

    def step(self) -> bool:
        self._cohort.step()
        return bool(self._cohort.trainees)


def _model(plan: TunePlan) -> Model:
    import torch

    from xpeft_server.model.banks.source import open_bank
    from xpeft_server.model.plm import load_plm

    from ..tune.input import Model

    plm = load_plm(plan.plm, device=torch.device(plan.device), dtype=getattr(torch, plan.dtype))
    return Model(plm, open_bank(plan.bank, plm.facts))


def _settings(plan: TunePlan) -> TuningSettings:
    from xpeft_tuning.settings import TuningSettings

    return TuningSettings(
        epochs=plan.epochs,
        batch_rows=plan.batch_rows,
        batch_tokens=plan.batch_tokens,
        held_out=0.0,
        seed=plan.seed,
    )
