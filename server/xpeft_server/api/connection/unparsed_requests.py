"""Requests that were no HTTP, or too much of it: they are answered, and the application never sees them."""

from __future__ import annotations

from xpeft_server.engine.metrics import Metrics

from ..access.table import UNMATCHED
from ..errors import ApiError, outcome_of
from ..tracing.access_log import log_unparsed


class UnparsedRequests:
    """Counts them, and logs them where the others are logged. They have no duration: it would begin with their headers.

    Args:
        access_log: whether each request gets a line.
    """

    def __init__(self, *, metrics: Metrics, access_log: bool) -> None:
        metrics.expect_routes([UNMATCHED])
        self._metrics = metrics
        self._access_log = access_log

    def observe(self, error: ApiError, *, request_id: str, client: tuple[str, int] | None) -> None:
        """One was answered with ``error``."""
        outcome = outcome_of(error.status)
        self._metrics.count_request(UNMATCHED, outcome)
        if self._access_log:
            log_unparsed(error, request_id=request_id, outcome=outcome, client=client)
