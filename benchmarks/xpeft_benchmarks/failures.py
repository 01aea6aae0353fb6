"""Everything that a benchmark can be refused for (`bench load` has its own); all other exceptions are bugs."""

from __future__ import annotations

from typing import Final

from xpeft_profiles import ProfileStoreError
from xpeft_server.model.banks.errors import BankError
from xpeft_server.model.errors import ModelError

from .ops.peft_mixed import PeftUnavailable
from .popularity import PopularityInvalid
from .processes.connection import ExchangeFailed
from .processes.server_client import ServerRefused
from .processes.server_process import ServerFailed
from .processes.workers import WorkerFailed
from .shapes import ShapeUnknown, TokensInvalid
from .stretches import RequestsFailed
from .texts import TextsInvalid
from .whole_numbers import NumbersInvalid

FAILURES: Final = (
    BankError,
    ExchangeFailed,
    ModelError,
    NumbersInvalid,
    PeftUnavailable,
    PopularityInvalid,
    ProfileStoreError,
    RequestsFailed,
    ServerFailed,
    ServerRefused,
    ShapeUnknown,
    TextsInvalid,
    TokensInvalid,
    WorkerFailed,
)
