"""Publishes a tuned profile: it passes the checks of an upload and goes into the store that every server reads."""

from __future__ import annotations

import asyncio

from xpeft_profiles import BankGeometry, PreconditionFailed, Profile, ProfileStore, read_profile_file
from xpeft_server.tenant_limits import ONE_TENANT, LimitsOfTenants

from .requests import TuningRequest


class Publisher:
    """Args: ``geometry``: of the bank that is served; ``max_bytes``: of a profile file; ``tenants``: their limits."""

    def __init__(
        self, store: ProfileStore, *, geometry: BankGeometry, max_bytes: int, tenants: LimitsOfTenants = ONE_TENANT
    ) -> None:
        self._store = store
        self._tenants = tenants
        self._geometry = geometry
        self._max_bytes = max_bytes

    async def check(self, file: bytes) -> Profile:
        """Raises: ProfileInvalid, BankMismatch."""
        return await asyncio.to_thread(self._read, file)

    async def put(self, request: TuningRequest, profile: Profile, *, again: bool) -> str:
        """Store the profile. Returns: the version that is stored now.

        Args: again: an earlier try got no answer, and may have stored it.
        Raises: PreconditionFailed, TooManyProfiles, StoreUnavailable.
        """
        most = self._tenants.of(request.profile.tenant).max_profiles
        try:
            return (await self._store.put(request.profile, profile, match=request.match, most=most)).version
        except PreconditionFailed as error:
            if again and error.current_version == profile.version:
                return profile.version
            raise

    def _read(self, file: bytes) -> Profile:
        profile = read_profile_file(file, max_bytes=self._max_bytes)
        profile.check_fits(self._geometry)
        return profile
