"""How much may be accepted and not yet answered: of everybody, and of each tenant."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from xpeft_server.tenant_limits import LimitsOfTenants

from .backlog import Backlog
from .room import Held, Room
from .tenant_account import TenantAccount

_ACCOUNTS: Final = 1024
"""Idle accounts are swept once there are this many."""


class Permit:
    """A request's right to be inside, held while it is entered. Its tokens are added once they are counted."""

    __slots__ = ("_account", "_permits", "_texts", "tenant", "tokens")

    def __init__(self, permits: Permits, account: TenantAccount, tenant: str, texts: int) -> None:
        self._permits = permits
        self._account = account
        self._texts = texts
        self.tenant = tenant
        self.tokens = 0

    def __enter__(self) -> Permit:
        self._permits.enter(self._account, self.tenant, self._texts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._permits.leave(self._account, self.tenant, self._texts, self.tokens)

    def admit_tokens(self, count: int) -> None:
        """Add tokens to those that the request already has. Raises: Overloaded, LimitReached."""
        self._permits.admit_tokens(self.tenant, count, beside=self.tokens)
        self.tokens += count
        self.spend(count)

    def waiting(self) -> Held:
        """While this is entered, all its tokens wait for the device. Entering raises: Overloaded, LimitReached."""
        return self._permits.waiting.held(self.tenant, self.tokens)

    def spend(self, tokens: int) -> None:
        """Count tokens against the tenant's rate."""
        self._account.spend(tokens)


class SharedPermit:
    """One permit of several holders: the first enters it, and the last leaves it."""

    __slots__ = ("_holders", "_key", "_open", "_permit")

    def __init__(self, permit: Permit, key: tuple[str, str], opened: dict[tuple[str, str], SharedPermit]) -> None:
        self._permit = permit
        self._key = key
        self._open = opened
        self._holders = 0

    def __enter__(self) -> Permit:
        if not self._holders:
            self._permit.__enter__()
            self._open[self._key] = self
        self._holders += 1
        return self._permit

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._holders -= 1
        if not self._holders:
            del self._open[self._key]
            self._permit.__exit__(kind, error, trace)


class Permits:
    """Limits the requests that are accepted and not yet answered. Used from the event loop alone.

    Args:
        texts: most texts accepted and not yet answered.
        tokens: most tokens of those.
        backlog: bounds the computing that waits.
        limits: of each tenant.
        clock: monotonic seconds.

    Attributes:
        waiting: room for the tokens that wait for the device.
    """

    def __init__(
        self,
        *,
        texts: int,
        tokens: int,
        backlog: Backlog,
        limits: LimitsOfTenants,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._texts = Room("texts", texts, limits)
        self._tokens = Room("tokens", tokens, limits)
        self.waiting = backlog.room
        self._limits = limits
        self._clock = clock
        self._accounts: dict[str, TenantAccount] = {}
        self._shared: dict[tuple[str, str], SharedPermit] = {}  # by tenant and name
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
        self.waiting.check(tenant, 1)

    def admitted(self, tenant: str, texts: int) -> Permit:
        """A request of so many texts is inside while the permit is entered.

        Entering it raises: Overloaded if it does not fit beside what is in, LimitReached if it is more than its tenant
        may send.
        """
        account = self._accounts.get(tenant) or self._open(tenant, self._clock())
        return Permit(self, account, tenant, texts)

    def shared(self, tenant: str, texts: int, name: str) -> SharedPermit:
        """As `admitted`, for a request whose texts come one by one: those inside by the same name have one permit.

        Their tokens stay until the last has gone. Who comes after that enters anew. To be entered at once.
        """
        key = tenant, name
        return self._shared.get(key) or SharedPermit(self.admitted(tenant, texts), key, self._shared)

    def enter(self, account: TenantAccount, tenant: str, texts: int) -> None:
        """See `admitted`."""
        self._texts.check(tenant, texts)
        account.check(self._limits.of(tenant), self._clock())
        account.enter()
        self._texts.take(tenant, texts)

    def leave(self, account: TenantAccount, tenant: str, texts: int, tokens: int) -> None:
        """What `enter` and `admit_tokens` took."""
        account.leave()
        self._texts.leave(tenant, texts)
        self._tokens.leave(tenant, tokens)

    def admit_tokens(self, tenant: str, count: int, *, beside: int) -> None:
        """See `Permit.admit_tokens`; ``beside``: what the request has."""
        self._tokens.leave(tenant, beside)
        try:
            self._tokens.check(tenant, beside + count)
        finally:
            self._tokens.take(tenant, beside)
        self._tokens.take(tenant, count)

    def _open(self, tenant: str, now: float) -> TenantAccount:
        if len(self._accounts) >= self._sweep_at:
            idle = [name for name, account in self._accounts.items() if account.is_idle(self._limits.of(name), now)]
            for name in idle:
                del self._accounts[name]
            self._sweep_at = max(_ACCOUNTS, 2 * len(self._accounts))
        account = self._accounts[tenant] = TenantAccount(now)
        return account
