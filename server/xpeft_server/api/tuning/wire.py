"""What travels to and from tuning."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag

from xpeft_profiles import JobRecord, JobStatus
from xpeft_profiles.texts import DESCRIPTION_BYTES

from ..bodies.union_tags import COMPLETED, LABELLED
from ..bodies.whole_numbers import WHOLE
from ..wire import EXAMPLE_VERSION, MOST_ITEMS, ErrorBody, LabelBody, Text, WireBody

# No list of examples is read further than the largest --max-tuning-rows.
_MOST_ROWS: Final = 1 << 20
_Count = Annotated[int, Field(ge=1, le=1_000), WHOLE]
_Rate = Annotated[float, Field(ge=0)]
_Temperature = Annotated[float, Field(gt=0)]


def _held_by_a_profile(description: str) -> str:
    size = len(description.encode())
    if size > DESCRIPTION_BYTES:
        raise ValueError(f"has {size} bytes, at most {DESCRIPTION_BYTES} are allowed")
    return description


# JSON Schema counts characters; a profile's limit is as many bytes.
_Description = Annotated[
    str, AfterValidator(_held_by_a_profile), Field(json_schema_extra={"maxLength": DESCRIPTION_BYTES})
]


class TuningExampleBody(WireBody):
    """Either every example has a ``split`` or none does; either all labels are numbers or none is."""

    text: Text
    text_pair: Text | None = None
    label: LabelBody
    split: Literal["train", "dev", "test"] | None = None


class TuningCompletionBody(WireBody):
    """What a decoder learns to write after a prompt. Either every example has a ``split`` or none does."""

    prompt: Text
    completion: Text
    split: Literal["train", "dev", "test"] | None = None


def _kind_of_example(value: object) -> str | None:
    if isinstance(value, TuningCompletionBody) or (isinstance(value, dict) and value.keys() & {"prompt", "completion"}):
        return COMPLETED
    return LABELLED if isinstance(value, TuningExampleBody | dict) else None


_Example = Annotated[
    Annotated[TuningExampleBody, Tag(LABELLED)] | Annotated[TuningCompletionBody, Tag(COMPLETED)],
    Discriminator(
        _kind_of_example,
        custom_error_type="example_type",
        custom_error_message='must be {"text", "label"} or {"prompt", "completion"}',
    ),
]


class TuningSettingsBody(WireBody):
    """What a tenant may set, by the names and with the defaults of ``xpeft tune``: this is all that passes."""

    kind: Literal["hard", "soft"] = "hard"
    k: Annotated[int, Field(ge=1), WHOLE] | None = None
    epochs: _Count = 15
    batch_rows: _Count = 16
    lr_masks: _Rate = 0.1
    lr_norm: _Rate = 0.02
    lr_head: _Rate = 0.001
    head_penalty: _Rate | None = None
    shared_head: Text | None = None
    own_head: bool = False
    mask_spread: _Rate = 0.01
    gumbel: _Rate = 0.0
    temperature: _Temperature = 1.0
    last_temperature: _Temperature | None = None
    class_weights: Literal["balanced"] | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.2
    stop_on: Literal["loss", "accuracy"] | None = None
    patience: _Count = 5
    seed: Annotated[int, Field(ge=0, lt=1 << 63), WHOLE] = 0
    description: _Description | None = None

    def given(self) -> dict[str, Any]:
        """What was sent; of the rest the defaults are the tuning's own."""
        return self.model_dump(exclude_unset=True)


class TuneBody(WireBody):
    """Examples of one kind: texts with labels, or, where the model generates, prompts with completions.

    ``labels``: the order that they shall have; else as the examples have them. Of numbers, the one name; of completions
    none.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "examples": [
                        {"text": "My suitcase did not arrive", "label": "baggage"},
                        {"text": "I want my money back", "label": "refund"},
                    ],
                    "labels": ["refund", "baggage"],
                    "settings": {"epochs": 10, "k": 8},
                },
                {
                    "examples": [
                        {"prompt": "Subject: your suitcase\n\n", "completion": "Dear guest, we have found it."}
                    ],
                    "settings": {"epochs": 10},
                },
            ]
        }
    )

    examples: Annotated[list[_Example], Field(min_length=1, max_length=_MOST_ROWS, fail_fast=True)]
    labels: Annotated[list[Text], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True)] | None = None
    settings: TuningSettingsBody = TuningSettingsBody()


class TuningProgressBody(BaseModel):
    """After a step; ``loss`` is the mean of the epoch's steps so far, in nats."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None


class TuningRowsBody(BaseModel):
    train: int
    held_out: int


class TuningMeasureBody(BaseModel):
    """Of the profile on its train rows and on those held out, if there are any.

    ``head_alone`` (a head without masks) and ``majority`` (always the most frequent label) are measured on the
    held-out rows, without any on the train rows; both are null where they mean nothing.
    """

    train: float | None
    held_out: float | None
    head_alone: float | None
    majority: float | None = None


class TuningResultBody(BaseModel):
    """``accuracy`` is null where labels are numbers, ``correlation`` where they are not, both of completions.

    ``loss`` is the mean cross-entropy in nats, of completions that of a token, or the mean squared error; ``epoch`` the
    one that was kept; ``cut`` the number of texts that were longer than the model takes.
    """

    profile_version: str
    rows: TuningRowsBody
    accuracy: TuningMeasureBody | None
    correlation: TuningMeasureBody | None
    loss: TuningMeasureBody
    epoch: int
    cut: int


class TuningJobBody(BaseModel):
    """``created``, ``started`` and ``finished`` are unix seconds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "job_0649e6d1c0a0004f3a6c1be2d94c57a1b2c3d4",
                    "object": "tuning.job",
                    "profile": "support",
                    "status": "succeeded",
                    "created": 1767225600,
                    "started": 1767225601,
                    "finished": 1767225642,
                    "progress": {"epoch": 15, "epochs": 15, "step": 5, "steps": 5, "loss": 0.11},
                    "result": {
                        "profile_version": EXAMPLE_VERSION,
                        "rows": {"train": 80, "held_out": 20},
                        "accuracy": {"train": 1.0, "held_out": 0.95, "head_alone": 0.9, "majority": 0.5},
                        "correlation": None,
                        "loss": {"train": 0.11, "held_out": 0.19, "head_alone": 0.3, "majority": None},
                        "epoch": 15,
                        "cut": 0,
                    },
                    "error": None,
                }
            ]
        }
    )

    id: str
    object: Literal["tuning.job"]
    profile: str
    status: JobStatus
    created: int
    started: int | None
    finished: int | None
    progress: TuningProgressBody | None
    result: TuningResultBody | None
    error: ErrorBody | None


class TuningJobListBody(BaseModel):
    object: Literal["list"]
    data: list[TuningJobBody]
    next_cursor: str | None


def job_document(record: JobRecord) -> dict[str, object]:
    """A `TuningJobBody`."""
    return {
        "id": record.id,
        "object": "tuning.job",
        "profile": record.profile,
        "status": record.status,
        "created": int(record.created),
        "started": None if record.started is None else int(record.started),
        "finished": None if record.finished is None else int(record.finished),
        "progress": record.progress,
        "result": record.result,
        "error": record.error,
    }
