"""What a tenant may take: ``{"default": {…}, "tenants": {TENANT: {…}}}``, each with fields of `TenantLimits`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from .settings import Settings
from .watched_file import WatchedFile

Rate = Annotated[float, Field(ge=1e-5)]  # about one a day: how long to wait for the next can still be told
Count = Annotated[int, Field(ge=0, lt=1 << 63)]  # SQLite's integers have 64 bits
Model = TypeVar("Model", bound=BaseModel)
TenantName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class LimitsInvalid(Exception):
    """The file of limits cannot be used; the message names the file, the field and the value."""


class TenantLimits(BaseModel):
    """None is no limit.

    Args:
        weight: the tenant's part of a busy device, beside the weights of the others who want it.
        requests_per_second: to classify or generate; a second's worth may come at once.
        tokens_per_second: of prompts and of generated text; who overdrew waits until it is made up for.
        concurrent_requests: accepted and not yet answered.
        queue_share: of the room for waiting requests, the largest part that the tenant may hold of what others leave.
        max_profiles: in the store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    weight: float = Field(default=1.0, ge=0.01, le=100)
    requests_per_second: Rate | None = None
    tokens_per_second: Rate | None = None
    concurrent_requests: Count | None = None
    queue_share: float = Field(default=0.5, gt=0, le=1)
    max_profiles: Count | None = None


class LimitsOfTenants(Protocol):
    """Asked for every request; from any thread."""

    def of(self, tenant: str) -> TenantLimits: ...


@dataclass(frozen=True, slots=True)
class TenantTable:
    """The limits of the tenants that have their own, and of all others."""

    default: TenantLimits = field(default_factory=TenantLimits)
    tenants: Mapping[str, TenantLimits] = field(default_factory=dict)

    def of(self, tenant: str) -> TenantLimits:
        return self.tenants.get(tenant, self.default)


# A single tenant has nobody to leave room for.
ONE_TENANT: Final = TenantTable(TenantLimits(queue_share=1.0))


class LimitsFile:
    """The limits in a file, kept in step with it.

    Args:
        in_force: the limits until the file can be used, if it cannot at the start.
    Raises: LimitsInvalid if it cannot be used at the start, and nothing is in force.
    """

    def __init__(self, path: Path, *, in_force: TenantTable | None = None) -> None:
        self.file = WatchedFile(
            path, read=read_limits, invalid=LimitsInvalid, content="limits of tenants", in_force=in_force
        )

    def of(self, tenant: str) -> TenantLimits:
        return self.file.value.of(tenant)

    async def watch(self) -> None:
        """Keep in step with the file until cancelled."""
        await self.file.watch()


def choose_tenant_limits(settings: Settings, *, in_force: TenantTable | None = None) -> LimitsOfTenants:
    """The limits of the file; without one, a fair share for each tenant. Raises: as `LimitsFile`."""
    if settings.tenant_limits is not None:
        return LimitsFile(settings.tenant_limits, in_force=in_force)
    return ONE_TENANT if settings.api_keys is None else TenantTable()


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    default: dict[str, Any] = {}
    tenants: dict[TenantName, dict[str, Any]] = {}


def read_limits(path: Path) -> TenantTable:
    """Raises: LimitsInvalid if the file is missing, unreadable or broken."""
    try:
        return parse_limits(path.read_bytes())
    except OSError as error:
        raise LimitsInvalid(f"{path}: {error.strerror or error}") from None
    except LimitsInvalid as error:
        raise LimitsInvalid(f"{path}: {error}") from None


def parse_limits(data: bytes) -> TenantTable:
    """A tenant has the default's fields where it has none of its own.

    Raises: LimitsInvalid, naming the field and the value.
    """
    try:
        document = _checked(_Document, json.loads(data), "")
    except ValueError as error:
        raise LimitsInvalid(f"not JSON: {error}") from None
    except RecursionError:
        raise LimitsInvalid("its JSON is nested too deeply") from None
    default = _checked(TenantLimits, document.default, "default")
    tenants = {
        name: _checked(TenantLimits, {**document.default, **fields}, f"tenants.{name}")
        for name, fields in document.tenants.items()
    }
    return TenantTable(default, tenants)


def _checked(model: type[Model], value: object, where: str) -> Model:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join([*filter(None, [where]), *map(str, first["loc"])]) or "the file"
        unknown = first["type"] == "extra_forbidden"
        reason = f"there is no such field; there are {', '.join(model.model_fields)}" if unknown else first["msg"]
        raise LimitsInvalid(f"{place} = {first['input']!r} cannot be used: {reason}") from None
