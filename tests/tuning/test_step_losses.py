"""Steps that nobody asks for their losses wait for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.plm import Plm
from xpeft_tuning import mask_tuner
from xpeft_tuning.cohort import Cohort
from xpeft_tuning.dataset import Dataset
from xpeft_tuning.mask_tuner import Tuned, TuningProgress, TuningTask, tune_profiles
from xpeft_tuning.profile_stack import ProfileStack
from xpeft_tuning.settings import TuningSettings
from xpeft_tuning.step_losses import StepLosses
from xpeft_tuning.trainee import enrol

MakeDataset = Callable[..., Dataset]
QUICK: dict[str, Any] = {"epochs": 3, "batch_rows": 4, "head_penalty": 1.0, "held_out": 0.0}


class Watch(TorchDispatchMode):
    """Notes operators whose caller waits for a value of a device."""

    def __init__(self, noted: list[str]) -> None:
        super().__init__()
        self._noted = noted

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        by_booleans = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal") or by_booleans:
            self._noted.append(name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("placed", "every"), [(True, []), (False, ["fit_float16"])], ids=["placed", "packed"])
def test_only_epochs_that_are_looked_at_wait_for_the_device(
    plm: Plm, bank: Bank, make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, placed: bool, every: list[str]
) -> None:
    """The first one and the last; at no other step is anything asked for, also not for those that progress is told."""
    noted: list[str] = []

    def note(name: str) -> Callable[..., Any]:
        asked = getattr(ProfileStack, name)

        def run(*given: Any) -> Any:
            noted.append(name)
            return asked(*given)

        return run

    for name in ("fit_float16", "profile"):
        monkeypatch.setattr(ProfileStack, name, note(name))
    monkeypatch.setattr(StepLosses, "read", property(lambda _: noted.append("losses")))
    chosen, dataset = TuningSettings(**QUICK), make_dataset(12, ("a", "b"))
    cohort = Cohort(plm, bank, chosen, places=1, classes=2, placed=placed)
    cohort.admit([enrol(plm, "ann", dataset, dataset.labels, chosen)])
    steps = []
    while cohort.trainees:
        (running,) = cohort.trainees
        noted.clear()
        with Watch(noted):
            cohort.step()
            mask_tuner._progress(running)
        steps.append([each for each in noted if running.ends_epoch or each != "fit_float16"])
    looked_at = [*every, "profile"]
    assert steps == [[], [], looked_at, [], [], every, [], [], looked_at]


def test_the_loss_that_progress_tells_is_that_of_the_step_however_late_it_is_asked_for(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    chosen = TuningSettings(**QUICK)
    tasks = [TuningTask(str(rows), make_dataset(rows, seed=rows)) for rows in (19, 9, 14, 12)]
    told = []
    for late in (False, True):
        seen: list[TuningProgress] = []
        losses: list[float] = []

        def tell(progress: TuningProgress, seen: Any = seen, losses: Any = losses) -> None:
            seen.append(progress)
            losses.append(progress.loss)

        outcomes = tune_profiles(
            plm, bank, tasks, chosen, places=3, classes=3, progress=seen.append if late else tell, placed=True
        )
        assert all(isinstance(each, Tuned) for each in outcomes)
        told.append([each.loss for each in seen] if late else losses)
    assert told[0] == told[1]
    assert len(told[0]) == 3 * (5 + 3 + 4 + 3)
