"""What the three generation routes share: from the body to the engine, and from its news to a whole answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import NamedTuple, TypeVar

from starlette.requests import Request

from xpeft_profiles import RESERVED, ProfileKey
from xpeft_server.engine.errors import DoesNotGenerate, EngineError
from xpeft_server.engine.metrics import Metrics
from xpeft_server.engine.requests import Echo, Finished, GenerateRequest, News, Piece, Prompt, PromptGroup, Started
from xpeft_server.settings import Settings

from ..bodies.counts import CountsCheck
from ..bodies.json_bodies import parse_json
from ..bodies.reader import read_body
from ..context import context_of
from ..engine_port import EnginePort
from ..errors import ApiError
from ..replies import JSON, UNVERIFIED, Headers
from .sampling_wire import SamplingFields

Body = TypeVar("Body", bound=SamplingFields)
AnswerNews = AsyncGenerator[News, None]


class WholeAnswer(NamedTuple):
    """All the news of one answer; its pieces begin with those of the prompt, where they were asked for."""

    started: Started
    pieces: tuple[Echo | Piece, ...]
    finished: Finished

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)


class TextRequests:
    """The engine, as the generation routes use it."""

    def __init__(self, settings: Settings, *, engine: EnginePort, metrics: Metrics) -> None:
        self.max_inputs = settings.max_inputs
        self._max_bytes = settings.max_body_bytes
        self._body_seconds = settings.body_seconds
        self._engine = engine
        self._metrics = metrics

    async def read(self, request: Request, body_type: type[Body], check_counts: CountsCheck | None = None) -> Body:
        """Raises: ApiError 400 before all else if the model does not generate; what `parse_json` raises."""
        info = self._engine.info
        if not info.generates:
            message = (
                f"the server runs {info.plm} ({info.model_type}), which does not generate text here; use /v1/classify"
            )
            raise ApiError(400, DoesNotGenerate.code, message)
        data = await read_body(
            request.scope, request.receive, limit=self._max_bytes, media_type=JSON, seconds=self._body_seconds
        )
        return parse_json(data, body_type, check_counts, items=self.max_inputs)

    async def news(self, asked: GenerateRequest, fields: Mapping[str, str]) -> AnswerNews:
        """The engine's news up to the last, `Finished`.

        Args:
            fields: the engine's name of a field → the route's, for errors.
        Raises: EngineError; RuntimeError if the engine falls silent before the end.
        """
        last: News | None = None
        try:
            async with aclosing(self._engine.generate(asked)) as news:
                async for last in news:
                    yield last
        except EngineError as error:
            if error.param is not None:
                error.param = fields.get(error.param, error.param)
            raise
        if not isinstance(last, Finished):
            raise RuntimeError(f"the engine ended an answer with {last!r}")

    async def answer(self, asked: GenerateRequest, fields: Mapping[str, str]) -> WholeAnswer:
        """The whole answer. Raises: as `news`."""
        async with aclosing(self.news(asked, fields)) as news:
            items = [item async for item in news]
        started, finished = items[0], items[-1]
        pieces = tuple(item for item in items if isinstance(item, (Echo, Piece)))
        if not (isinstance(started, Started) and isinstance(finished, Finished)):
            raise RuntimeError(f"the engine began an answer with {started!r}")
        return WholeAnswer(started, pieces, finished)

    def count(self, asked: GenerateRequest) -> None:
        """One more request was answered."""
        self._metrics.profile_requests.count(asked.tenant, RESERVED if asked.profile is None else asked.profile.name)


def generate_request(
    request: Request,
    name: str,
    prompt: Prompt,
    body: SamplingFields,
    *,
    max_new_tokens: int | None,
    logprobs: int | None,
    echo: bool = False,
    group: PromptGroup | None = None,
) -> GenerateRequest:
    """A request to one of the tenant's profiles, or to the bare model by the name ``base``."""
    context = context_of(request.scope)
    context.profile = name
    tenant = context.principal.tenant
    return GenerateRequest(
        tenant=tenant,
        profile=None if name == RESERVED else ProfileKey(tenant, name),
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        sampling=body.rule(logprobs),
        seed=body.seed,
        stop=body.stops(),
        ignore_eos=body.ignore_eos,
        echo=echo,
        group=group,
        journey=context.journey,
    )


def usage(finished: Iterable[Finished]) -> dict[str, int]:
    """The tokens of all these answers."""
    counts = [(one.prompt_tokens, one.completion_tokens) for one in finished]
    return usage_of(sum(prompt for prompt, _ in counts), sum(completion for _, completion in counts))


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def headers_of(started: Iterable[Started], finished: Iterable[Finished] = ()) -> Headers:
    """For the answers of one request: their versions (none for the bare model) and longest times, in seconds.

    Versions differ only if the profile was replaced between the starts of two answers of one request.
    """
    headers: list[tuple[bytes, bytes]] = []
    versions = dict.fromkeys(one.profile_version for one in started if one.profile_version is not None)
    if versions:
        headers.append((b"x-profile-version", ", ".join(versions).encode()))
    if not all(one.verified for one in started):
        headers.append(UNVERIFIED)
    headers.append((b"x-queue-time", b"%.6f" % max(one.queue_time for one in started)))
    inference_times = [one.inference_time for one in finished]
    if inference_times:
        headers.append((b"x-inference-time", b"%.6f" % max(inference_times)))
    return headers
