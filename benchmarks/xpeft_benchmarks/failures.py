"""Everything that a benchmark can be refused for (`bench load` has its own); all other exceptions are bugs."""

from __future__ import annotations

from typing import Final

from xpeft_profiles import ProfileStoreError
from xpeft_server.model.bank_errors import BankError
from xpeft_server.model.errors import ModelError

from .connection import ExchangeFailed
from .engine_plan import ProfilesInvalid
from .peft_mixed import PeftUnavailable
from .popularity import PopularityInvalid
from .serve import ConcurrencyInvalid
from .server_client import ServerRefused
from .server_process import ServerFailed
from .shapes import ShapeUnknown, TokensInvalid
from .stretches import RequestsFailed
from .texts import TextsInvalid
from .workers import WorkerFailed

FAILURES: Final = (
    BankError,
    ConcurrencyInvalid,
    ExchangeFailed,
    ModelError,
    PeftUnavailable,
    PopularityInvalid,
    ProfileStoreError,
    ProfilesInvalid,
    RequestsFailed,
    ServerFailed,
    ServerRefused,
    ShapeUnknown,
    TextsInvalid,
    TokensInvalid,
    WorkerFailed,
)
