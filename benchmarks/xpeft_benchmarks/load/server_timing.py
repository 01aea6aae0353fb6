"""Where a server says the time of an answer went: its headers, in seconds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

# A list of NAME;PARAMETER=VALUE;…, whose values may be quoted (W3C Server Timing, section 4).
_METRIC: Final = re.compile(
    r"""\s*([!#$%&'*+.^_`|~\w-]+)((?:\s*;(?:[^",;]|"(?:\\.|[^"\\])*")*)*)\s*(?:,|$)""", re.ASCII
)
_PARAMETER: Final = re.compile(r""";\s*(\w+)\s*=\s*("(?:\\.|[^"\\])*"|[^",;]*)""", re.ASCII)
_OURS: Final = {"x-queue-time": "queue", "x-inference-time": "inference", "x-total-time": "server"}


def server_stages(headers: Mapping[str, str]) -> dict[str, float]:
    """Stage → seconds, of ``Server-Timing`` and of our server's other headers, which win; left out if not readable.

    Args:
        headers: names of them are looked up in lower case.
    """
    stages = parse_server_timing(headers.get("server-timing", ""))
    for header, stage in _OURS.items():
        seconds = _number(headers.get(header, ""))
        if seconds is not None:
            stages[stage] = seconds
    return stages


def parse_server_timing(value: str) -> dict[str, float]:
    """Name → seconds of each metric that has a duration; one that stands there twice counts with its sum."""
    stages: dict[str, float] = {}
    for name, parameters in _METRIC.findall(value):
        told = {parameter.lower(): text.strip(' "') for parameter, text in _PARAMETER.findall(parameters)}
        milliseconds = _number(told.get("dur", ""))
        if milliseconds is not None:
            stages[name] = stages.get(name, 0.0) + milliseconds / 1000
    return stages


def _number(text: str) -> float | None:
    """A finite one that is not negative."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None
