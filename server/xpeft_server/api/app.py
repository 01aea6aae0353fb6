"""The ASGI application: its routes, and what stands before them."""

from __future__ import annotations

from fastapi import FastAPI

from xpeft_profiles import ProfileStore
from xpeft_server.engine.metrics import Metrics
from xpeft_server.settings import Settings
from xpeft_server.tenant_limits import ONE_TENANT, LimitsOfTenants
from xpeft_server.version import VERSION

from .access.auth import Keys
from .access.gate import Gate
from .access.table import ACCESS, PUBLIC, UNMATCHED
from .audit.log import AuditLog
from .audit.middleware import Audit
from .classify import Classify
from .drain import Drain
from .engine_port import EnginePort
from .generation.generate import Generate
from .generation.text_requests import TextRequests
from .openai.chat import Chat
from .openai.completions import Completions
from .openai.models import Models
from .openapi import DocumentedApi
from .probes import Probes
from .profiles import Profiles
from .routes import (
    classify_operations,
    generation_operations,
    model_operations,
    probe_operations,
    profile_operations,
    tuning_operations,
)
from .tracing.spans import Spans
from .tracing.trace import Trace
from .tuning.jobs import Jobs
from .tuning.tuner_port import TunerPort


def create_app(
    settings: Settings,
    *,
    engine: EnginePort,
    store: ProfileStore,
    tuner: TunerPort,
    keys: Keys,
    metrics: Metrics,
    audit: AuditLog,
    tenants: LimitsOfTenants = ONE_TENANT,
    drain: Drain | None = None,
    spans: Spans | None = None,
) -> FastAPI:
    """Put the HTTP layer together. Whoever calls it starts and stops engine, store, tuner, keys and audit.

    Args:
        tenants: how many profiles each may have.
        drain: shared with whoever stops the server; a server without one never drains.
        spans: where requests are traced; None traces nothing.
    """
    drain = drain or Drain()
    app = DocumentedApi(title="X-PEFT server", version=VERSION)
    requests = TextRequests(settings, engine=engine, metrics=metrics)
    # Classify first: routes are tried in order.
    operations = [
        *classify_operations(Classify(settings, engine=engine, metrics=metrics)),
        *generation_operations(Generate(requests), Completions(requests), Chat(requests)),
        *profile_operations(Profiles(settings, engine=engine, store=store, tenants=tenants, metrics=metrics)),
        *tuning_operations(Jobs(settings, tuner=tuner)),
        *model_operations(Models(engine=engine, store=store)),
        *probe_operations(Probes(settings, engine=engine, store=store, metrics=metrics, drain=drain)),
    ]
    for operation in operations:
        app.add_operation(operation)
    metrics.expect_routes([*ACCESS, UNMATCHED])
    public = PUBLIC | {"/metrics"} if settings.metrics_open else PUBLIC
    app.add_middleware(Gate, keys=keys, public=public, drain=drain)
    app.add_middleware(Audit, log=audit)
    app.add_middleware(Trace, metrics=metrics, access_log=settings.access_log, spans=spans)
    return app
