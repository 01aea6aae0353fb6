"""One method of one path, as a value: what answers it and what the OpenAPI document says of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp

from .answer_headers import Headers, headers_of_status
from .name_schema import NAME
from .wire import ErrorEnvelope

Handler = Callable[[Request], Awaitable[ASGIApp]]
Schema = dict[str, Any]

FILE_CONTENT: Final = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
TEXT_CONTENT: Final = {"text/plain": {"schema": {"type": "string"}}}
# A schema here would be one of each event to some readers and one of the whole stream to others.
EVENT_CONTENT: Final[Schema] = {"text/event-stream": {}}
_EVERYWHERE: Final = (401, 403, 500, 503)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """``answers``: status to wire type (None: no body); ``errors``: statuses beside those that all have.

    ``headers``: of every one of the answers, beside those that all answers with their status have.
    """

    method: Literal["GET", "PUT", "POST", "DELETE"]
    path: str
    handler: Handler
    summary: str
    answers: Mapping[int, type[BaseModel] | None]
    errors: Sequence[int] = ()
    headers: Headers = field(default_factory=dict)
    body: type[BaseModel] | None = None
    takes_file: bool = False
    gives_file: bool = False
    gives_events: bool = False
    gives_text: bool = False
    parameters: Sequence[Schema] = field(default_factory=tuple)

    def responses(self) -> dict[int | str, Schema]:
        """FastAPI's ``responses``: every answer and every error, each with its type."""
        found: dict[int | str, Schema] = {}
        for status, model in self.answers.items():
            found[status] = {"description": self.summary, "headers": {**headers_of_status(status), **self.headers}}
            if model is None:
                continue
            found[status]["model"] = model
            if self.gives_file:
                found[status]["content"] = FILE_CONTENT
            if self.gives_events:
                found[status]["content"] = EVENT_CONTENT
        for status in sorted({*self.errors, *_EVERYWHERE} - found.keys()):
            found[status] = {"model": ErrorEnvelope, "headers": headers_of_status(status)}
        return found

    def extra(self) -> Schema:
        """What FastAPI cannot see: the handler takes the whole request."""
        extra: Schema = {"parameters": list(self.parameters)}
        if self.body is not None:
            content: Schema = {"application/json": {"schema": reference(self.body)}}
            extra["requestBody"] = {"required": True, "content": content}
        if self.takes_file:
            extra["requestBody"] = {"required": True, "content": FILE_CONTENT}
        return extra


def reference(model: type[BaseModel]) -> Schema:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def header(name: str, description: str) -> Schema:
    """An optional header, for the document."""
    return _parameter("header", name, {"type": "string"}, description)


def query(name: str, schema: Schema, description: str) -> Schema:
    """An optional query parameter, for the document."""
    return _parameter("query", name, schema, description)


def path_name() -> Schema:
    return {**_parameter("path", "name", NAME, "the profile's name"), "required": True}


def path_id() -> Schema:
    return {**_parameter("path", "id", {"type": "string"}, "the job's id"), "required": True}


def _parameter(place: str, name: str, schema: Schema, description: str) -> Schema:
    return {"in": place, "name": name, "schema": schema, "required": False, "description": description}
