"""Profiles from the store: requests that come while a query is out share one of the next queries."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Sequence
from typing import Final

from xpeft_profiles import (
    BankGeometry,
    BankMismatch,
    Profile,
    ProfileInvalid,
    ProfileKey,
    ProfileStore,
    RecordDamaged,
    StoredProfile,
    StoreUnavailable,
)
from xpeft_profiles.told_once import ToldOnce

from ..errors import DamagedProfile, EngineError, InternalError, ProfileNotFound, Unavailable, WrongBank
from ..journey import Journey
from ..metrics import Metrics
from .cache import CachedProfile, ProfileCache
from .round_size import RoundSize
from .store_watch import StoreWatch
from .wanted import WantedProfiles

logger = logging.getLogger(__name__)

Loaded = CachedProfile | EngineError
Answer = StoredProfile | StoreUnavailable | None

_FEW: Final = 2
_FEW_BYTES: Final = 8192
"""Up to so many records of so many bytes are decoded in less time than it takes to start another thread."""

_PARTS: Final = 8  # that a round is split into when it was too much for one answer


class ProfileLoader:
    """Reads profiles in rounds of one `get_many`, decodes them (many of them in a thread), and fills the cache.

    Tenants take turns in the rounds: nobody waits for all that another tenant wants.

    Args:
        geometry: of the loaded bank; profiles of another one are refused here.
    """

    def __init__(
        self, store: ProfileStore, *, geometry: BankGeometry, cache: ProfileCache, watch: StoreWatch, metrics: Metrics
    ) -> None:
        self._store = store
        self._geometry = geometry
        self._cache = cache
        self._watch = watch
        self._metrics = metrics
        self._foreign_banks = ToldOnce[str]()
        self._wanted = WantedProfiles[Loaded]()
        self._size = RoundSize()
        self._rounds: asyncio.Task[None] | None = None

    async def load(self, key: ProfileKey, journey: Journey) -> CachedProfile:
        """The profile as the store has it after this call began.

        Args:
            journey: of the request; the query is noted there.
        Raises: ProfileNotFound, DamagedProfile, WrongBank, or Unavailable while the store cannot be asked.
        """
        wanted = self._wanted.want(key)
        if self._rounds is None:
            # Outside the request's context: its log lines are about the requests of all rounds.
            self._rounds = asyncio.create_task(self._work(), name="profile-loader", context=contextvars.Context())
        with journey.stage("store", question="load"):
            loaded = await wanted
        if isinstance(loaded, EngineError):
            raise loaded
        return loaded

    async def current(self, key: ProfileKey, since: float, journey: Journey) -> CachedProfile:
        """The profile in a version that was current at ``since`` (monotonic seconds) or later.

        It comes from the cache where possible. While the store cannot be asked, the cached version counts as current.
        Raises: as `load`.
        """
        cached = self._cache.get(key)
        if cached is None:
            return await self.load(key, journey)
        if cached.asked_at >= since:
            return cached
        asked_at = time.monotonic()
        with journey.stage("store", question="versions"):
            answers = await self.versions([key])
        if answers is None:
            return cached
        if answers[0] == cached.version:
            cached.asked_at = max(asked_at, cached.asked_at)
            return cached
        self._cache.invalidate(cached)
        return await self.load(key, journey)

    async def versions(self, keys: Sequence[ProfileKey]) -> list[str | None] | None:
        """Which versions the store has now; None while it cannot be asked."""
        try:
            return await self._watch.ask(lambda: self._store.versions(keys))
        except StoreUnavailable:
            return None

    async def _work(self) -> None:
        try:
            while wanted := self._wanted.take(self._size.keys):
                try:
                    answers = await self._round(list(wanted))
                except Exception as error:
                    logger.exception("%d profiles could not be loaded", len(wanted))
                    answers = [InternalError(f"the profile could not be loaded: {error!r}") for _ in wanted]
                for futures, answer in zip(wanted.values(), answers, strict=True):
                    for future in futures:
                        if not future.done():
                            future.set_result(answer)
        finally:
            self._rounds = None

    async def _round(self, keys: list[ProfileKey]) -> list[Loaded]:
        asked_at = time.monotonic()
        answers = await self._answers(keys)
        sizes = [0 if each is None else len(each.record) for each in answers if not isinstance(each, StoreUnavailable)]
        if sizes:
            self._size.observe(len(sizes), sum(sizes))
        if len(keys) <= _FEW and sum(sizes) <= _FEW_BYTES:
            loaded = self._decode(keys, answers, asked_at)
        else:
            loaded = await asyncio.to_thread(self._decode, keys, answers, asked_at)
        seconds = time.monotonic() - asked_at
        for each in loaded:
            if isinstance(each, CachedProfile):
                self._cache.put(each)
                self._metrics.profile_load[self._store.scheme].observe(seconds)
        return loaded

    async def _answers(self, keys: list[ProfileKey]) -> list[Answer]:
        """In parts, if they are too much for one answer."""
        try:
            return [*await self._watch.ask(lambda: self._store.get_many(keys))]
        except StoreUnavailable as error:
            if self._watch.up:
                logger.warning("%d profiles could not be read of a store that answers: %s", len(keys), error.message)
            if len(keys) == 1 or not self._watch.up:
                return [error for _ in keys]
        each = math.ceil(len(keys) / _PARTS)
        parts = [await self._answers(keys[at : at + each]) for at in range(0, len(keys), each)]
        return [answer for part in parts for answer in part]

    def _decode(self, keys: list[ProfileKey], answers: list[Answer], asked_at: float) -> list[Loaded]:
        return [self._decoded(key, answer, asked_at) for key, answer in zip(keys, answers, strict=True)]

    def _decoded(self, key: ProfileKey, stored: Answer, asked_at: float) -> Loaded:
        if stored is None:
            return ProfileNotFound(f"profile {key.name!r} does not exist", param="profile")
        if isinstance(stored, StoreUnavailable):
            return Unavailable(f"the profile store does not answer: {stored.message}")
        try:
            profile = stored.decode()
            self._check_fits(key, profile)
        except RecordDamaged as error:
            self._metrics.damaged_profiles.observe(key, stored.version, error.message)
            return DamagedProfile(f"profile {key.name!r} is damaged in the store: {error.message}", param="profile")
        except (BankMismatch, ProfileInvalid) as error:
            return WrongBank(f"profile {key.name!r} does not fit the loaded bank: {error.message}", param="profile")
        except Exception as error:
            logger.exception("profile %r of tenant %r cannot be decoded", key.name, key.tenant)
            return InternalError(f"profile {key.name!r} cannot be decoded: {error!r}", param="profile")
        return CachedProfile(key, stored.version, profile, profile.label_names(self._geometry), asked_at)

    def _check_fits(self, key: ProfileKey, profile: Profile) -> None:
        try:
            profile.check_fits(self._geometry)
        except BankMismatch as error:
            self._metrics.wrong_bank_profiles.inc()
            if self._foreign_banks.is_new(profile.bank):
                message = "profile %r of tenant %r is answered with 409, as will be every other one of its bank: %s"
                logger.warning(message, key.name, key.tenant, error.message)
            raise
