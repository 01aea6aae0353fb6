"""Every route: its path, its handler, and what it takes and gives."""

from __future__ import annotations

from . import answer_headers
from .access.table import CANCEL, JOB, MODEL, PROFILE, TUNE
from .classify import Classify
from .generation.generate import Generate
from .generation.wire import GenerateBody, GenerateReplyBody
from .openai.chat import Chat
from .openai.chat_replies import ChatReplyBody
from .openai.chat_wire import ChatBody
from .openai.completions import Completions
from .openai.completions_wire import CompletionBody, CompletionReplyBody
from .openai.models import Models
from .operation import Operation, header, path_id, path_name, query
from .paging import DEFAULT_LIMIT, MOST
from .probes import Probes
from .profiles import Profiles
from .tuning.jobs import Jobs
from .tuning.wire import TuneBody, TuningJobBody, TuningJobListBody
from .wire import (
    ClassifyBody,
    ClassifyReplyBody,
    HealthBody,
    InfoBody,
    ModelBody,
    ModelListBody,
    ProfileBody,
    ProfileListBody,
    ReadyBody,
)

_IF_MATCH = header("If-Match", "versions in double quotes, or *: 412 unless one of them is there")
_IF_NONE_MATCH = header("If-None-Match", "versions in double quotes, or *: 412 (304 on GET) if one of them is there")
_LIMIT = query("limit", {"type": "integer", "minimum": 1, "maximum": MOST, "default": DEFAULT_LIMIT}, "lines on a page")
_GENERATION_ERRORS = (400, 404, 408, 409, 413, 415, 422, 429)


def classify_operations(classify: Classify) -> list[Operation]:
    return [
        Operation(
            method="POST",
            path="/v1/classify",
            handler=classify.classify,
            summary="Classify texts with a profile",
            answers={200: ClassifyReplyBody},
            headers=answer_headers.CLASSIFIED,
            errors=(400, 404, 408, 409, 413, 415, 422, 429),
            body=ClassifyBody,
        )
    ]


def generation_operations(generate: Generate, completions: Completions, chat: Chat) -> list[Operation]:
    return [
        Operation(
            method="POST",
            path="/v1/generate",
            handler=generate.generate,
            summary="Generate text with a profile; with stream: true, as server-sent events",
            answers={200: GenerateReplyBody},
            headers=answer_headers.GENERATED,
            errors=_GENERATION_ERRORS,
            body=GenerateBody,
            gives_events=True,
        ),
        Operation(
            method="POST",
            path="/v1/completions",
            handler=completions.complete,
            summary="Complete texts, in OpenAI's shape; with stream: true, as server-sent events",
            answers={200: CompletionReplyBody},
            headers=answer_headers.GENERATED,
            errors=_GENERATION_ERRORS,
            body=CompletionBody,
            gives_events=True,
        ),
        Operation(
            method="POST",
            path="/v1/chat/completions",
            handler=chat.complete,
            summary="Answer a chat, in OpenAI's shape; with stream: true, as server-sent events",
            answers={200: ChatReplyBody},
            headers=answer_headers.GENERATED,
            errors=_GENERATION_ERRORS,
            body=ChatBody,
            gives_events=True,
        ),
    ]


def model_operations(models: Models) -> list[Operation]:
    return [
        Operation(
            method="GET",
            path="/v1/models",
            handler=models.list,
            summary="List profiles as models, in OpenAI's shape",
            answers={200: ModelListBody},
            errors=(422,),
            parameters=(_LIMIT, query("after", {"type": "string"}, "last_id of the page before")),
        ),
        Operation(
            method="GET",
            path=MODEL,
            handler=models.get,
            summary="Show a profile as a model, in OpenAI's shape",
            answers={200: ModelBody},
            errors=(404, 422),
            parameters=(path_name(),),
        ),
    ]


def profile_operations(profiles: Profiles) -> list[Operation]:
    return [
        Operation(
            method="PUT",
            path=PROFILE,
            handler=profiles.put,
            summary="Upload a profile file",
            answers={201: ProfileBody, 200: ProfileBody},
            headers=answer_headers.VERSION,
            errors=(400, 408, 409, 412, 413, 415, 422, 429),
            takes_file=True,
            parameters=(path_name(), _IF_MATCH, _IF_NONE_MATCH),
        ),
        Operation(
            method="GET",
            path=PROFILE,
            handler=profiles.get,
            summary="Show a profile; with Accept: application/octet-stream, fetch its file",
            answers={200: ProfileBody, 304: None},
            headers=answer_headers.VERSION,
            errors=(400, 404, 422),
            gives_file=True,
            parameters=(path_name(), _IF_NONE_MATCH),
        ),
        Operation(
            method="DELETE",
            path=PROFILE,
            handler=profiles.delete,
            summary="Delete a profile",
            answers={204: None},
            errors=(400, 404, 412, 422),
            parameters=(path_name(), _IF_MATCH, _IF_NONE_MATCH),
        ),
        Operation(
            method="GET",
            path="/v1/profiles",
            handler=profiles.list,
            summary="List profiles by name",
            answers={200: ProfileListBody},
            errors=(422,),
            parameters=(
                _LIMIT,
                query("cursor", {"type": "string"}, "next_cursor of the page before"),
                query("prefix", {"type": "string"}, "what the names begin with"),
            ),
        ),
    ]


def tuning_operations(jobs: Jobs) -> list[Operation]:
    return [
        Operation(
            method="POST",
            path=TUNE,
            handler=jobs.submit,
            summary="Tune a profile on examples: a job, which puts the profile into its place when it succeeds",
            answers={202: TuningJobBody},
            headers=answer_headers.JOB,
            errors=(400, 408, 413, 415, 422, 429),
            body=TuneBody,
            parameters=(path_name(), _IF_MATCH, _IF_NONE_MATCH),
        ),
        Operation(
            method="GET",
            path=JOB,
            handler=jobs.get,
            summary="Show a tuning job; with Accept: text/event-stream, follow it until it is over",
            answers={200: TuningJobBody},
            errors=(404,),
            gives_events=True,
            parameters=(path_id(),),
        ),
        Operation(
            method="GET",
            path="/v1/jobs",
            handler=jobs.list,
            summary="List tuning jobs, the newest first",
            answers={200: TuningJobListBody},
            errors=(422,),
            parameters=(_LIMIT, query("cursor", {"type": "string"}, "next_cursor of the page before")),
        ),
        Operation(
            method="POST",
            path=CANCEL,
            handler=jobs.cancel,
            summary="Cancel a tuning job",
            answers={200: TuningJobBody},
            errors=(404, 409),
            parameters=(path_id(),),
        ),
    ]


def probe_operations(probes: Probes) -> list[Operation]:
    return [
        Operation(
            method="GET",
            path="/health",
            handler=probes.health,
            summary="Whether the process lives",
            answers={200: HealthBody},
        ),
        Operation(
            method="GET",
            path="/ready",
            handler=probes.ready,
            summary="Whether requests would be answered",
            answers={200: ReadyBody, 503: ReadyBody},
        ),
        Operation(
            method="GET",
            path="/info",
            handler=probes.info,
            summary="Model, bank and limits",
            answers={200: InfoBody},
        ),
        Operation(
            method="GET",
            path="/metrics",
            handler=probes.metrics,
            summary="Metrics in Prometheus' text format",
            answers={200: None},
            gives_text=True,
        ),
    ]
