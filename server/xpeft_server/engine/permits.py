"""How much may be accepted and not yet answered: of everybody, and of each tenant."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from xpeft_server.tenant_limits import LimitsOfTenants

from .backlog import Backlog
from .errors import Overloaded
from .metrics import Metrics
from .room import Room
from .tenant_account import TenantAccount

_ACCOUNTS: Final = 1024
"""So many are kept before those that count nothing are looked for."""


class Permit:
    """A request's right to be inside. Its tokens are added when they are known."""

    def __init__(self, permits: Permits, account: TenantAccount, tenant: str) -> None:
        self._permits = permits
        self._account = account
        self.tenant = tenant
        self.tokens = 0

    def admit_tokens(self, count: int) -> None:
        """Raises: Overloaded, LimitReached."""
        self._permits.admit_tokens(self, count)
        self.spend(count)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Its tokens wait to be computed in one go meanwhile. Raises: Overloaded, LimitReached."""
        with self._permits.waiting(self):
            yield

    def spend(self, tokens: int) -> None:
        """Tokens that count against the tenant's rate."""
        self._account.spend(tokens)


class Permits:
    """Bounds what is in the house. Used from the event loop alone.

    Args:
        texts: most texts accepted and not yet answered.
        tokens: most tokens of those.
        backlog: most computing that waits.
        limits: of each tenant.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        texts: int,
        tokens: int,
        backlog: Backlog,
        limits: LimitsOfTenants,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._texts = Room("texts", texts, limits)
        self._tokens = Room("tokens", tokens, limits)
        self._backlog = backlog.room
        self._limits = limits
        self._refusals = metrics.refusals
        self._clock = clock
        self._accounts: dict[str, TenantAccount] = {}
        self._sweep_at = _ACCOUNTS

    @property
    def texts(self) -> int:
        """Accepted and not yet answered."""
        return self._texts.taken

    @property
    def tokens(self) -> int:
        """Of the texts that are inside and were counted."""
        return self._tokens.taken

    def check_backlog(self, tenant: str) -> None:
        """Raises: Overloaded, LimitReached if nothing more of this tenant may wait to be computed."""
        with self._counted():
            self._backlog.check(tenant, 1)

    @contextmanager
    def admitted(self, tenant: str, texts: int) -> Iterator[Permit]:
        """A request of so many texts is inside meanwhile.

        Raises: Overloaded if it does not fit beside what is in, LimitReached if it is more than its tenant may send.
        """
        now = self._clock()
        account = self._accounts.get(tenant) or self._open(tenant, now)
        with self._counted():
            self._texts.check(tenant, texts)
            account.check(self._limits.of(tenant), now)
        permit = Permit(self, account, tenant)
        account.enter()
        self._texts.take(tenant, texts)
        try:
            yield permit
        finally:
            account.leave()
            self._texts.leave(tenant, texts)
            self._tokens.leave(tenant, permit.tokens)

    def admit_tokens(self, permit: Permit, count: int) -> None:
        """See `Permit.admit_tokens`."""
        with self._counted():
            self._tokens.check(permit.tenant, count)
        permit.tokens += count
        self._tokens.take(permit.tenant, count)

    @contextmanager
    def waiting(self, permit: Permit) -> Iterator[None]:
        """See `Permit.waiting`."""
        with self._counted():
            self._backlog.check(permit.tenant, permit.tokens)
        self._backlog.take(permit.tenant, permit.tokens)
        try:
            yield
        finally:
            self._backlog.leave(permit.tenant, permit.tokens)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except Overloaded as error:
            self._refusals[error.reason].inc()
            raise

    def _open(self, tenant: str, now: float) -> TenantAccount:
        if len(self._accounts) >= self._sweep_at:
            idle = [name for name, account in self._accounts.items() if account.is_idle(self._limits.of(name), now)]
            for name in idle:
                del self._accounts[name]
            self._sweep_at = max(_ACCOUNTS, 2 * len(self._accounts))
        account = self._accounts[tenant] = TenantAccount(now)
        return account
