"""How much of a batch each tenant may have."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from .shares import MARGIN, Shares

PLENTY: Final = 2
"""A tenant has plenty waiting if its tokens would fill 1 / PLENTY of a batch."""

GREEDY: Final = 0.75
"""A tenant that had more than its share is greedy if its tokens would fill this fraction of a batch."""

PART: Final = 4
"""A tenant with plenty waiting, or one that had more than its share, gets at most this fraction (1 / PART) of a batch,
or its share if that is more."""

GROWTH: Final = 1.75
"""While others wait, a tenant that recently had more than its share may take at most GROWTH times its recent fraction
of a batch: a chance backlog drains, and one that suddenly sends ten times as much cannot burst. Simulated: with 1.5 a
tenant that always has nine times its share waits half as long again as others; with 2.5 others feel the first second
of a burst."""

ALONE: Final = 8, 0.010
BESIDE: Final = 64, 0.001
"""Caps on a greedy tenant's tokens, in a batch of its own (ALONE) and in one of others (BESIDE): the batch's budget
divided by the first number, or what the device computes in the second number of seconds, whichever is more; the latter
is plenty on a GPU. A tenant with plenty waiting, or that had more than its share, may have as much beside others."""

_NO_SHARE: Final = 1e-9

_PACE_OF: Final = 0.1  # part of the pace that the last batch makes up


class Turns(NamedTuple):
    """Who may put tokens into a batch.

    Args:
        first: tenants that are served first.
        most: caps on the tokens of some of them; a first entry is always taken.
        greedy: tenants that get what is left: up to ``beside`` tokens, or ``alone`` if the others took nothing.
    """

    first: AbstractSet[str]
    most: Mapping[str, int]
    greedy: AbstractSet[str]
    beside: int
    alone: int


class BatchPolicy:
    """Decides how much of a batch each tenant may have, by what it had lately.

    A tenant that recently had more than its share keeps about the fraction of a batch that it had. If more and more of
    its tokens wait it becomes greedy: it is served after the others, in small portions, so that a tenant that sends as
    fast as it can gets what the others leave.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._pace = 0.0  # tokens a second, of long batches

    def observe(self, tokens: int, seconds: float, token_budget: int) -> None:
        """How long the device took for a batch."""
        if tokens * PART < token_budget:
            return  # a short batch spends its time on other things than tokens
        pace = tokens / max(seconds, 1e-9)
        self._pace += pace if not self._pace else _PACE_OF * (pace - self._pace)

    def ahead(self, tenants: AbstractSet[str]) -> set[str]:
        """The tenants that had more than their share."""
        self._shares.enter(tenants)
        return {tenant for tenant in tenants if self._shares.is_ahead(tenant)}

    def turns(self, waiting: Mapping[str, int], token_budget: int) -> Turns:
        """Args: waiting: tokens by tenant."""
        ahead = self.ahead(waiting.keys())
        greedy = {tenant for tenant in ahead if waiting[tenant] > GREEDY * token_budget}
        return Turns(
            first=waiting.keys() - greedy,
            most=self._most(waiting, token_budget, ahead),
            greedy=greedy,
            beside=self._part(token_budget, BESIDE),
            alone=self._part(token_budget, ALONE),
        )

    def _most(self, waiting: Mapping[str, int], token_budget: int, ahead: AbstractSet[str]) -> dict[str, int]:
        """Caps for tenants whose tokens could fill the batch.

        While others wait, a tenant with plenty waiting gets its share of the batch. One that has not had its share yet
        catches up over many batches: a burst within one batch delays everybody in it. A tenant that had more than its
        share gets a little more than the fraction that it had lately.
        """
        plenty = {tenant for tenant, tokens in waiting.items() if tokens * PLENTY > token_budget}
        shares = {tenant: self._shares.share(tenant) for tenant in plenty | ahead}
        most = {tenant: token_budget * max(1 / PART, share) for tenant, share in shares.items()}
        together = sum(shares[tenant] for tenant in plenty)
        others = sum(tokens for tenant, tokens in waiting.items() if tenant not in plenty)
        least = self._part(token_budget, BESIDE)
        for tenant in plenty - ahead:
            most[tenant] = min(most[tenant], token_budget * shares[tenant] / together)
            if others:
                beside = MARGIN * others * shares[tenant] / max(1.0 - together, _NO_SHARE)
                most[tenant] = min(most[tenant], max(least, beside))
        if behind := sum(tokens for tenant, tokens in waiting.items() if tenant not in ahead):
            had = {tenant: self._shares.part(tenant) for tenant in ahead}
            batch = behind / max(1.0 - sum(had.values()), _NO_SHARE)
            for tenant in ahead:
                most[tenant] = min(most[tenant], max(least, GROWTH * had[tenant] * batch))
        return {tenant: int(tokens) for tenant, tokens in most.items()}

    def _part(self, token_budget: int, part: tuple[int, float]) -> int:
        """Tokens."""
        one_in, seconds = part
        return min(token_budget, max(token_budget // one_in, int(self._pace * seconds)))
