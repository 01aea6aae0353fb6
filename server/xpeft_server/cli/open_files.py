"""How many files the process may have open: every connection is one."""

from __future__ import annotations

import logging
import resource
from typing import Final

log = logging.getLogger(__name__)

ENOUGH: Final = 65_536


def raise_open_files() -> None:
    """As many as this user may have, up to `ENOUGH`, where the usual limit of 1,024 would refuse the next client."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.debug("up to %d open files instead of %d", wanted, soft)
