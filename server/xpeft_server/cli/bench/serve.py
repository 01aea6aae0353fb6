"""``xpeft bench serve`` and ``tenants``: whole servers over HTTP."""

from __future__ import annotations

from ..screen import fail
from .options import (
    RANDOM_BANK,
    ApiKey,
    BankSource,
    Concurrency,
    Data,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    FloodSeconds,
    HttpProcesses,
    InfinityPython,
    Json,
    Load,
    Plm,
    Profiles,
    Registered,
    Requests,
    Rounds,
    Seconds,
    Seed,
    Sharers,
    Slots,
    Spread,
    Store,
    Tenants,
    Texts,
    Url,
)
from .report import chosen, failures_told, run, step


def serve(
    plm: Plm = "minilm",
    bank: BankSource = RANDOM_BANK,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    store: Store = None,
    slots: Slots = None,
    http_processes: HttpProcesses = 0,
    url: Url = None,
    api_key: ApiKey = None,
    profiles: Profiles = 32,
    tenants: Tenants = 32,
    popularity: Spread = "distinct",
    concurrency: Concurrency = "32,1",
    seconds: Seconds = 5.0,
    requests: Requests = None,
    rounds: Rounds = 5,
    texts: Texts = 512,
    data: Data = None,
    infinity_python: InfinityPython = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Measure a whole server over HTTP, one text per request, against its engine alone.

    Starts xpeft serve, uploads random profiles of many tenants, and sends POST /v1/classify from another process. A
    closed loop: each connection sends its next request as soon as the last one is answered. For latency at a given
    rate, and for servers elsewhere, use xpeft bench load.

    Example: xpeft bench serve --dtype bfloat16 --data reviews.jsonl.gz --json serve-bf16.jsonl
    """
    from xpeft_benchmarks.popularity import Popularity
    from xpeft_benchmarks.serve.measurement import ServePlan, run_serve
    from xpeft_benchmarks.whole_numbers import parse_whole_numbers

    from ..serve.assembly import choose_batch_tokens, choose_device

    with failures_told():
        if url is not None and not (store is None and slots is None and http_processes == 0):
            what = "--store, --slots and --http-processes"
            fail(f"{what} are of a server that is started here: leave them out with --url")
        device_name, dtype_name = chosen(device, dtype)
        plan = ServePlan(
            plm=plm,
            bank=bank,
            device=device_name,
            dtype=dtype_name,
            profiles=profiles,
            tenants=min(tenants, profiles),
            popularity=Popularity.parse(popularity),
            concurrencies=parse_whole_numbers("concurrency", concurrency, most=4096),
            seconds=seconds,
            requests=requests,
            rounds=rounds,
            texts=texts,
            store=store,
            url=url,
            api_key=api_key,
            slots=slots,
            http_processes=http_processes,
            infinity_python=infinity_python,
            seed=seed,
        )
        graph_tokens = choose_batch_tokens("auto", choose_device(device))
        run(
            "serve",
            plan.settings(),
            lambda pool: run_serve(plan, pool, graph_tokens=graph_tokens, on_step=step),
            data,
            json,
        )


def tenants(
    plm: Plm = "minilm",
    bank: BankSource = RANDOM_BANK,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    store: Store = None,
    slots: Slots = None,
    http_processes: HttpProcesses = 0,
    registered: Registered = 100_000,
    sharers: Sharers = 10,
    load: Load = 0.6,
    seconds: Seconds = 10.0,
    flood_seconds: FloodSeconds = 30.0,
    rounds: Rounds = 5,
    texts: Texts = 4096,
    data: Data = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Measure a whole server with very many profiles, a noisy neighbour, and overload.

    Fills a store, starts xpeft serve, and sends POST /v1/classify: for all profiles against a few of them; for
    profiles that are only in the store; one tenant with ten times its share beside others within theirs (open loop);
    and five times the server's capacity.

    Example: xpeft bench tenants --registered 1000000 --data reviews.jsonl.gz --json tenants.jsonl
    """
    from xpeft_benchmarks.tenants.measurement import run_tenants
    from xpeft_benchmarks.tenants.plan import TenantsPlan

    with failures_told():
        device_name, dtype_name = chosen(device, dtype)
        plan = TenantsPlan(
            plm=plm,
            bank=bank,
            device=device_name,
            dtype=dtype_name,
            store=store,
            registered=registered,
            tenants=sharers,
            load=load,
            seconds=seconds,
            flood_seconds=flood_seconds,
            rounds=rounds,
            texts=texts,
            slots=slots,
            http_processes=http_processes,
            seed=seed,
        )
        run("tenants", plan.settings(), lambda pool: run_tenants(plan, pool, on_step=step), data, json)
