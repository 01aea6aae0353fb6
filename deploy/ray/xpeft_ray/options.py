"""What the application is told: the settings of ``xpeft serve`` that mean something here, and how many replicas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_server.settings_source import PREFIX, load_settings

# Serve's proxies decide where and how requests come in.
PROXYS: Final = (
    "host",
    "port",
    "tls_certificate",
    "tls_key",
    "tls_client_ca",
    "connections",
    "http_processes",
    "send_seconds",
    "idle_seconds",
)
_PATHS: Final = ("api_keys", "tenant_limits", "audit_log")


class Scale(BaseModel):
    """How many engines, and what each of them gets.

    Args:
        target_ongoing_requests: per replica; beyond it Serve starts another, up to ``max_replicas``.
        cpus_per_replica: also the threads that a model on CPU computes with.
        gpus_per_replica: where the device is cuda; a part lets replicas share one.
        ingress_replicas: processes that read and answer HTTP.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_replicas: int = Field(default=1, ge=1, le=10_000)
    max_replicas: int = Field(default=1, ge=1, le=10_000)
    target_ongoing_requests: float = Field(default=32.0, gt=0)
    cpus_per_replica: float = Field(default=1.0, gt=0)
    gpus_per_replica: float = Field(default=1.0, gt=0)
    ingress_replicas: int = Field(default=1, ge=1, le=1_000)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas = {self.min_replicas} is more than max_replicas = {self.max_replicas}")
        return self


def read_options(arguments: Mapping[str, object], environ: Mapping[str, str]) -> tuple[Settings, Scale]:
    """The application's arguments; what is not among them comes from ``XPEFT_…`` or is the default.

    Args:
        arguments: fields of `Settings` and of `Scale`.
        environ: of the process that builds the application. The variables of `PROXYS` are meant for ``xpeft serve``,
            which an image may set up by the same environment, and are left aside.
    Raises: SettingsInvalid, naming key and value.
    """
    scale = _scale({name: value for name, value in arguments.items() if name in Scale.model_fields})
    told = {name: value for name, value in arguments.items() if name not in Scale.model_fields}
    for name in PROXYS:
        if name in told:
            raise SettingsInvalid(f"{name} = {told[name]!r} is for Ray Serve's proxies to know: see http_options")
    aside = {PREFIX + name.upper() for name in PROXYS}
    settings = load_settings(told, {name: value for name, value in environ.items() if name not in aside})
    if settings.device == "auto":
        raise SettingsInvalid("device = 'auto' cannot be used: give cpu or cuda, so that Ray knows what replicas need")
    _check_tuning(settings)
    _check_places(settings)
    return settings.model_copy(update={"tuning_jobs_per_tenant": 0}), scale


def check_reach(settings: Settings, nodes: int) -> None:
    """Raises: SettingsInvalid if the store cannot be the same one on so many nodes."""
    if settings.store.startswith("sqlite:") and nodes > 1:
        raise SettingsInvalid(f"store = {settings.store!r} is one machine's, and Ray has {nodes} nodes: give redis://")


def _scale(values: Mapping[str, object]) -> Scale:
    try:
        return Scale.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        said = str(first["msg"]).removeprefix("Value error, ")
        where = f"{first['loc'][0]} = {first['input']!r} cannot be used: " if first["loc"] else ""
        raise SettingsInvalid(where + said) from None


def _check_tuning(settings: Settings) -> None:
    given = settings.tuning_jobs_per_tenant
    if "tuning_jobs_per_tenant" in settings.model_fields_set and given:
        raise SettingsInvalid(f"tuning_jobs_per_tenant = {given} cannot be used: on Ray Serve no profiles are tuned")


def _check_places(settings: Settings) -> None:
    """Replicas run in any folder, in processes of their own, on any node."""
    store = settings.store_shown
    if settings.store.startswith("memory:"):
        raise SettingsInvalid(f"store = {store!r} is one process's own: replicas share a redis:// or a sqlite:////FILE")
    if settings.store.startswith("sqlite:") and not settings.store.startswith("sqlite:////"):
        raise SettingsInvalid(f"store = {store!r} is relative to a folder: give sqlite:////FILE, its whole path")
    if settings.profile_trace is not None:
        raise SettingsInvalid(f"profile_trace = {str(settings.profile_trace)!r} is one process's file: use xpeft serve")
    for name in _PATHS:
        path = getattr(settings, name)
        if path is not None and not path.is_absolute():
            raise SettingsInvalid(f"{name} = {str(path)!r} is relative to a folder: give its whole path")
    if not settings.bank.startswith(("random:", "/")):
        raise SettingsInvalid(f"bank = {settings.bank!r} is relative to a folder: give its whole path")
