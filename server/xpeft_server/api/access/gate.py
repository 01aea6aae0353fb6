"""Access control: every path is closed unless the table of access opens it."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from ..context import context_of
from ..drain import Drain
from ..errors import ApiError
from .auth import EVERYBODY, Keys, Principal, bearer_secret
from .table import ACCESS, METHOD_LENGTH, UNMATCHED, WHILE_DRAINING

_CHALLENGE: Final = {"WWW-Authenticate": 'Bearer realm="xpeft"'}


class Gate:
    """Authenticates, checks the role, and keeps new work out while the server drains.

    In this order: 401, before anything is said about a path, then 404, 405, 403, 503.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, public: frozenset[str], drain: Drain) -> None:
        self._app = app
        self._keys = keys
        self._public = public
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        context = context_of(scope)
        template = context.template
        if template not in self._public:
            context.principal = self._authenticate(scope)
            self._check(scope["method"], template, context.principal)
        else:
            self._check(scope["method"], template, EVERYBODY)
        if self._drain.begun and template not in WHILE_DRAINING:
            raise _stopping()
        self._drain.enter()
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            # The drain is over, and the engine does not know of this request: its body is still on its way.
            if self._drain.begun:
                raise _stopping() from None
            raise
        finally:
            self._drain.leave()

    def _authenticate(self, scope: Scope) -> Principal:
        if not self._keys.required:
            return EVERYBODY
        secret = bearer_secret(scope["headers"])
        if secret is None:
            message = "this server needs a key: send the header Authorization: Bearer KEY"
            raise ApiError(401, "missing_api_key", message, headers=_CHALLENGE)
        principal = self._keys.find(secret)
        if principal is None:
            raise ApiError(401, "invalid_api_key", "the key is unknown or has expired", headers=_CHALLENGE)
        return principal

    def _check(self, method: str, template: str, principal: Principal) -> None:
        if template == UNMATCHED:
            raise ApiError(404, "not_found", "there is no such path")
        methods = ACCESS[template]
        roles = methods.get(method)
        if roles is None:
            allowed = ", ".join(sorted(methods))
            message = f"{template} does not take {method[:METHOD_LENGTH]}; it takes {allowed}"
            raise ApiError(405, "method_not_allowed", message, headers={"Allow": allowed})
        if roles.isdisjoint(principal.roles):
            held, needed = (" or ".join(sorted(each)) for each in (principal.roles, roles))
            message = f"a key with the role {held} may not {method} {template}; the role {needed} may"
            raise ApiError(403, "forbidden", message)


def _stopping() -> ApiError:
    # On an open connection the client would come back here, and not to another server.
    leave = {"Retry-After": "1", "Connection": "close"}
    return ApiError(503, "draining", "the server is stopping", headers=leave)
