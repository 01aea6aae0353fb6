"""Builds the device thread's profiler from the settings."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Final

from xpeft_server.output_file import check_writable
from xpeft_server.settings import Settings, SettingsInvalid

if TYPE_CHECKING:
    from xpeft_server.engine.device.profiler import DeviceProfiler


# A severity at which the profiler's library is silent: its lines would stand among those of the log.
_QUIET: Final = "6"


def prepare_profile_trace(settings: Settings, environ: MutableMapping[str, str]) -> None:
    """To be called before torch is imported. Raises: SettingsInvalid, naming the file, if it cannot be written.

    Args:
        environ: this process's own; a ``KINETO_LOG_LEVEL`` in it holds.
    """
    path = settings.profile_trace
    if path is None:
        return
    try:
        check_writable(path)
    except OSError as error:
        reason = error.strerror or error
        raise SettingsInvalid(f"profile_trace = {str(path)!r} cannot be written: {reason}") from None
    environ.setdefault("KINETO_LOG_LEVEL", _QUIET)


def build_profiler(settings: Settings) -> DeviceProfiler | None:
    """None if nothing is profiled."""
    if settings.profile_trace is None:
        return None
    from xpeft_server.engine.device.profiler import DeviceProfiler

    return DeviceProfiler(settings.profile_trace, settings.profile_batches)
