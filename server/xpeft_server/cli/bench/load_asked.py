"""What was asked of ``xpeft bench load``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import typer

from ..https_options import refuse_https_options
from ..screen import fail
from ..setting_options import is_typed, option_name
from .load_options import (
    AdminKey,
    Against,
    AgainstKey,
    Kind,
    Lengths,
    LoadKind,
    LoadSeconds,
    LoadUrl,
    Name,
    NewTokens,
    Plot,
    Rates,
    SloPerToken,
    SloTime,
)
from .options import (
    RANDOM_BANK,
    BankSource,
    Data,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    HttpProcesses,
    Json,
    Plm,
    Profiles,
    Rounds,
    Seed,
    Slots,
    Spread,
    Store,
    Tenants,
    Texts,
)

if TYPE_CHECKING:
    from xpeft_benchmarks.load.plan import LoadPlan, TargetPlan
    from xpeft_benchmarks.load.slo import Slo
    from xpeft_server.client_tls import ClientTls

_OF_THE_STARTED: Final = ("bank", "dtype", "device", "store", "slots", "http_processes", "tenants")
_LIMITS: Final = {Kind.CLASSIFY: "100ms", Kind.GENERATE: "500ms"}


@dataclass(frozen=True, kw_only=True)
class AskedLoad:
    """A field is an option."""

    url: LoadUrl = None
    api_key: AdminKey = None
    name: Name = None
    against: Against = None
    against_api_key: AgainstKey = None
    against_name: Name = None
    kind: LoadKind = Kind.CLASSIFY
    rates: Rates = "auto"
    seconds: LoadSeconds = 10.0
    rounds: Rounds = 3
    slo: SloTime = None
    slo_per_token: SloPerToken = None
    profiles: Profiles = 32
    popularity: Spread = "distinct"
    texts: Texts = 512
    data: Data = None
    lengths: Lengths = None
    new_tokens: NewTokens = 32
    plm: Plm = "minilm"
    bank: BankSource = RANDOM_BANK
    dtype: DtypeOption = Dtype.AUTO
    device: DeviceOption = Device.AUTO
    store: Store = None
    slots: Slots = None
    http_processes: HttpProcesses = 0
    tenants: Tenants = 32
    seed: Seed = 0
    plot: Plot = None
    json: Json = None

    def check(self, context: typer.Context) -> None:
        """End the command where an option was typed that would change nothing."""

        def refuse(names: Sequence[str], why: str) -> None:
            for name in names:
                if is_typed(context, name):
                    fail(f"{option_name(name)} {why}")

        if self.url is not None:
            refuse(_OF_THE_STARTED, "is for a server that this command starts: leave it out, or --url")
        else:
            refuse(("api_key",), "is of a server that runs already: give its --url")
        if self.against is None:
            refuse(("against_api_key", "against_name"), "is of a second server: give its URL with --against")
        if not any(url.lower().startswith("https:") for url in (self.url, self.against) if url is not None):
            refuse_https_options(context, "is of a server that runs already: give its --url, https://…")
        if self.kind is Kind.CLASSIFY:
            refuse(("new_tokens", "slo_per_token"), "is of text that is written: it needs --kind generate")

    def plan(self, tls: ClientTls) -> LoadPlan:
        """Args: tls: for those of the servers that speak https. Raises: one of `LOAD_FAILURES`."""
        from xpeft_benchmarks.load.plan import Kind as Work
        from xpeft_benchmarks.load.plan import LoadPlan, parse_rates
        from xpeft_benchmarks.popularity import Popularity

        return LoadPlan(
            targets=self._targets(),
            tls=tls,
            kind=Work(self.kind),
            rates=parse_rates(self.rates),
            seconds=self.seconds,
            rounds=self.rounds,
            profiles=self.profiles,
            popularity=Popularity.parse(self.popularity),
            texts=self.texts,
            slo=self._slo(),
            server=self._server(),
            tenants=min(self.tenants, self.profiles),
            plm=self.plm,
            store=self.store,
            lengths=self.lengths,
            new_tokens=self.new_tokens,
            seed=self.seed,
        )

    def _targets(self) -> tuple[TargetPlan, ...]:
        """The first is started here if it has no URL; the second is there if it has one."""
        from xpeft_benchmarks.load.plan import TargetPlan

        name = self.name or (urlsplit(self.url).netloc if self.url else "xpeft serve")
        first = TargetPlan(name, self.url, self.api_key if self.url else None)
        if self.against is None:
            return (first,)
        return first, TargetPlan(self.against_name or urlsplit(self.against).netloc, self.against, self.against_api_key)

    def _slo(self) -> Slo:
        from xpeft_benchmarks.load.slo import Slo, parse_duration

        limit = parse_duration("slo", self.slo or _LIMITS[self.kind])
        return (
            Slo(limit)
            if self.slo_per_token is None
            else Slo(limit, parse_duration("slo-per-token", self.slo_per_token))
        )

    def _server(self) -> dict[str, str]:
        """The options of one that is started here."""
        from xpeft_benchmarks.processes.xpeft_target import serve_options

        return serve_options(self.plm, self.bank, str(self.device), str(self.dtype), self.slots, self.http_processes)
