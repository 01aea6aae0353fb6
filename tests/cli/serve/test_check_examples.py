from __future__ import annotations

import math

import pytest

from xpeft_profiles import ProfileKey
from xpeft_server.cli.serve.tuning_checks import check_examples
from xpeft_server.jobs.errors import InvalidTuning, TooManyRows
from xpeft_server.jobs.requests import TuningExample, TuningRequest

GOOD = (TuningExample("a", "x"), TuningExample("b", "y", "pair"))


def check(examples: tuple[TuningExample, ...], labels: tuple[str, ...] | None = None, most: int = 10) -> None:
    check_examples(TuningRequest(ProfileKey("acme", "desk"), examples, labels, {}), most)


@pytest.mark.parametrize(
    ("examples", "labels"),
    [
        (GOOD, None),
        (GOOD, ("y", "x", "z")),
        (tuple(row._replace(split="train") for row in GOOD), None),
        ((TuningExample("a", 1.0), TuningExample("b", -65504.0)), ("stars",)),
        (GOOD * 5, None),
    ],
)
def test_examples_in_order_pass(examples: tuple[TuningExample, ...], labels: tuple[str, ...] | None) -> None:
    check(examples, labels)


@pytest.mark.parametrize(
    ("examples", "labels", "param", "message"),
    [
        ((), None, "examples", "examples are empty"),
        ((*GOOD, TuningExample("", "x")), None, "examples[2].text", "is '', it must be a string"),
        ((*GOOD, TuningExample("c", "")), None, "examples[2].label", "is '', it must be a string"),
        (
            (*GOOD, TuningExample("c", "x", "")),
            None,
            "examples[2].text_pair",
            "is '', it must be a string",
        ),
        ((*GOOD, TuningExample("c", "x", None, "dev")), None, "examples[2].split", "is 'dev'; either every"),
        ((*GOOD, TuningExample("c", 2.0)), None, "examples[2].label", r"is 2\.0; either all labels are numbers"),
        ((TuningExample("a", 65505.0),), None, "examples[0].label", r"is 65505\.0"),
        ((TuningExample("a", math.nan),), None, "examples[0].label", "is nan"),
        ((TuningExample("a", 1.0),), ("a", "b"), "labels", "2 labels, but the rows' are numbers"),
        (GOOD, (), "labels", "none of them may be empty"),
        (GOOD, ("x", ""), "labels", "none of them may be empty"),
        (GOOD, ("x", "y", "x"), "labels", "'x' 2 times"),
        (GOOD, ("x",), "examples[1].label", "'y', it must be one of x"),
    ],
)
def test_what_is_not_in_order_is_refused_by_field_and_value(
    examples: tuple[TuningExample, ...], labels: tuple[str, ...] | None, param: str, message: str
) -> None:
    with pytest.raises(InvalidTuning, match=message) as refused:
        check(examples, labels)
    assert refused.value.param == param


def test_more_rows_than_a_job_may_have_are_refused() -> None:
    with pytest.raises(TooManyRows, match="4 examples, more than the 3"):
        check(GOOD * 2, most=3)
