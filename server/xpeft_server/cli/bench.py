"""``xpeft bench``: measure this machine, in ratios that hold elsewhere too."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .screen import fail, say, show_rows

if TYPE_CHECKING:
    from xpeft_benchmarks.ops import OpsPlan
    from xpeft_benchmarks.results import Result
    from xpeft_benchmarks.serve import ServePlan

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Measure speed. Every number comes with a ratio to something that was measured in the same run, in"
    " interleaved rounds: the ratio holds while the machine's speed comes and goes. Let nothing else run.",
)


class Dtype(StrEnum):
    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Device(StrEnum):
    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


Plm = Annotated[
    str, typer.Option(envvar="XPEFT_PLM", help="Language model: a path, a hub id, or minilm for the demo package's.")
]
BankSource = Annotated[str, typer.Option(envvar="XPEFT_BANK", help="Adapter bank: a file, or random:N=…,R=…,seed=….")]
DtypeOption = Annotated[Dtype, typer.Option(help="Number format of the model.")]
DeviceOption = Annotated[Device, typer.Option(help="Where the model runs.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help='.jsonl or .jsonl.gz with a "text" a line; without it, the example messages of a checkout.',
        show_default=False,
    ),
]
Texts = Annotated[int, typer.Option(min=1, help="Texts drawn from the data.")]
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are taken over them.")]
Profiles = Annotated[int, typer.Option(min=1, help="Different random profiles.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the choice of texts and profiles.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write a line of JSON for each variant to this file.", show_default=False),
]
Batch = Annotated[int, typer.Option(min=1, help="Texts in a batch.")]
_POPULARITIES = "distinct, uniform, zipf:A, identical or skewed"
SpreadList = Annotated[str, typer.Option(help=f"How texts are spread over profiles, comma-separated: {_POPULARITIES}.")]
Spread = Annotated[str, typer.Option(help=f"How requests are spread over profiles: {_POPULARITIES}.")]
Peft = Annotated[bool, typer.Option("--peft", help="Also Hugging Face PEFT with a LoRA adapter for each profile.")]
PeftRank = Annotated[int, typer.Option(min=1, help="Rank of those adapters.")]
Store = Annotated[
    str | None,
    typer.Option(help="The server's profile store; without it, a temporary SQLite file.", show_default=False),
]
Slots = Annotated[
    int | None, typer.Option(min=1, help="The server's --slots; without it, its default.", show_default=False)
]
Url = Annotated[
    str | None,
    typer.Option(
        help="A server that runs already, with this PLM, bank and dtype; it keeps the profiles bench-….",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="XPEFT_API_KEY", help="An admin's key of one tenant, with --url.", show_default=False),
]
Tenants = Annotated[int, typer.Option(min=1, help="Tenants that own the profiles, with a key each.")]
Concurrency = Annotated[
    str, typer.Option(help="Requests in flight, comma-separated; the engine is run in batches of the same sizes.")
]
Seconds = Annotated[float, typer.Option(min=0.1, help="Length of one variant's turn in a round.")]
Requests = Annotated[int | None, typer.Option(min=1, help="End a turn after so many texts.", show_default=False)]
InfinityPython = Annotated[
    Path | None,
    typer.Option(
        help="python of an environment with infinity_emb: measures that server beside ours.", show_default=False
    ),
]
ShapeName = Annotated[str, typer.Option(help="bert-base, minilm or llama-1b-decode.")]
Tokens = Annotated[
    str, typer.Option(help="Tokens in a batch, comma-separated; without it, the shape's own.", show_default=False)
]
Adapters = Annotated[int, typer.Option(min=1, max=1024, help="N, adapters in the bank.")]
Width = Annotated[int, typer.Option(min=1, max=256, help="R, their bottleneck.")]
_RANDOM_BANK = "random:N=100,R=48,seed=0,std=0.1"


@app.command()
def ops(
    plm: Plm = "minilm",
    bank: BankSource = _RANDOM_BANK,
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
        _run("ops", plan, lambda pool: run_ops(plan, pool, on_step=_step), data, json)


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
    bank: BankSource = _RANDOM_BANK,
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
        _run("serve", plan, lambda pool: run_serve(plan, pool, on_step=_step), data, json)


def _run(
    name: str,
    plan: OpsPlan | ServePlan,
    measure: Callable[[Sequence[str]], list[Result]],
    data: Path | None,
    json: Path | None,
) -> None:
    """Read the texts, then measure and report."""
    from xpeft_benchmarks.texts import example_texts, read_texts

    pool = example_texts() if data is None else read_texts(data)
    settings = {**plan.settings(), "data": "examples" if data is None else data.name}
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
