"""How many files the process may have open, and how many of them may be connections."""

from __future__ import annotations

import logging
import resource
from typing import Final

from xpeft_server.settings import SettingsInvalid

log = logging.getLogger(__name__)

ENOUGH: Final = 65_536
# The store, the log, the tuning worker, libraries that are imported late, and connections that are being turned away.
OTHER_FILES: Final = 256


def raise_open_files() -> None:
    """Raise the limit of open files as far as this user may, up to `ENOUGH`: the usual 1,024 refuse clients early."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.debug("up to %d open files instead of %d", wanted, soft)


def choose_connections(asked: int | str) -> int:
    """``auto``: as many as the limit of open files leaves beside the process's other files.

    Raises: SettingsInvalid for more than that, or where it leaves none.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ENOUGH if isinstance(asked, str) else asked
    most = soft - OTHER_FILES
    chosen = min(most, ENOUGH) if isinstance(asked, str) else asked
    if not 1 <= chosen <= most:
        raise SettingsInvalid(
            f"connections = {asked} cannot be used: of the {soft} files that this user may have open (ulimit -n) the"
            f" process itself needs {OTHER_FILES} (--connections or XPEFT_CONNECTIONS)"
        )
    return chosen
