"""A tuning job as every replica sees it: what it is about, how far it is, how it ended. No examples are kept."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, NamedTuple, get_args

from ..errors import RecordDamaged

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
UNFINISHED: tuple[JobStatus, ...] = ("queued", "running")


class JobKey(NamedTuple):
    """A job's address: it does not exist for another tenant."""

    tenant: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One state of a job. ``created``, ``started``, ``finished``: seconds since 1970.

    ``owner`` says which process works on it; ``progress``, ``result`` and ``error`` are JSON objects in the words of
    whoever tunes.
    """

    tenant: str
    id: str
    profile: str
    owner: str
    status: JobStatus
    created: float
    started: float | None = None
    finished: float | None = None
    progress: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.status not in get_args(JobStatus):
            raise ValueError(f"status is {self.status!r}, it must be one of {', '.join(get_args(JobStatus))}")
        if (self.finished is None) is not (self.status in UNFINISHED):
            raise ValueError(f"finished is {self.finished!r} for status {self.status}")

    @property
    def key(self) -> JobKey:
        return JobKey(self.tenant, self.id)


_FIELDS: Final = frozenset(field.name for field in fields(JobRecord))


def new_job_id(created: float) -> str:
    """``job_``, the microseconds since 1970 as 14 digits and 96 random bits: ids sort by age and cannot be guessed."""
    return f"job_{round(created * 1e6):014x}{secrets.token_hex(12)}"


def encode_job(record: JobRecord) -> bytes:
    return json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":")).encode()


def decode_job(data: bytes) -> JobRecord:
    """Fields that only a newer server knows are left out. Raises: RecordDamaged."""
    try:
        return JobRecord(**{name: value for name, value in json.loads(data).items() if name in _FIELDS})
    except (ValueError, TypeError, AttributeError) as error:
        raise RecordDamaged(f"the record of a tuning job cannot be read: {error}") from error
