"""The engine's inputs and outputs: plain values, no tensors, no HTTP."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from xpeft_profiles import ProfileKey
from xpeft_server.model.sampling.rule import SamplingRule as SamplingRule  # the API reads it here

from .journey import Journey as Journey  # and this, and the next
from .journey import Stage as Stage


class TextInput(NamedTuple):
    """One text to classify, or a pair of texts that the tokenizer joins."""

    text: str
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class ClassifyRequest:
    """Texts of one tenant for one profile; it takes a permit for ``len(inputs)`` texts.

    Args:
        journey: the caller's; the engine writes into it.
    """

    profile: ProfileKey
    inputs: tuple[TextInput, ...]
    truncate: bool = False
    journey: Journey = field(default_factory=Journey, compare=False, repr=False)


class ClassifiedText(NamedTuple):
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
    """Answers in the order of the inputs, all computed with one version of the profile. Times in seconds.

    ``verified``: the store confirmed the version after the request came; false only while it cannot be asked.
    """

    profile_version: str
    labels: tuple[str, ...]
    data: tuple[ClassifiedText, ...]
    prompt_tokens: int
    queue_time: float
    inference_time: float
    verified: bool = True


class ChatMessage(NamedTuple):
    role: str
    content: str


Prompt = str | tuple[int, ...] | tuple[ChatMessage, ...]
"""A text, token ids, or a chat that the tokenizer's template turns into a text."""

FinishReason = Literal["stop", "length"]


class PromptGroup(NamedTuple):
    """The prompts of one HTTP request: one request for rates and concurrency, ``size`` texts in the queue.

    ``id``: unique, and not chosen by a client.
    """

    id: str
    size: int


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One prompt to continue.

    Args:
        tenant: whose request it is.
        profile: of that tenant; None asks for the bare PLM.
        max_new_tokens: most tokens to generate; None: up to the end of the context; 0, with ``echo``: the prompt alone.
        seed: of the sampling; None draws a new one for each request.
        stop: texts that end the answer and are not part of it.
        ignore_eos: whether generation goes on after an end token, which adds no text.
        echo: whether the prompt is told before the answer, with logprobs where ``sampling`` asks for them.
        group: this prompt and those that came with it, which share a permit; None for a prompt that came alone.
        journey: the caller's; the engine writes into it.
    """

    tenant: str
    profile: ProfileKey | None
    prompt: Prompt
    max_new_tokens: int | None = None
    sampling: SamplingRule = field(default_factory=SamplingRule)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    echo: bool = False
    group: PromptGroup | None = None
    journey: Journey = field(default_factory=Journey, compare=False, repr=False)


class LikelyToken(NamedTuple):
    """``bytes`` are the token's own, even where ``text`` is half a character.

    ``logprob`` is a natural logarithm; None for the first token of a prompt, which has nothing before it.
    """

    id: int
    text: str
    bytes: bytes
    logprob: float | None


class ChosenToken(NamedTuple):
    """A generated token, or one of the prompt, and the likeliest alternatives, likeliest first, before temperature and
    limits.

    ``special``: it adds nothing to the text; its ``token.text`` is a name.
    """

    token: LikelyToken
    likeliest: tuple[LikelyToken, ...]
    special: bool = False


class Started(NamedTuple):
    """The first news of an answer, when it has its first token. ``profile_version`` is None for the bare PLM.

    ``queue_time`` is in seconds; ``verified``: as in `ClassifyAnswer`; ``prompt_tokens``, ``cached_tokens``: as in
    `Finished`.
    """

    profile_version: str | None
    queue_time: float
    verified: bool = True
    prompt_tokens: int = 0
    cached_tokens: int = 0


class Echo(NamedTuple):
    """A part of the prompt. ``tokens`` are told only if logprobs were asked for; ``text`` may run ahead of them."""

    text: str
    tokens: tuple[ChosenToken, ...] = ()


class Piece(NamedTuple):
    """More of the answer: whole characters.

    Args:
        tokens: only if logprobs were asked for.
        generated: tokens of the whole answer so far.
    """

    text: str
    tokens: tuple[ChosenToken, ...] = ()
    generated: int = 0


class Finished(NamedTuple):
    """The last news of an answer.

    ``inference_time`` is in seconds; ``cached_tokens`` of the prompt were not computed, but taken from an earlier one.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    inference_time: float
    cached_tokens: int = 0


News = Started | Echo | Piece | Finished
"""An answer on its way: `Started`, `Echo` where it was asked for, any number of `Piece`, `Finished`."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """``checks`` has a short text for each part ("ok", or why not); ready means that all are "ok"."""

    ready: bool
    checks: dict[str, str]


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Facts for /info: nothing of any tenant. Lengths in tokens, sizes in requests, tokens or slots.

    ``max_total_tokens``: of a prompt and its answer together, less than ``context_length`` where keys and values have
    less room. It, ``max_sequences`` and ``kv_tokens`` are 0 where the model does not generate. ``graphs`` counts CUDA
    graphs, of batches of up to ``graph_tokens`` and of steps of up to ``graph_step_tokens``, and ``graph_bytes`` their
    memory.
    """

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
    max_total_tokens: int = 0
    max_sequences: int = 0
    kv_tokens: int = 0
    graphs: int = 0
    graph_tokens: int = 0
    graph_step_tokens: int = 0
    graph_bytes: int = 0
