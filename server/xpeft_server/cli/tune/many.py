"""Tunes a profile for each value of a field, in a run that can be resumed."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
import typer

from xpeft_server.model.errors import ModelError
from xpeft_server.settings import SettingsInvalid
from xpeft_tuning.dataset import Task
from xpeft_tuning.errors import TuningError
from xpeft_tuning.journal import Journal, JournalFailed, RefusedEntry, TunedEntry
from xpeft_tuning.mask_tuner import Refused, Tuned, TuningTask, tune_profiles
from xpeft_tuning.recipe import Recipe
from xpeft_tuning.settings import TuningSettings

from ..screen import fail, stop
from .delivery import Delivery
from .destinations import Destinations
from .input import Model, TuningInput
from .names import NamesInvalid, profile_names
from .plan import Candidate, Plan, plan_of
from .progress import BarOfMany
from .sinks import SinkFailed, SinkRefused, check_bank
from .summary import show_summary

_PLACES: Final = {"cpu": 16, "cuda": 256}


@dataclass(frozen=True, kw_only=True)
class ManyOptions:
    """How many profiles are told apart, remembered and tuned.

    Args:
        by: field of the rows.
        journal: file.
        places: profiles that are tuned together; None: what suits the device.
    """

    by: str
    journal: Path
    places: int | None


class Run:
    """From a plan to entries: what comes out of the tuning is delivered."""

    def __init__(self, plan: Plan, delivery: Delivery, task: Task) -> None:
        self.plan = plan
        self.task = task
        self.delivery = delivery
        self._candidates = {each.name: each for each in plan.to_tune}
        self._began: dict[str, float] = {}

    def tasks(self) -> Iterator[TuningTask]:
        for each in self.plan.to_tune:
            self._began[each.name] = time.monotonic()
            yield TuningTask(each.name, each.dataset)

    def keep(self, outcome: Tuned | Refused) -> None:
        """Raises: SinkFailed, JournalFailed, of this or an earlier one."""
        name, value, _, digest = self._candidates[outcome.name]
        if isinstance(outcome, Refused):
            self.delivery.put(RefusedEntry(name=name, value=value, digest=digest, refused=str(outcome.reason)), None)
            return
        result = outcome.result
        entry = TunedEntry(
            name=name,
            value=value,
            digest=digest,
            version=result.profile.version,
            train=result.train,
            held_out=result.held_out,
            majority=result.majority,
            epoch=result.epoch,
            cut=result.cut,
            bare=result.bare,
            seconds=round(time.monotonic() - self._began[name], 3),
        )
        self.delivery.put(entry, result.profile)


def tune_many(given: TuningInput, where: Destinations, options: ManyOptions) -> None:
    """Tune what no earlier run has done; what goes wrong, or is refused, ends the command with exit code 1."""
    try:
        datasets = given.datasets(options.by)
        names = profile_names(datasets, field=options.by, template=where.profile or f"{{{options.by}}}")
        _make_folder(where, options.journal, names.values())
        with where.opened(_file_of, overwrite=True) as sinks:
            model = given.model()
            check_bank(sinks, model.bank.fingerprint)
            given.settings.check_fits(model.bank.adapters, model.bank.heads)
            recipe = Recipe(model.plm.facts.fingerprint, model.bank.fingerprint, given.dtype, given.settings)
            candidates = [
                Candidate(names[value], value, dataset, recipe.digest(dataset)) for value, dataset in datasets.items()
            ]
            with Journal(options.journal) as journal:
                plan = plan_of(candidates, {} if where.force else journal.entries, sinks)
                _run(Run(plan, Delivery(sinks, journal), candidates[0].dataset.task), model, given, options)
    except (JournalFailed, NamesInvalid, SinkFailed, ModelError, TuningError, SettingsInvalid) as error:
        fail(str(error))


def _file_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def _make_folder(where: Destinations, journal: Path, names: Iterable[str]) -> None:
    """Raises: SinkFailed if it cannot be had, or has files of these names that no earlier run tells of."""
    if where.out is None:
        return
    try:
        where.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SinkFailed(f"{where.out} cannot be made: {error.strerror or error}") from None
    there = [file for name in names if (file := _file_of(where.out, name)).exists()]
    if there and not where.force and not journal.exists():
        raise SinkFailed(
            f"{there[0]} is there already, with {len(there) - 1} more of the profiles, and {journal} is not:"
            " give another --out, or --force to replace them"
        )


def _run(run: Run, model: Model, given: TuningInput, options: ManyOptions) -> None:
    _announce(run.plan)
    began = time.monotonic()
    try:
        with closing(run.delivery):
            _tune(run, model, given.settings, options.places or _PLACES[model.plm.device.type])
            run.delivery.finish()
    except KeyboardInterrupt:
        stop(_how_to_go_on(run, options))
    except SinkRefused as error:
        fail(f"{error}; {_how_far(run, options)}")
    except (SinkFailed, JournalFailed) as error:
        fail(f"{error}; {_how_to_go_on(run, options)}")
    except torch.OutOfMemoryError as error:
        fail(f"{error}; with a smaller --batch-profiles it may fit; {_how_to_go_on(run, options)}")
    seconds = time.monotonic() - began
    if show_summary(run.plan, run.delivery.entries, task=run.task, seconds=seconds, journal=options.journal):
        raise typer.Exit(1)


def _tune(run: Run, model: Model, settings: TuningSettings, places: int) -> None:
    """Raises: SinkFailed, JournalFailed, SettingsInvalid."""
    to_tune = run.plan.to_tune
    if not to_tune:
        return
    bar = BarOfMany({each.name: len(each.dataset.examples) for each in to_tune})
    outcomes = tune_profiles(
        model.plm,
        model.bank,
        run.tasks(),
        settings,
        places=min(places, len(to_tune)),
        classes=max(len(each.dataset.labels) for each in to_tune),
        completes=run.task == "complete",
        progress=bar.step,
    )
    with bar.shown():
        for outcome in outcomes:
            run.keep(outcome)
            bar.end(outcome.name)


def _announce(plan: Plan) -> None:
    """What the journal changes about this run, on stderr."""
    counts = {
        "are done and skipped": len(plan.skipped),
        "are tuned again, as what they depend on has changed": plan.changed,
        "are tuned again, as they are not where they were put": plan.lost,
    }
    for what, count in counts.items():
        if count:
            typer.echo(f"{count} of the journal's profiles {what}", err=True)


def _how_to_go_on(run: Run, options: ManyOptions) -> str:
    return f"{_how_far(run, options)}, the same command goes on from there"


def _how_far(run: Run, options: ManyOptions) -> str:
    plan = run.plan
    before = len(plan.skipped) + len(plan.refused)
    done, every = before + len(run.delivery.entries), before + len(plan.to_tune)
    return f"{done} of {every} profiles are done and in {options.journal}"
