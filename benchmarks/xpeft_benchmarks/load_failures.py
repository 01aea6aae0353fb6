"""Everything that `xpeft bench load` can be refused for, without loading torch: so it starts in no time."""

from __future__ import annotations

from typing import Final

from xpeft_server.model.bank_errors import BankError
from xpeft_server.model.errors import ModelError

from .lengths import LengthsInvalid
from .load import BenchExtraMissing
from .load_plan import RatesInvalid, TargetsAlike
from .load_plot import PlotInvalid
from .popularity import PopularityInvalid
from .server_client import ServerRefused
from .server_process import ServerFailed
from .slo import SloInvalid
from .stretches import RequestsFailed
from .texts import TextsInvalid
from .workers import WorkerFailed

LOAD_FAILURES: Final = (
    BankError,
    BenchExtraMissing,
    LengthsInvalid,
    ModelError,
    PlotInvalid,
    PopularityInvalid,
    RatesInvalid,
    RequestsFailed,
    ServerFailed,
    ServerRefused,
    SloInvalid,
    TargetsAlike,
    TextsInvalid,
    WorkerFailed,
)
