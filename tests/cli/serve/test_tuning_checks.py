"""What is refused at the door, before a job is accepted."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest

from xpeft_profiles import BankGeometry, ProfileKey
from xpeft_server.api.tuning.wire import TuningSettingsBody
from xpeft_server.cli.serve.tuning_checks import TuningChecks
from xpeft_server.jobs.errors import InvalidTuning
from xpeft_server.jobs.requests import TuningExample, TuningRequest
from xpeft_tuning.settings import TuningSettings

GEOMETRY = BankGeometry(
    "sha256:" + "ab" * 32, blocks=2, adapters=12, hidden=8, width=4, shared_heads={"mood": ("sad", "glad")}
)
# Of the tuning's settings these are the server's to choose.
NOT_ON_THE_WIRE = {"batch_tokens"}


def rows(*labels: str | float, split: str | None = None) -> tuple[TuningExample, ...]:
    return tuple(TuningExample(f"text {number}", label, None, split) for number, label in enumerate(labels))


def check(
    examples: tuple[TuningExample, ...] = rows("a", "b"),
    labels: tuple[str, ...] | None = None,
    geometry: BankGeometry = GEOMETRY,
    completions: bool = False,
    generates: bool = True,
    **settings: Any,
) -> None:
    request = TuningRequest(ProfileKey("acme", "desk"), examples, labels, settings, completions=completions)
    TuningChecks(geometry, generates=generates, most_rows=2000, max_profile_bytes=1 << 14)(request)


def test_the_wire_takes_every_setting_that_is_not_the_servers_with_its_type_and_default() -> None:
    tuning, wire = get_type_hints(TuningSettings), get_type_hints(TuningSettingsBody)
    defaults = {field.name: field.default for field in fields(TuningSettings)}
    assert set(wire) - {"model_config"} == set(tuning) - NOT_ON_THE_WIRE
    for name in set(tuning) - NOT_ON_THE_WIRE:
        assert wire[name] == tuning[name], name
        assert TuningSettingsBody.model_fields[name].default == defaults[name], name


@pytest.mark.parametrize(
    ("examples", "options"),
    [
        (rows("a", "b"), {}),
        (rows("a", "b"), {"labels": ("b", "a")}),
        (rows("a", "b"), {"k": 12}),
        (rows("a", "b"), {"kind": "soft", "description": "für alle", "held_out": 0}),
        (rows("sad", "glad"), {"shared_head": "mood"}),
        (rows("sad", "glad"), {"shared_head": "mood", "own_head": True}),
        (rows(1.0, 2.0), {}),
        (rows(1.0, 2.0, 3.0, 4.0, 5.0), {"labels": ("stars",), "stop_on": "loss", "held_out": 0}),
        (rows("a", "b", split="train") + rows("a", split="test"), {}),
        (rows("a", "b", split="train") + rows("a", split="dev"), {"stop_on": "accuracy"}),
        (rows("x"), {"completions": True}),
        (rows("x", split="train") + rows("y", split="dev"), {"completions": True, "stop_on": "loss"}),
    ],
)
def test_what_can_be_tuned_passes(examples: tuple[TuningExample, ...], options: dict[str, Any]) -> None:
    check(**{"examples": examples, **options})


@pytest.mark.parametrize(
    ("examples", "options", "param", "message"),
    [
        (rows("a", "b"), {"k": 13}, "settings.k", "k is 13, the bank has N=12 adapters to choose from"),
        (rows("a", "b"), {"shared_head": "x"}, "settings.shared_head", "'x', the bank's heads are: mood"),
        (rows("a", "b"), {"epochs": 0}, "settings", "epochs is 0"),
        (rows("a", "b"), {"description": "x" * 1025}, "settings", "1025 bytes"),
        (rows("a", "b"), {"description": "\ud800"}, "settings", "not valid Unicode"),
        (rows("sad", "mad"), {"shared_head": "mood"}, "labels", "'mad' is not one of shared head 'mood'"),
        (rows("a", "a", "a"), {}, "examples", r"the train rows have 1 label \('a'\)"),
        (rows("sad"), {"shared_head": "mood"}, "examples", "the train rows have 1 label"),
        (rows("a", "b"), {"labels": ("a", "b", "c")}, "examples", "'c' has no train row"),
        (rows(1.0, 1.0), {}, "examples", "the train rows have 1 label"),
        (rows(1.0, 2.0), {"stop_on": "accuracy"}, "settings.stop_on", "the task is to regress: it must be loss"),
        (
            rows(1.0, 2.0),
            {"class_weights": "balanced"},
            "settings.class_weights",
            "the task is to regress: it must be none",
        ),
        (rows("a", "b", split="test"), {}, "examples", "there are no train rows"),
        (rows("a", "b", split="train") + rows("c", split="test"), {}, "examples", "'c' has no train row"),
        (rows("a", "b"), {"stop_on": "loss"}, "examples", "rows enough to choose an epoch"),
        (rows(*(f"label {n}" for n in range(1500))), {}, "labels", "the profile would be refused"),
        (rows("a", "b" * 1025), {}, "examples[1].label", "it must be of at most 1024 bytes"),
        (rows("a", ""), {}, "examples[1].label", "is '', it must be a string"),
        (rows("x", ""), {"completions": True}, "examples[1].completion", "is '', it must be a string"),
        (rows("x"), {"completions": True, "generates": False}, "examples", "has no language-model head"),
        (rows("x"), {"completions": True, "labels": ("x",)}, "labels", "the rows have completions"),
        (rows("x"), {"completions": True, "shared_head": "mood"}, "settings.shared_head", "completions, not labels"),
        (
            rows("x"),
            {"completions": True, "stop_on": "accuracy"},
            "settings.stop_on",
            "the task is to complete",
        ),
        (rows("x", split="test"), {"completions": True}, "examples", "there are no train rows"),
    ],
)
def test_what_would_die_of_its_input_is_refused_by_field_and_value(
    examples: tuple[TuningExample, ...], options: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(InvalidTuning, match=message) as refused:
        check(examples, **options)
    assert refused.value.param == param


def test_a_bank_without_layer_norm_is_tuned_over_too() -> None:
    check(geometry=BankGeometry("sha256:" + "ab" * 32, 2, 12, 8, 4, layer_norm=False))
