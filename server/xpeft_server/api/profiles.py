"""PUT, GET, HEAD and DELETE /v1/profiles/{name}, GET /v1/profiles."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request

from xpeft_profiles import (
    BankGeometry,
    BankMismatch,
    Match,
    PreconditionFailed,
    Profile,
    ProfileInvalid,
    ProfileKey,
    ProfileListing,
    ProfileStore,
    PutOutcome,
    RecordDamaged,
    StoredProfile,
    TooManyProfiles,
    encode_record,
    read_profile_file,
    write_profile_file,
)
from xpeft_server.engine.errors import DamagedProfile
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import LimitsOfTenants

from .bodies.reader import read_body
from .conditions import ANY, etag, is_known, match_of
from .context import Change, context_of
from .engine_port import EnginePort
from .errors import ApiError, ClientGone
from .media import prefers_file
from .names import no_such_profile, profile_in_path, profile_to_write
from .paging import asked_limit, known_parameters
from .replies import VARY, Reply, json_reply

FILE: Final = b"application/octet-stream"


class Profiles:
    """The profiles of the caller's tenant; those of others do not exist for it."""

    def __init__(
        self,
        settings: Settings,
        *,
        engine: EnginePort,
        store: ProfileStore,
        tenants: LimitsOfTenants,
        metrics: Metrics,
    ) -> None:
        self._max_bytes = settings.max_profile_bytes
        self._body_seconds = settings.body_seconds
        self._geometry = engine.geometry
        self._store = store
        self._tenants = tenants
        self._uploads = metrics.profile_uploads
        self._damaged = metrics.damaged_profiles

    async def put(self, request: Request) -> Reply:
        try:
            key, outcome, profile, size = await self._put(request)
        except (ApiError, ProfileInvalid, BankMismatch, PreconditionFailed, TooManyProfiles):
            self._uploads["refused"].inc()
            raise
        except ClientGone:
            raise
        except Exception:
            self._uploads["failed"].inc()
            raise
        self._uploads[outcome.status].inc()
        document = _document(key.name, profile, self._geometry, size, outcome)
        status = 201 if outcome.status == "created" else 200
        return json_reply(document, status=status, headers=[etag(outcome.version)])

    async def _put(self, request: Request) -> tuple[ProfileKey, PutOutcome, Profile, int]:
        key = _key(request, profile_to_write(request.scope))
        match = match_of(request.scope)
        data = await read_body(
            request.scope, request.receive, limit=self._max_bytes, media_type=FILE, seconds=self._body_seconds
        )
        profile, size = await asyncio.to_thread(self._read, data)
        outcome = await self._store.put(key, profile, match=match, most=self._tenants.of(key.tenant).max_profiles)
        before = outcome.version if outcome.status == "identical" else _only(match.if_match)
        context_of(request.scope).change = Change(version_before=before, version_after=outcome.version)
        return key, outcome, profile, size

    def _read(self, data: bytes) -> tuple[Profile, int]:
        profile = read_profile_file(data, max_bytes=self._max_bytes)
        profile.check_fits(self._geometry)
        return profile, len(encode_record(profile))

    async def get(self, request: Request) -> Reply:
        key = _key(request, profile_in_path(request.scope))
        stored = await self._store.get(key)
        if stored is None:
            raise no_such_profile(key.name)
        tag = etag(stored.version)
        if is_known(request.scope, stored.version):
            return Reply(status=304, headers=[tag, VARY])
        if prefers_file(request.headers.get("accept")):
            data = await asyncio.to_thread(lambda: write_profile_file(self._decoded(key, stored)))
            return Reply(data, media_type=FILE, headers=[tag, VARY])
        document = await asyncio.to_thread(self._describe, key, stored)
        return json_reply(document, headers=[tag, VARY])

    def _describe(self, key: ProfileKey, stored: StoredProfile) -> dict[str, object]:
        return _document(key.name, self._decoded(key, stored), self._geometry, len(stored.record), stored)

    def _decoded(self, key: ProfileKey, stored: StoredProfile) -> Profile:
        try:
            return stored.decode()
        except RecordDamaged as error:
            self._damaged.observe(key, stored.version, error.message)
            message = f"profile {key.name!r} is damaged in the store: {error.message}"
            raise DamagedProfile(message, param="name") from error

    async def delete(self, request: Request) -> Reply:
        key = _key(request, profile_in_path(request.scope))
        match: Match = match_of(request.scope)
        if not await self._store.delete(key, match=match):
            raise no_such_profile(key.name)
        context_of(request.scope).change = Change(version_before=_only(match.if_match))
        return Reply(status=204)

    async def list(self, request: Request) -> Reply:
        known_parameters(request, "limit", "cursor", "prefix")
        parameters = request.query_params
        page = await self._store.list(
            context_of(request.scope).principal.tenant,
            limit=asked_limit(parameters.get("limit")),
            cursor=parameters.get("cursor"),
            prefix=parameters.get("prefix", ""),
        )
        lines = [self._line(listing) for listing in page.profiles]
        return json_reply({"object": "list", "data": lines, "next_cursor": page.next_cursor})

    def _line(self, listing: ProfileListing) -> dict[str, object]:
        shared = listing.shared_head
        return {
            "name": listing.name,
            "version": listing.version,
            "labels": listing.labels if shared is None else self._geometry.shared_heads.get(shared),
            "bytes": listing.bytes,
            "created": int(listing.created),
            "updated": int(listing.updated),
        }


def _key(request: Request, name: str) -> ProfileKey:
    context = context_of(request.scope)
    context.profile = name
    return ProfileKey(context.principal.tenant, name)


def _only(versions: tuple[str, ...] | None) -> str | None:
    """The one version that a precondition which held leaves possible."""
    return versions[0] if versions is not None and len(versions) == 1 and versions[0] != ANY else None


def _document(
    name: str, profile: Profile, geometry: BankGeometry, size: int, stored: StoredProfile | PutOutcome
) -> dict[str, object]:
    return {
        "object": "profile",
        "name": name,
        "version": stored.version,
        "labels": profile.label_names(geometry),
        "shared_head": profile.shared_head,
        "bytes": size,
        "created": int(stored.created),
        "updated": int(stored.updated),
        "bank": profile.bank,
        "hard": profile.hard,
        "k": profile.k,
        "description": profile.description,
    }
