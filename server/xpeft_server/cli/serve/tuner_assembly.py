"""Puts a server's tuner together from its settings."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from xpeft_profiles import ProfileStore
from xpeft_server.api.engine_port import EnginePort
from xpeft_server.engine.metrics import Metrics
from xpeft_server.jobs.publisher import Publisher
from xpeft_server.jobs.tuner import Tuner
from xpeft_server.log_lines import format_for
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import LimitsOfTenants

from .child_process import child_environment
from .tuning_checks import TuningChecks
from .worker_process import WorkerProcess


def build_tuner(
    settings: Settings,
    engine: EnginePort,
    store: ProfileStore,
    metrics: Metrics,
    *,
    tenants: LimitsOfTenants,
    environ: Mapping[str, str],
) -> Tuner:
    """The tuner of what the engine serves, not yet started; its worker is started by the first job.

    Args: environ: the server's own, of which the worker gets a part.
    """
    setup = {
        "plm": settings.plm,
        "bank": settings.bank,
        "device": engine.info.device.partition(":")[0],
        "share": settings.tuning_share,
        "log_level": settings.log_level,
        "log_format": format_for(settings.log_format, sys.stderr),
    }
    return Tuner(
        store,
        worker=WorkerProcess(setup, environ=child_environment(environ)),
        publisher=Publisher(store, geometry=engine.geometry, max_bytes=settings.max_profile_bytes, tenants=tenants),
        check=TuningChecks(
            engine.geometry,
            generates=engine.info.generates,
            most_rows=settings.max_tuning_rows,
            max_profile_bytes=settings.max_profile_bytes,
        ),
        most=settings.tuning_jobs_per_tenant,
        metrics=metrics,
    )
