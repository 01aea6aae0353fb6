"""The OpenAPI document: FastAPI's, with the types, the contents and the key that it cannot see."""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema
from starlette.types import ASGIApp, Receive, Scope, Send

from .access.table import PUBLIC
from .dispatch import Dispatch
from .operation import TEXT_CONTENT, Handler, Operation
from .wire import ErrorEnvelope

_SCHEME: Final = "key"
_NO_WORD: Final = re.compile(r"[^a-z0-9]+")


class DocumentedApi(FastAPI):
    """FastAPI without what it adds by itself: no pages, no redirects; operations bring their own documents."""

    def __init__(self, *, title: str, version: str) -> None:
        super().__init__(title=title, version=version, docs_url=None, redoc_url=None, redirect_slashes=False)
        self._operations: list[Operation] = []

    def add_operation(self, operation: Operation) -> None:
        """Route and document one operation."""
        self._operations.append(operation)

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """By template and method; a GET answers HEAD too, which the document leaves out."""
        return {
            (operation.path, method): operation.handler
            for operation in self._operations
            for method in (["GET", "HEAD"] if operation.method == "GET" else [operation.method])
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Straight to our own middleware: FastAPI would ask the environment for telemetry, three times a request."""
        scope["app"] = self
        if self.middleware_stack is None:
            self.middleware_stack = self.build_middleware_stack()
        await self.middleware_stack(scope, receive, send)

    def build_middleware_stack(self) -> ASGIApp:
        """Only what was added: what is raised is translated in one place, our own outermost middleware."""
        app: ASGIApp = Dispatch(self.handlers(), otherwise=self.router)
        for middleware, args, kwargs in reversed(self.user_middleware):
            app = middleware(app, *args, **kwargs)
        return app

    def openapi(self) -> dict[str, Any]:
        """Built once, when it is first asked for."""
        if self.openapi_schema is None:
            routes = [_documented(operation) for operation in self._operations]
            document = get_openapi(title=self.title, version=self.version, routes=routes)
            self._add_schemas(document)
            self._name_texts(document)
            _add_security(document)
            self.openapi_schema = document
        return self.openapi_schema

    def _add_schemas(self, document: dict[str, Any]) -> None:
        """Those of bodies FastAPI does not know; from those of answers it leaves out every null."""
        bodies: set[tuple[type[BaseModel], JsonSchemaMode]] = {(ErrorEnvelope, "serialization")}
        for operation in self._operations:
            bodies.update((answer, "serialization") for answer in operation.answers.values() if answer is not None)
            if operation.body is not None:
                bodies.add((operation.body, "validation"))
        in_order = sorted(bodies, key=lambda body: body[0].__name__)
        _, schemas = models_json_schema(in_order, ref_template="#/components/schemas/{model}")
        document["components"]["schemas"] = schemas["$defs"]

    def _name_texts(self, document: dict[str, Any]) -> None:
        """FastAPI takes every answer without a type for JSON."""
        for operation in self._operations:
            if not operation.gives_text:
                continue
            responses = document["paths"][operation.path][operation.method.lower()]["responses"]
            for status in operation.answers:
                responses[str(status)]["content"] = TEXT_CONTENT


def _documented(operation: Operation) -> APIRoute:
    """For the document alone: `Dispatch` finds what answers, and building one of these takes long."""
    return APIRoute(
        operation.path,
        operation.handler,
        methods=[operation.method],
        summary=operation.summary,
        operation_id=_NO_WORD.sub("_", f"{operation.method}{operation.path}".lower()).strip("_"),
        response_model=None,
        status_code=next(iter(operation.answers), 400),
        responses=operation.responses(),
        openapi_extra=operation.extra(),
    )


def _add_security(document: dict[str, Any]) -> None:
    document["components"]["securitySchemes"] = {
        _SCHEME: {"type": "http", "scheme": "bearer", "description": "a key made by xpeft keys create"}
    }
    for path, methods in document["paths"].items():
        if path not in PUBLIC:
            for operation in methods.values():
                operation["security"] = [{_SCHEME: []}]
