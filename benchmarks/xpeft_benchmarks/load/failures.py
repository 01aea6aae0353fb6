"""Everything that `xpeft bench load` can be refused for. It loads no torch, so that the command starts fast."""

from __future__ import annotations

from typing import Final

from xpeft_server.model.banks.errors import BankError
from xpeft_server.model.errors import ModelError

from ..popularity import PopularityInvalid
from ..processes.server_client import ServerRefused
from ..processes.server_process import ServerFailed
from ..processes.workers import WorkerFailed
from ..stretches import RequestsFailed
from ..texts import TextsInvalid
from .lengths import LengthsInvalid
from .plan import RatesInvalid, TargetsAlike
from .plot import PlotInvalid
from .slo import SloInvalid
from .sweep import BenchExtraMissing

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
