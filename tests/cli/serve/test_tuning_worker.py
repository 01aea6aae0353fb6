"""The worker's side: what it answers to a job, whatever the job is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xpeft_profiles import read_profile_file
from xpeft_server.cli.serve.tuning_worker import Worker
from xpeft_server.cli.serve.worker_frames import Frame, read_frame

BANK = "random:N=12,R=8,seed=1,std=0.3"
EXAMPLES = [
    {"text": f"w{number} w{number + 1}", "label": "low" if number < 50 else "high", "text_pair": None, "split": None}
    for number in range(0, 98, 7)
]

Ask = Callable[..., tuple[bool, list[Frame]]]


@pytest.fixture
def ask(tiny_bert: Path) -> Ask:
    """Whether a worker goes on after a job, and what it said."""

    def run(
        *,
        examples: list[dict[str, Any]] = EXAMPLES,
        labels: list[str] | None = None,
        completions: bool = False,
        plm: str = "",
        **settings: Any,
    ) -> tuple[bool, list[Frame]]:
        answers = io.BytesIO()
        setup = {"plm": plm or str(tiny_bert), "bank": BANK, "device": "cpu", "share": 1.0}
        named = [] if completions else labels or ["low", "high"]
        job = {"examples": examples, "labels": named, "completions": completions, "settings": settings}
        goes_on = Worker(setup, answers).tune(job)
        answers.seek(0)
        return goes_on, list(iter(lambda: read_frame(answers), None))

    return run


def test_a_job_is_answered_with_progress_a_report_and_a_profile(ask: Ask) -> None:
    goes_on, (*told, last) = ask(epochs=2, batch_rows=4, held_out=0.25, k=3)
    assert goes_on
    assert told[0].message["progress"].keys() == {"epoch", "epochs", "step", "steps", "loss"}
    report = last.message["report"]
    assert report.keys() == {"rows", "accuracy", "correlation", "loss", "epoch", "cut"}
    assert sum(report["rows"].values()) == len(EXAMPLES)
    assert report["accuracy"].keys() == {"train", "held_out", "head_alone", "majority"}
    assert report["correlation"] is None
    profile = read_profile_file(last.attached, max_bytes=1 << 20)
    assert (profile.labels, profile.k) == (("low", "high"), 3)


def test_numbers_have_a_correlation_and_no_accuracy(ask: Ask) -> None:
    rows = [{**row, "label": float(number)} for number, row in enumerate(EXAMPLES)]
    goes_on, (*_, last) = ask(examples=rows, labels=["stars"], epochs=1)
    report = last.message["report"]
    assert goes_on
    assert report["accuracy"] is None
    assert report["correlation"]["majority"] is None
    assert -1 <= report["correlation"]["train"] <= 1
    assert report["loss"]["train"] >= 0


def test_completions_have_a_loss_and_nothing_else(ask: Ask, tiny_llama: Path) -> None:
    goes_on, (*_, last) = ask(examples=EXAMPLES, completions=True, plm=str(tiny_llama), epochs=1)
    report = last.message["report"]
    assert goes_on
    assert (report["accuracy"], report["correlation"]) == (None, None)
    assert report["loss"]["train"] > 0
    profile = read_profile_file(last.attached, max_bytes=1 << 20)
    assert (profile.labels, profile.head_weight) == (None, None)


@pytest.mark.parametrize(
    ("options", "code", "param", "word"),
    [
        ({"examples": EXAMPLES[:2]}, "invalid_examples", "examples", "label"),
        ({"k": 13}, "invalid_settings", "settings", "N=12"),
        ({"completions": True}, "invalid_examples", "examples", "no language-model head"),
        ({"plm": "/no/such/model"}, "tuning_failed", None, "/no/such/model"),
    ],
)
def test_what_cannot_be_tuned_is_told_and_the_worker_goes_on(
    ask: Ask, options: dict[str, Any], code: str, param: str | None, word: str
) -> None:
    goes_on, (answer,) = ask(**options)
    failure = answer.message["failure"]
    assert goes_on
    assert answer.message["last"] is False
    assert (failure["code"], failure["param"]) == (code, param)
    assert word in failure["message"]


def test_after_what_nobody_expected_the_worker_ends(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    goes_on, (answer,) = ask(examples=[{"words": "w1"}])
    assert not goes_on
    assert answer.message["last"] is True
    assert answer.message["failure"]["type"] == "server_error"
    assert "TypeError" in answer.message["failure"]["message"]
    assert "Traceback" in caplog.text
