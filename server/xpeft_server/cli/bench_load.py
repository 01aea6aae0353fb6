"""``xpeft bench load``: how a server keeps up with requests that do not wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import typer

from .bench_load_options import (
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
from .bench_options import (
    RANDOM_BANK,
    BankSource,
    Data,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
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
from .bench_report import failures_told, run, step, writable
from .screen import fail, say, show_rows

if TYPE_CHECKING:
    from xpeft_benchmarks.load import Sweep
    from xpeft_benchmarks.load_plan import TargetPlan
    from xpeft_benchmarks.results import Result
    from xpeft_benchmarks.slo import Slo

_OF_THE_STARTED: Final = ("bank", "dtype", "device", "store", "slots", "tenants")
_LIMITS: Final = {Kind.CLASSIFY: "100ms", Kind.GENERATE: "500ms"}


def load(
    context: typer.Context,
    url: LoadUrl = None,
    api_key: AdminKey = None,
    name: Name = None,
    against: Against = None,
    against_api_key: AgainstKey = None,
    against_name: Name = None,
    kind: LoadKind = Kind.CLASSIFY,
    rates: Rates = "auto",
    seconds: LoadSeconds = 10.0,
    rounds: Rounds = 3,
    slo: SloTime = None,
    slo_per_token: SloPerToken = None,
    profiles: Profiles = 32,
    popularity: Spread = "distinct",
    texts: Texts = 512,
    data: Data = None,
    lengths: Lengths = None,
    new_tokens: NewTokens = 32,
    plm: Plm = "minilm",
    bank: BankSource = RANDOM_BANK,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    store: Store = None,
    slots: Slots = None,
    tenants: Tenants = 32,
    seed: Seed = 0,
    plot: Plot = None,
    json: Json = None,
) -> None:
    """Latency and goodput of a running server, or of two beside one another, at rising rates of requests.

    An open loop: requests come when they are due (Poisson), answered or not, and latency counts from then. Without
    --url it starts xpeft serve as bench serve does. Two targets get the same requests at the same moments, in turns.

    Example: xpeft bench load --url https://xpeft.internal --rates 50,100,200 --slo 100ms --plot load.png
    """
    from xpeft_benchmarks.load import run_load
    from xpeft_benchmarks.load_failures import LOAD_FAILURES
    from xpeft_benchmarks.load_plan import Kind as Work
    from xpeft_benchmarks.load_plan import LoadPlan, parse_rates
    from xpeft_benchmarks.load_plot import check_plot, write_plot
    from xpeft_benchmarks.load_results import results_of
    from xpeft_benchmarks.popularity import Popularity

    _check_options(context, kind, url=url, against=against)
    with failures_told(LOAD_FAILURES):
        if plot is not None:
            check_plot(plot)
            writable(plot)
        server: dict[str, object] = {"--plm": plm, "--bank": bank, "--device": device, "--dtype": dtype}
        if slots is not None:
            server["--slots"] = slots
        plan = LoadPlan(
            targets=_targets((url, api_key, name), (against, against_api_key, against_name)),
            kind=Work(kind),
            rates=parse_rates(rates),
            seconds=seconds,
            rounds=rounds,
            profiles=profiles,
            popularity=Popularity.parse(popularity),
            texts=texts,
            slo=_slo(slo or _LIMITS[kind], slo_per_token),
            server={option: str(value) for option, value in server.items()},
            tenants=min(tenants, profiles),
            plm=plm,
            store=store,
            lengths=lengths,
            new_tokens=new_tokens,
            seed=seed,
        )
        sweeps: list[Sweep] = []

        def measure(pool: Sequence[str]) -> list[Result]:
            sweeps.append(run_load(plan, pool, on_step=step))
            return results_of(sweeps[0], plan.slo, f"POST /v1/{plan.kind}")

        run("load", plan.settings(), measure, data, json, show=_show)
        if plot is not None:
            write_plot(plot, sweeps[0], plan)
            say(f"wrote {plot}")


def _check_options(context: typer.Context, kind: Kind, *, url: str | None, against: str | None) -> None:
    """End where an option was typed that would change nothing."""

    def refuse(names: Sequence[str], why: str) -> None:
        for name in names:
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                fail(f"--{name.replace('_', '-')} {why}")

    if url is not None:
        refuse(_OF_THE_STARTED, "is of a server that is started here: leave it out with --url")
    else:
        refuse(("api_key",), "is of a server that runs already: give its --url")
    if against is None:
        refuse(("against_api_key", "against_name"), "is of a second server: give its URL with --against")
    if kind is Kind.CLASSIFY:
        refuse(("new_tokens", "slo_per_token"), "is of text that is written: it needs --kind generate")


def _targets(*asked: tuple[str | None, str | None, str | None]) -> tuple[TargetPlan, ...]:
    """Of url, key and name; only the first has no url where a server is started, the second where there is none."""
    from xpeft_benchmarks.load_plan import TargetPlan

    (url, key, name), (against, against_key, against_name) = asked
    first = TargetPlan(name or (urlsplit(url).netloc if url else "xpeft serve"), url, key if url else None)
    if against is None:
        return (first,)
    return first, TargetPlan(against_name or urlsplit(against).netloc, against, against_key)


def _slo(seconds: str, per_token: str | None) -> Slo:
    from xpeft_benchmarks.slo import Slo, parse_duration

    limit = parse_duration("slo", seconds)
    return Slo(limit) if per_token is None else Slo(limit, parse_duration("slo-per-token", per_token))


def _show(results: Sequence[Result]) -> None:
    from xpeft_benchmarks.load_tables import load_tables

    for number, table in enumerate(load_tables(results)):
        if number:
            say("")
        show_rows(table.columns, table.rows)
