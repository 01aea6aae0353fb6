"""``xpeft bench``: measure this machine, in ratios that hold elsewhere too."""

from __future__ import annotations

import typer

from ..screen import fail
from .engine import engine
from .load import load
from .options import (
    RANDOM_BANK,
    RANDOM_NARROW_BANK,
    Adapters,
    BankSource,
    Batch,
    Continuous,
    Data,
    DecoderPlm,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    FilledStore,
    Json,
    Peft,
    PeftRank,
    Plm,
    Profiles,
    Prompts,
    Rounds,
    Seed,
    ShapeName,
    SpreadList,
    StoredProfiles,
    StoreTenants,
    Texts,
    Tokens,
    Width,
)
from .report import chosen, failures_told, report, run, step
from .serve import serve, tenants
from .tune import tune

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Measure speed. Each number comes with a ratio to something measured in the same run, in"
    " interleaved rounds, so that ratios hold when the machine's speed varies. Let nothing else run.",
)


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
    """Measure batches of many profiles against the bare language model, in one process, without HTTP.

    From token ids to logits; tokenising is a line of its own. Also measures padded batches as transformers runs them,
    the cost of cold profiles, and each operator alone.

    Example: xpeft bench ops --dtype bfloat16 --data reviews.jsonl.gz --json ops-bf16.jsonl
    """
    from xpeft_benchmarks.ops.measurement import OpsPlan, run_ops
    from xpeft_benchmarks.popularity import parse_popularities

    with failures_told():
        device_name, dtype_name = chosen(device, dtype)
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
        run("ops", plan.settings(), lambda pool: run_ops(plan, pool, on_step=step), data, json)


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
    """Measure forward passes of a known model shape with random weights: bare, many profiles, one profile.

    Also with cold profiles, materialised from their masks first. On a GPU each pass is one CUDA graph.

    Example: xpeft bench shapes --shape bert-base --tokens 512,2048 --json bert-base.jsonl
    """
    from xpeft_benchmarks.shapes import ShapesPlan, parse_tokens, run_shapes, shape_of

    with failures_told():
        device_name, dtype_name = chosen(device, dtype)
        geometry = shape_of(shape)
        plan = ShapesPlan(
            shape=shape,
            adapters=adapters,
            width=width,
            tokens=parse_tokens(tokens, geometry.sequence),
            device=device_name,
            dtype=dtype_name,
            rounds=rounds,
            seed=seed,
        )
        report("shapes", plan.settings(), lambda: run_shapes(plan, geometry, on_step=step), json)


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
    """Measure the generation engine against transformers: padded batches of 32, and continuous batching.

    Prompts have 15 to 70 tokens, decoding is greedy, and no answer ends early. One workload has all requests at once,
    48 new tokens each; the other has requests arriving one after the other, 8 to 96 new tokens.

    Example: xpeft bench generate --plm ./llama --dtype bfloat16 --data reviews.jsonl.gz --json generate-bf16.jsonl
    """
    from xpeft_benchmarks.generate.measurement import GeneratePlan, run_generate

    from ..serve.assembly import choose_batch_tokens, choose_device

    with failures_told():
        device_name, dtype_name = chosen(device, dtype)
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
        run("generate", plan.settings(), lambda pool: run_generate(plan, pool, on_step=step), data, json)


def stores(
    store: FilledStore,
    profiles: StoredProfiles = 10_000,
    tenants: StoreTenants = 1,
    rounds: Rounds = 10,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Measure a profile store with very many profiles: import, size, and query times.

    The profiles are random, for MiniLM and a bank of 100 adapters: hard masks and a shared head, 1.5 KB per file.

    Example: xpeft bench stores --store redis://localhost:6379 --profiles 1000000 --json stores-redis.jsonl
    """
    from xpeft_benchmarks.store_size import StoreInvalid
    from xpeft_benchmarks.stores import StoresPlan, run_stores
    from xpeft_profiles import ProfileStoreError

    plan = StoresPlan(store=store, profiles=profiles, tenants=min(tenants, profiles), rounds=rounds, seed=seed)
    try:
        report("stores", plan.settings(), lambda: run_stores(plan, on_step=step), json)
    except (ProfileStoreError, StoreInvalid) as error:
        # Not by the failures of all benchmarks: to know them takes torch, which shall not count as memory here.
        fail(str(error))


# In the order of --help.
for _command in (ops, shapes, engine, serve, load, tenants, generate, stores, tune):
    app.command()(_command)
