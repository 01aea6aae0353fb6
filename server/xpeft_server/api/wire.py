"""What travels: bodies that are taken, and the shapes of answers that the OpenAPI document shows."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from .bodies.refused_fields import Unsupported
from .bodies.union_tags import NUMBER, PAIRS, TEXT, TEXTS
from .name_schema import PROFILE_OR_MODEL, Name

UNKNOWN_FIELD: Final = "unknown_field"
# No list of texts is read further than the largest --max-inputs.
MOST_ITEMS: Final = 1 << 16
EXAMPLE_VERSION: Final = "sha256:" + "4f" * 32
Text = Annotated[str, Field(min_length=1)]


class WireBody(BaseModel):
    """A JSON body: exact types, and no field that nobody reads."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, document: object) -> object:
        # At the first one: "forbid" alone would make an error object of each of a million unknown fields.
        if isinstance(document, dict):
            fields = cls.model_fields
            for name in document:
                if name not in fields:
                    told = {"name": name, "known": ", ".join(sorted(cls._read_fields()))}
                    raise PydanticCustomError(UNKNOWN_FIELD, "there is no field {name}", told)
        return document

    @classmethod
    def _read_fields(cls) -> set[str]:
        """Names of those that do something."""
        return {
            name
            for name, each in cls.model_fields.items()
            if not any(isinstance(m, Unsupported) for m in each.metadata)
        }


class TextPairBody(WireBody):
    text: Text
    text_pair: Text | None = None


def _kind_of_input(value: object) -> str | None:
    if isinstance(value, str):
        return TEXT
    if not isinstance(value, list):
        return None
    return PAIRS if value and isinstance(value[0], dict) else TEXTS


InputBody = Annotated[
    Annotated[Text, Tag(TEXT)]
    | Annotated[list[Text], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True), Tag(TEXTS)]
    | Annotated[list[TextPairBody], Field(min_length=1, max_length=MOST_ITEMS, fail_fast=True), Tag(PAIRS)],
    Discriminator(
        _kind_of_input,
        custom_error_type="input_type",
        custom_error_message='must be a text, a list of texts or a list of {"text", "text_pair"}',
    ),
]


def _kind_of_label(value: object) -> str | None:
    if isinstance(value, str):
        return TEXT
    return NUMBER if isinstance(value, int | float) and not isinstance(value, bool) else None


LabelBody = Annotated[
    Annotated[Text, Tag(TEXT)] | Annotated[float, Tag(NUMBER)],
    Discriminator(_kind_of_label, custom_error_type="label_type", custom_error_message="must be a text or a number"),
]


class ClassifyBody(WireBody):
    """``model`` is another word for ``profile``: one of them is needed, and not two that differ."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"profile": "support", "input": "My flight was cancelled, can I have my money back?"},
                {"profile": "support", "input": ["Where is my bag?", "Upgrade me please"], "truncate": True},
                {"profile": "duplicates", "input": [{"text": "Is it open?", "text_pair": "Are you open?"}]},
            ],
            **PROFILE_OR_MODEL,
        }
    )

    profile: Name | None = None
    model: Name | None = None
    input: InputBody
    truncate: bool = False


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str


class ErrorEnvelope(BaseModel):
    """Every error looks like this, the framework's own included."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "message": "there is no profile 'support'",
                        "type": "not_found_error",
                        "param": "profile",
                        "code": "profile_not_found",
                    }
                }
            ]
        }
    )

    error: ErrorBody


class ClassificationBody(BaseModel):
    """``probs`` in the order of ``labels``; with one class ``score`` is the raw value and ``probs`` is empty."""

    index: int
    label: str
    score: float
    probs: list[float]
    num_classes: int


class UsageBody(BaseModel):
    prompt_tokens: int
    total_tokens: int


class ClassifyReplyBody(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "classify-0f3a6c1be2d94c57a1b2c3d4",
                    "object": "list",
                    "created": 1767225600,
                    "profile": "support",
                    "profile_version": EXAMPLE_VERSION,
                    "labels": ["refund", "baggage"],
                    "data": [{"index": 0, "label": "refund", "score": 0.93, "probs": [0.93, 0.07], "num_classes": 2}],
                    "usage": {"prompt_tokens": 13, "total_tokens": 13},
                }
            ]
        }
    )

    id: str
    object: Literal["list"]
    created: int
    profile: str
    profile_version: str
    labels: list[str]
    data: list[ClassificationBody]
    usage: UsageBody


class GeneratedUsageBody(UsageBody):
    """``prompt_tokens`` has the special tokens in it."""

    completion_tokens: int


class ProfileListingBody(BaseModel):
    """``bytes`` is the size of the stored record, ``created`` and ``updated`` are unix seconds."""

    name: str
    version: str
    labels: list[str] | None
    bytes: int
    created: int
    updated: int


class ProfileBody(ProfileListingBody):
    """``k`` is the number of adapters that a hard mask picks in each block; soft masks have none."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "object": "profile",
                    "name": "support",
                    "version": EXAMPLE_VERSION,
                    "labels": ["refund", "baggage"],
                    "shared_head": None,
                    "bytes": 3468,
                    "created": 1767225600,
                    "updated": 1767225600,
                    "bank": "sha256:" + "a1" * 32,
                    "hard": True,
                    "k": 10,
                    "description": None,
                }
            ]
        }
    )

    object: Literal["profile"]
    shared_head: str | None
    bank: str
    hard: bool
    k: int | None
    description: str | None


class ProfileListBody(BaseModel):
    object: Literal["list"]
    data: list[ProfileListingBody]
    next_cursor: str | None


class ModelBody(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelListBody(BaseModel):
    object: Literal["list"]
    data: list[ModelBody]
    first_id: str | None
    last_id: str | None
    has_more: bool


class HealthBody(BaseModel):
    status: Literal["ok"]


class ReadyBody(BaseModel):
    """``checks`` has a short text for each part: ok, or why not."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]


class BankBody(BaseModel):
    fingerprint: str
    blocks: int
    adapters: int
    hidden: int
    width: int
    layer_norm: bool
    shared_heads: dict[str, list[str]]


class CudaGraphsBody(BaseModel):
    """Most tokens of a batch and of a step of generation that are graphs; 0 where there are none."""

    count: int
    tokens: int
    step_tokens: int
    bytes: int


class InfoBody(BaseModel):
    """Lengths in tokens, sizes in bytes, requests or slots."""

    version: str
    plm: str
    model_type: str
    device: str
    dtype: str
    kernels: dict[str, str]
    cuda_graphs: CudaGraphsBody
    generates: bool
    store: str
    bank: BankBody
    limits: dict[str, int]
