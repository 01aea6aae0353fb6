"""What goes into the engine and what comes out: plain values, no tensors, no HTTP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from xpeft_profiles import ProfileKey


class TextInput(NamedTuple):
    """One text to classify, or a pair of texts that the tokenizer joins."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Texts of one tenant for one profile; a permit for ``len(inputs)`` texts is taken from it."""

    profile: ProfileKey
    inputs: tuple[TextInput, ...]
    truncate: bool = False


class Classification(NamedTuple):
    """One text's answer.

    ``label`` is the argmax of ``probs`` and ``score`` its probability; with one class it is regression:
    ``score`` is the raw value and ``probs`` is empty.
    """

    label: str
    score: float
    probs: tuple[float, ...]
    num_classes: int


@dataclass(frozen=True, slots=True)
class ClassifyAnswer:
    """Answers in the order of the inputs, all computed with one version of the profile. Times in seconds."""

    profile_version: str
    labels: tuple[str, ...]
    data: tuple[Classification, ...]
    prompt_tokens: int
    queue_time: float
    inference_time: float


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """``checks`` has one short text a part ("ok", or why not); ready means that all of them are "ok"."""

    ready: bool
    checks: dict[str, str]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts for /info: nothing of any tenant. Lengths in tokens, sizes in requests, tokens or slots."""

    plm: str
    model_type: str
    device: str
    dtype: str
    kernels: dict[str, str]
    generates: bool
    context_length: int
    slots: int
    max_batch_tokens: int
    queue_limit: int
    queue_token_limit: int
    max_inputs: int
