"""Tunes one profile and reports on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from xpeft_profiles import Profile, write_profile_file
from xpeft_server.model.errors import ModelError
from xpeft_server.settings import SettingsInvalid
from xpeft_tuning.errors import TuningError
from xpeft_tuning.learnable import learnable_parts
from xpeft_tuning.mask_tuner import tune_profile

from ..epoch_bar import epoch_bar
from ..out_option import kept_elsewhere
from ..screen import fail, say, show_facts
from .destinations import Destinations
from .input import TuningInput
from .names import NamesInvalid, check_profile_name
from .sinks import Sink, SinkFailed, check_bank

if TYPE_CHECKING:
    from xpeft_tuning.dataset import Task
    from xpeft_tuning.evaluation import Score
    from xpeft_tuning.mask_tuner import TunedProfile

_MEASURES: Final[dict[Task, str]] = {
    "classify": "accuracy",
    "regress": "correlation",
    "complete": "a token's loss",
}


def tune_one(given: TuningInput, where: Destinations) -> None:
    """Tune, report, and put the profile where it belongs; what goes wrong ends the command."""
    try:
        if where.profile is not None:
            check_profile_name(where.profile)
        with where.opened(lambda out, _: out, overwrite=where.force) as sinks:
            (dataset,) = given.datasets(None).values()
            if given.settings.shared_head is None:  # whose labels the bank knows
                learnable_parts(dataset, dataset.labels, given.settings)
            plm, bank = given.model()
            check_bank(sinks, bank.fingerprint)
            with epoch_bar() as show:
                tuned = tune_profile(plm, bank, dataset, given.settings, show)
            _report(tuned, dataset.task)
            _deliver(tuned.profile, where, sinks)
    except (NamesInvalid, SinkFailed, ModelError, TuningError, SettingsInvalid) as error:
        fail(str(error))


def _deliver(profile: Profile, where: Destinations, sinks: Sequence[Sink]) -> None:
    """Raises: SinkFailed; then the profile is in an earlier sink, or in a file that the message names."""
    for number, sink in enumerate(sinks):
        try:
            say(sink.put(where.profile or "", profile))
        except SinkFailed as error:
            if number:
                raise
            name = where.out.name if where.out else f"{where.profile}.safetensors"
            kept = kept_elsewhere(name, lambda path: path.write_bytes(write_profile_file(profile)))
            raise SinkFailed(f"{error}; {kept}") from None


def _report(tuned: TunedProfile, task: Task) -> None:
    measured = tuned.held_out or tuned.train
    facts = {
        "rows": f"{tuned.train.rows} tuned on, {tuned.held_out.rows if tuned.held_out else 'none'} held out",
        "epoch kept": str(tuned.epoch),
        f"{_MEASURES[task]} on": "held-out rows" if tuned.held_out else "the rows it was tuned on: none are held out",
    }
    if tuned.majority is not None:
        facts["  always the most frequent label"] = f"{tuned.majority:.3f}"
    if tuned.head_alone is not None:
        facts["  a head alone, without masks"] = _shown(tuned.head_alone, task)
    if tuned.bare is not None:
        facts["  the bare model"] = _shown(tuned.bare, task)
    facts["  this profile"] = _shown(measured, task)
    facts["version"] = tuned.profile.version
    show_facts(facts.items())
    if tuned.head_alone is not None and _rank(measured, task) <= _rank(tuned.head_alone, task):
        say(f"On these rows the masks add no {_MEASURES[task]} to what a head alone has.")
    if tuned.bare is not None and measured.loss >= tuned.bare.loss:
        say("On these rows the profile's loss is not below the bare model's.")
    if tuned.cut:
        say(f"{tuned.cut} texts were longer than the model takes; what was beyond its limit was not read.")


def _shown(score: Score, task: Task) -> str:
    match task:
        case "classify":
            return f"{score.accuracy:.3f}"
        case "regress":
            correlation = "none" if score.correlation is None else f"{score.correlation:.3f}"
            return f"{correlation}, mean squared error {score.loss:.4g}"
        case "complete":
            return f"{score.loss:.4f} nats"


def _rank(score: Score, task: Task) -> float:
    """More is better; answers that never change have no correlation, which is the worst."""
    value = score.accuracy if task == "classify" else score.correlation
    return -1.0 if value is None else value
