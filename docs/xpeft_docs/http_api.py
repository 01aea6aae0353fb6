"""Every route, from the document that a running server has at ``/openapi.json``. Needs no model and no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final, cast

from xpeft_profiles import MemoryStore
from xpeft_server.api.access.auth import NoKeys, Role
from xpeft_server.api.access.table import ACCESS, PUBLIC
from xpeft_server.api.app import create_app
from xpeft_server.api.errors import error_type
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings

from .schemas import examples_of, reachable, schema_sections, type_words
from .table import code, table

# Which part of the page a path belongs to: the first whose beginning it has.
_PARTS: Final = (
    ("Classify", ("/v1/classify",)),
    ("Generate", ("/v1/generate",)),
    ("OpenAI's routes", ("/v1/completions", "/v1/chat/", "/v1/models")),
    ("Tuning jobs", ("/v1/profiles/{name}/tune", "/v1/jobs")),
    ("Profiles", ("/v1/profiles",)),
    ("The server itself", ("/health", "/ready", "/info", "/metrics")),
)
_ERROR: Final = 400


@cache
def openapi_document() -> dict[str, Any]:
    """Of a server with default settings. Nothing is started: the document asks its engine for nothing."""
    engine, absent = SimpleNamespace(geometry=None, info=None), cast(Any, None)
    app = create_app(
        Settings(),
        engine=cast(Any, engine),
        store=MemoryStore(),
        tuner=absent,
        keys=NoKeys(),
        metrics=Metrics(),
        audit=absent,
    )
    return app.openapi()


def routes_table() -> str:
    rows = (
        (f"[`{method.upper()} {path}`](#{operation['operationId']})", operation["summary"], _roles(path, method))
        for _, paths in _parts()
        for path, method, operation in paths
    )
    return table(("route", "what it does", "key"), rows)


def routes() -> str:
    """A section for each part, with one for each route."""
    found = []
    for title, operations in _parts():
        found.append(f"## {title}")
        for path, method, operation in operations:
            found += _operation(path, method, operation)
    return "\n\n".join(found)


def schemas() -> str:
    """What is sent, and what comes back and is not sent."""
    every = openapi_document()["components"]["schemas"]
    operations = [operation for _, paths in _parts() for _, _, operation in paths]
    sent = reachable(every, [operation.get("requestBody") for operation in operations])
    parts = ("### Sent", schema_sections(every, sent), "### Received", schema_sections(every, every.keys() - sent))
    return "\n\n".join(parts)


def errors_table() -> str:
    """The type that goes with each status that some route answers."""
    operations = [operation for _, paths in _parts() for _, _, operation in paths]
    statuses = {int(status) for operation in operations for status in operation["responses"]}
    rows = ((str(each), HTTPStatus(each).phrase, code(error_type(each))) for each in sorted(statuses) if each >= _ERROR)
    return table(("status", "in words", "`type`"), rows)


def _parts() -> Iterator[tuple[str, list[tuple[str, str, Mapping[str, Any]]]]]:
    """Raises: ValueError for a path that belongs to no part."""
    sorted_in: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {title: [] for title, _ in _PARTS}
    for path, methods in openapi_document()["paths"].items():
        title = next((title for title, starts in _PARTS if path.startswith(starts)), None)
        if title is None:
            raise ValueError(f"{path} belongs to no part of the page about the HTTP API: add it to _PARTS")
        sorted_in[title] += [(path, method, operation) for method, operation in methods.items()]
    yield from sorted_in.items()


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {path} {{ #{operation['operationId']} }}"
    yield f"{operation['summary']}. Key: {_roles(path, method)}."
    if operation.get("parameters"):
        yield _parameters(operation["parameters"])
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"**Body**, {code(kind)}: {type_words(content['schema'])}."
        yield from _first_example(content["schema"])
    answers, errors = [], []
    for status, answer in operation["responses"].items():
        if int(status) >= _ERROR and path != "/ready":
            errors.append(status)
        else:
            answers.append((status, _answer(answer)))
    yield table(("status", "answer"), answers)
    first = next(iter(operation["responses"].values())).get("content", {}).get("application/json")
    if first is not None:
        yield from _first_example(first["schema"])
    if errors:
        yield f"**Errors:** {', '.join(errors)}."


def _parameters(parameters: list[Mapping[str, Any]]) -> str:
    rows = ((code(each["name"]), each["in"], type_words(each["schema"]), each["description"]) for each in parameters)
    return table(("parameter", "in", "type", "meaning"), rows)


def _answer(answer: Mapping[str, Any]) -> str:
    kinds = [
        f"{type_words(content['schema'])} as {code(kind)}" if "schema" in content else code(kind)
        for kind, content in answer.get("content", {}).items()
    ]
    return ", or ".join(kinds) or "no body"


def _first_example(schema: Mapping[str, Any]) -> Iterator[str]:
    name = schema.get("$ref", "").rpartition("/")[2]
    if name:
        yield from list(examples_of(openapi_document()["components"]["schemas"][name]))[:1]


def _roles(path: str, method: str) -> str:
    if path in PUBLIC:
        return "none"
    roles = ACCESS[path][method.upper()]
    return "any" if roles == frozenset(Role) else " or ".join(code(role) for role in Role if role in roles)
