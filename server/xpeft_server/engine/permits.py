"""How much may be accepted and not yet answered: of everybody, and of each tenant."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from xpeft_server.tenant_limits import LimitsOfTenants

from .errors import Overloaded
from .metrics import Metrics
from .tenant_account import TenantAccount

_ACCOUNTS: Final = 1024
"""So many are kept before those that count nothing are looked for."""


class Permit:
    """A request's right to be inside. Its tokens are added when they are known."""

    __slots__ = ("_permits", "account", "tenant", "texts", "tokens")

    def __init__(self, permits: Permits, account: TenantAccount, tenant: str, texts: int) -> None:
        self._permits = permits
        self.account = account
        self.tenant = tenant
        self.texts = texts
        self.tokens = 0

    def admit_tokens(self, count: int) -> None:
        """Raises: Overloaded, LimitReached."""
        self._permits.admit_tokens(self, count)

    def spend(self, tokens: int) -> None:
        """Tokens beyond the admitted ones that count against the tenant's rate: the answer's."""
        self.account.spend(tokens)


class Permits:
    """Bounds what is in the house. Used from the event loop alone.

    A request is let in whole when nothing else is there, however long it is.

    Args:
        texts: most texts accepted and not yet answered.
        tokens: most tokens of those.
        limits: of each tenant.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        texts: int,
        tokens: int,
        limits: LimitsOfTenants,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = {"texts": texts, "tokens": tokens}
        self._inside = {"texts": 0, "tokens": 0}
        self._limits = limits
        self._refusals = metrics.refusals
        self._clock = clock
        self._accounts: dict[str, TenantAccount] = {}
        self._sweep_at = _ACCOUNTS

    @property
    def texts(self) -> int:
        """Accepted and not yet answered."""
        return self._inside["texts"]

    @property
    def tokens(self) -> int:
        """Of the texts that are inside and were counted."""
        return self._inside["tokens"]

    @contextmanager
    def admitted(self, tenant: str, texts: int) -> Iterator[Permit]:
        """A request of so many texts is inside meanwhile.

        Raises: Overloaded if it does not fit beside what is in, LimitReached if it is more than its tenant may send.
        """
        limits, now = self._limits.of(tenant), self._clock()
        account = self._accounts.get(tenant) or self._open(tenant, now)
        with self._counted():
            self._check("texts", account, tenant, texts)
            account.check_rates(limits, now)
        permit = Permit(self, account, tenant, texts)
        account.enter(texts)
        self._inside["texts"] += texts
        try:
            yield permit
        finally:
            account.leave(permit.texts, permit.tokens)
            self._inside["texts"] -= permit.texts
            self._inside["tokens"] -= permit.tokens

    def admit_tokens(self, permit: Permit, count: int) -> None:
        """See `Permit.admit_tokens`."""
        with self._counted():
            self._check("tokens", permit.account, permit.tenant, count)
        permit.tokens += count
        permit.account.inside["tokens"] += count
        permit.account.spend(count)
        self._inside["tokens"] += count

    def _check(self, unit: str, account: TenantAccount, tenant: str, count: int) -> None:
        inside, most = self._inside[unit], self._most[unit]
        if inside and inside + count > most:
            raise Overloaded(f"{inside} {unit} are waiting and {count} more would pass the limit of {most}")
        account.check_share(unit, count, most - (inside - account.inside[unit]), self._limits.of(tenant))

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
