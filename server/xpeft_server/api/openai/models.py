"""GET /v1/models and /v1/models/{name}: the tenant's profiles in OpenAI's shape."""

from __future__ import annotations

from starlette.requests import Request

from xpeft_profiles import RESERVED, ProfileKey, ProfileStore
from xpeft_profiles.listing import encode_cursor

from ..context import context_of
from ..engine_port import EnginePort
from ..names import checked_name, model_in_path, no_such_profile
from ..paging import asked_limit, known_parameters
from ..replies import Reply, json_reply


class Models:
    """Models by name; where the model generates, the bare one (``base``) comes before them all."""

    def __init__(self, *, engine: EnginePort, store: ProfileStore) -> None:
        self._engine = engine
        self._store = store

    async def list(self, request: Request) -> Reply:
        known_parameters(request, "limit", "after")
        limit = asked_limit(request.query_params.get("limit"))
        after = request.query_params.get("after")
        models: list[dict[str, object]] = []
        if after is None and self._engine.info.generates:
            models.append(_bare_model())
        tenant = context_of(request.scope).principal.tenant
        room = limit - len(models)
        page = await self._store.list(tenant, limit=max(room, 1), cursor=_cursor(after))
        models += [_model(line.name, created=int(line.created), owned_by=tenant) for line in page.profiles[:room]]
        return json_reply(
            {
                "object": "list",
                "data": models,
                "first_id": models[0]["id"] if models else None,
                "last_id": models[-1]["id"] if models else None,
                "has_more": page.next_cursor is not None or len(page.profiles) > room,
            }
        )

    async def get(self, request: Request) -> Reply:
        name = model_in_path(request.scope)
        if name == RESERVED and self._engine.info.generates:
            return json_reply(_bare_model())
        tenant = context_of(request.scope).principal.tenant
        stored = await self._store.get(ProfileKey(tenant, name))
        if stored is None:
            raise no_such_profile(name)
        return json_reply(_model(name, created=int(stored.created), owned_by=tenant))


def _cursor(after: str | None) -> str | None:
    if after is None or after == RESERVED:
        return None
    return encode_cursor(checked_name(after, param="after"))


def _bare_model() -> dict[str, object]:
    return _model(RESERVED, created=0, owned_by="xpeft")


def _model(name: str, *, created: int, owned_by: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": created, "owned_by": owned_by}
