"""What the processes of a server log, and how."""

from __future__ import annotations

import logging
import sys

from xpeft_server.log_lines import configure_logging, format_for
from xpeft_server.settings import Settings


def configure_server_logging(settings: Settings) -> None:
    configure_logging(format_for(settings.log_format, sys.stderr), settings.log_level, sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Who asks for it gets it, whatever else is logged.
    logging.getLogger("xpeft.access").setLevel(logging.INFO)
