"""``xpeft bench``: measure this machine, in ratios that hold elsewhere too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from .bench_options import (
    RANDOM_BANK,
    RANDOM_NARROW_BANK,
    Adapters,
    ApiKey,
    BankSource,
    Batch,
    Concurrency,
    Continuous,
    Data,
    DecoderPlm,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    FilledStore,
    FloodSeconds,
    InfinityPython,
    Json,
    Load,
    Peft,
    PeftRank,
    Plm,
    Profiles,
    Prompts,
    Registered,
    Requests,
    Rounds,
    Seconds,
    Seed,
    ShapeName,
    Sharers,
    Slots,
    Spread,
    SpreadList,
    Store,
    StoredProfiles,
    StoreTenants,
    Tenants,
    Texts,
    Tokens,
    Url,
    Width,
)
from .screen import fail, say, show_rows

if TYPE_CHECKING:
    from xpeft_benchmarks.results import Result

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Measure speed. Every number comes with a ratio to something that was measured in the same run, in"
    " interleaved rounds: the ratio holds while the machine's speed comes and goes. Let nothing else run.",
)


@app.command()
def ops(
    plm: Plm = "minilm",
    bank: BankSource = RANDOM_BANK,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    batch: Batch = 32,
    rounds: Rounds = 10,
    profiles: Profiles = 32,
    popularity: SpreadList = "distinct,uniform,zipf:1.5,identical",
    texts: Texts = 256,
    data: Data = None,
    peft: Peft = False,
    peft_rank: PeftRank = 48,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Batches of many profiles against the bare language model, in one process, without HTTP.

    Forward to logits; tokenising is a line of its own. Also: padded batches as transformers runs them, the
    cost of profiles that are not resident, and each operator alone.

    Example: xpeft bench ops --dtype bfloat16 --data reviews.jsonl.gz --json ops-bf16.jsonl
    """
    from xpeft_benchmarks.ops import OpsPlan, run_ops
    from xpeft_benchmarks.popularity import parse_popularities

    with _failures_told():
        device_name, dtype_name = _chosen(device, dtype)
        plan = OpsPlan(
            plm=plm,
            bank=bank,
            device=device_name,
            dtype=dtype_name,
            batch=batch,
            rounds=rounds,
            profiles=profiles,
            texts=texts,
            popularities=parse_popularities(popularity),
            peft_rank=peft_rank if peft else 0,
            seed=seed,
        )
        _run("ops", plan.settings(), lambda pool: run_ops(plan, pool, on_step=_step), data, json)


@app.command()
def shapes(
    shape: ShapeName = "bert-base",
    tokens: Tokens = "",
    adapters: Adapters = 100,
    width: Width = 48,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    rounds: Rounds = 10,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Whole forwards of a known model shape with random weights: bare, every sequence another profile, all the same.

    Also with profiles made from their masks first. On a GPU each is one CUDA graph.

    Example: xpeft bench shapes --shape bert-base --tokens 512,2048 --json bert-base.jsonl
    """
    from xpeft_benchmarks.shapes import ShapesPlan, parse_tokens, run_shapes, shape_of

    with _failures_told():
        device_name, dtype_name = _chosen(device, dtype)
        chosen = shape_of(shape)
        plan = ShapesPlan(
            shape=shape,
            adapters=adapters,
            width=width,
            tokens=parse_tokens(tokens, chosen.sequence),
            device=device_name,
            dtype=dtype_name,
            rounds=rounds,
            seed=seed,
        )
        _report("shapes", plan.settings(), lambda: run_shapes(plan, chosen, on_step=_step), json)


@app.command()
def serve(
    plm: Plm = "minilm",
    bank: BankSource = RANDOM_BANK,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    store: Store = None,
    slots: Slots = None,
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
    """A whole server over HTTP, one text a request, against its engine alone.

    Starts xpeft serve, uploads random profiles of many tenants, and sends POST /v1/classify from another
    process, each connection its next request as soon as the last one is answered.

    Example: xpeft bench serve --dtype bfloat16 --data reviews.jsonl.gz --json serve-bf16.jsonl
    """
    from xpeft_benchmarks.popularity import Popularity
    from xpeft_benchmarks.serve import ServePlan, parse_concurrencies, run_serve

    with _failures_told():
        if url is not None and not (store is None and slots is None):
            fail("--store and --slots are of a server that is started here: leave them out with --url")
        device_name, dtype_name = _chosen(device, dtype)
        plan = ServePlan(
            plm=plm,
            bank=bank,
            device=device_name,
            dtype=dtype_name,
            profiles=profiles,
            tenants=min(tenants, profiles),
            popularity=Popularity.parse(popularity),
            concurrencies=parse_concurrencies(concurrency),
            seconds=seconds,
            requests=requests,
            rounds=rounds,
            texts=texts,
            store=store,
            url=url,
            api_key=api_key,
            slots=slots,
            infinity_python=infinity_python,
            seed=seed,
        )
        _run("serve", plan.settings(), lambda pool: run_serve(plan, pool, on_step=_step), data, json)


@app.command()
def tenants(
    plm: Plm = "minilm",
    bank: BankSource = RANDOM_BANK,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    store: Store = None,
    slots: Slots = None,
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
    """A whole server with very many profiles, a neighbour who asks for too much, and a flood.

    Fills a store, starts xpeft serve, and sends POST /v1/classify: all profiles against a few of them, profiles that
    are only in the store, one tenant with ten times its share beside others within theirs (requests come when they
    are due, answered or not), and five times what the server can do.

    Example: xpeft bench tenants --registered 1000000 --data reviews.jsonl.gz --json tenants.jsonl
    """
    from xpeft_benchmarks.tenants import TenantsPlan, run_tenants

    with _failures_told():
        device_name, dtype_name = _chosen(device, dtype)
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
            seed=seed,
        )
        _run("tenants", plan.settings(), lambda pool: run_tenants(plan, pool, on_step=_step), data, json)


@app.command()
def generate(
    plm: DecoderPlm,
    bank: BankSource = RANDOM_NARROW_BANK,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    requests: Prompts = 64,
    profiles: Profiles = 32,
    continuous: Continuous = True,
    rounds: Rounds = 5,
    data: Data = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """The generation engine against transformers: padded batches of 32, and continuous batching.

    Prompts of 15 to 70 tokens, greedy, no answer ends early. Once with all requests there at once, 48 new tokens
    each; once with requests that come one after the other, 8 to 96 new tokens.

    Example: xpeft bench generate --plm ./llama --dtype bfloat16 --data reviews.jsonl.gz --json generate-bf16.jsonl
    """
    from xpeft_benchmarks.generate import GeneratePlan, run_generate

    from .assembly import choose_batch_tokens, choose_device

    with _failures_told():
        device_name, dtype_name = _chosen(device, dtype)
        plan = GeneratePlan(
            plm=plm,
            bank=bank,
            device=device_name,
            dtype=dtype_name,
            requests=requests,
            profiles=profiles,
            rounds=rounds,
            max_batch_tokens=choose_batch_tokens("auto", choose_device(device)),
            continuous=continuous,
            seed=seed,
        )
        _run("generate", plan.settings(), lambda pool: run_generate(plan, pool, on_step=_step), data, json)


@app.command()
def stores(
    store: FilledStore,
    profiles: StoredProfiles = 10_000,
    tenants: StoreTenants = 1,
    rounds: Rounds = 10,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """A profile store with very many profiles: import, room, and how fast it is asked.

    The profiles are random ones for MiniLM and a bank of 100 adapters: hard masks and a shared head, 1.5 KB a file.

    Example: xpeft bench stores --store redis://localhost:6379 --profiles 1000000 --json stores-redis.jsonl
    """
    from xpeft_benchmarks.store_size import StoreInvalid
    from xpeft_benchmarks.stores import StoresPlan, run_stores
    from xpeft_profiles import ProfileStoreError

    plan = StoresPlan(store=store, profiles=profiles, tenants=min(tenants, profiles), rounds=rounds, seed=seed)
    try:
        _report("stores", plan.settings(), lambda: run_stores(plan, on_step=_step), json)
    except (ProfileStoreError, StoreInvalid) as error:
        # Not by the failures of all benchmarks: to know them takes torch, which shall not count as memory here.
        fail(str(error))


def _run(
    name: str,
    settings: dict[str, object],
    measure: Callable[[Sequence[str]], list[Result]],
    data: Path | None,
    json: Path | None,
) -> None:
    """Read the texts, then measure and report."""
    from xpeft_benchmarks.texts import example_texts, read_texts

    pool = example_texts() if data is None else read_texts(data)
    settings = {**settings, "data": "examples" if data is None else data.name}
    _report(name, settings, lambda: measure(pool), json)


def _report(name: str, settings: dict[str, object], measure: Callable[[], list[Result]], json: Path | None) -> None:
    """Measure, show the table, write the lines."""
    from xpeft_benchmarks.command_line import shown_command, shown_word
    from xpeft_benchmarks.results import TABLE_COLUMNS, Context, table_rows, write_lines

    settings = {name: shown_word(value) if isinstance(value, str) else value for name, value in settings.items()}
    context = Context.now(name, shown_command(sys.argv[1:]), settings)
    results = measure()
    show_rows(TABLE_COLUMNS, table_rows(results))
    say(f"{context.machine['cpu']}, {context.machine['cores']} cores, {context.date}")
    if json is not None:
        try:
            write_lines(json, results, context)
        except OSError as error:
            fail(f"{json} cannot be written: {error.strerror or error}")
        say(f"wrote {json}")


def _chosen(device: Device, dtype: Dtype) -> tuple[str, str]:
    """What ``auto`` means, as ``xpeft serve`` means it."""
    from .assembly import choose_device, choose_dtype

    chosen = choose_device(device)
    return chosen.type, str(choose_dtype(dtype, chosen)).removeprefix("torch.")


def _step(message: str) -> None:
    typer.echo(message, err=True)


@contextmanager
def _failures_told() -> Iterator[None]:
    """Turn what a run can be refused for into one line."""
    from xpeft_benchmarks.failures import FAILURES
    from xpeft_server.settings import SettingsInvalid

    try:
        yield
    except (*FAILURES, SettingsInvalid) as error:
        fail(str(error))
