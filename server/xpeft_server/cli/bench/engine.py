"""``xpeft bench engine``: the engine in this process against the bare language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..screen import fail, say, show_rows
from ..setting_options import is_typed
from .options import (
    Adapters,
    Device,
    DeviceOption,
    Dtype,
    DtypeOption,
    Json,
    Plm,
    Rounds,
    Seconds,
    Seed,
    Slots,
    Spread,
    Width,
)
from .report import chosen, failures_told, report, step

if TYPE_CHECKING:
    from xpeft_benchmarks.results import Result

_TOKENS: Final = {"cuda": "2048,8192", "cpu": "1024"}

RandomShape = Annotated[
    str | None,
    typer.Option(help="Instead of --plm, a known shape with random weights: bert-base or minilm.", show_default=False),
]
BatchTokens = Annotated[
    str,
    typer.Option(
        help="Maximum tokens in a batch, comma-separated. Default: 1024 on a CPU, 2048,8192 on a GPU.",
        show_default=False,
    ),
]
TextTokens = Annotated[int, typer.Option(min=1, help="Tokens of a text, including special tokens.")]
Inputs = Annotated[int, typer.Option(min=1, max=4096, help="Texts in one request for registered profiles.")]
InFlight = Annotated[int, typer.Option(min=1, max=1024, help="Requests in flight, in batches' worth of texts.")]
ProfileList = Annotated[str, typer.Option(help="Numbers of registered profiles to send requests for, comma-separated.")]


def engine(
    context: typer.Context,
    plm: Plm = "minilm",
    shape: RandomShape = None,
    adapters: Adapters = 100,
    width: Width = 48,
    dtype: DtypeOption = Dtype.AUTO,
    device: DeviceOption = Device.AUTO,
    batch_tokens: BatchTokens = "",
    text_tokens: TextTokens = 64,
    inputs: Inputs = 1,
    in_flight: InFlight = 32,
    profiles: ProfileList = "1,32,1000,100000",
    popularity: Spread = "zipf:1.1",
    slots: Slots = None,
    rounds: Rounds = 5,
    turn_seconds: Seconds = 2.0,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Measure the whole engine against the bare language model, in this process, with a store in memory, without HTTP.

    Also measures cold profiles against resident ones. All texts have the same length. Reports the share of time in
    which the device was busy, and the host's time per batch.

    Example: xpeft bench engine --shape bert-base --device cuda --json engine-bert-base.jsonl
    """
    from xpeft_benchmarks.engine.measurement import run_engine
    from xpeft_benchmarks.engine.plan import EnginePlan
    from xpeft_benchmarks.popularity import Popularity
    from xpeft_benchmarks.shapes import parse_tokens, shape_of
    from xpeft_benchmarks.whole_numbers import parse_whole_numbers

    from ..serve.assembly import choose_slots

    if shape is not None and is_typed(context, "plm"):
        fail("--plm is of a model with weights: leave it out with --shape")
    with failures_told():
        device_name, dtype_name = chosen(device, dtype)
        if shape is not None:
            shape_of(shape)
        plan = EnginePlan(
            plm=plm,
            shape=shape,
            adapters=adapters,
            width=width,
            device=device_name,
            dtype=dtype_name,
            batch_tokens=parse_tokens(batch_tokens or _TOKENS[device_name], text_tokens),
            text_tokens=text_tokens,
            inputs=inputs,
            in_flight=in_flight,
            profiles=parse_whole_numbers("profiles", profiles, most=10_000_000),
            popularity=Popularity.parse(popularity),
            rounds=rounds,
            seconds=turn_seconds,
            seed=seed,
        )
        gpu = _gpu(device_name)
        report(
            "engine",
            {**plan.settings(), "gpu": gpu},
            lambda: run_engine(
                plan, lambda form, plm: choose_slots(slots or "auto", form, plm, adapters=adapters), on_step=step
            ),
            json,
            show=lambda results: _show(results, gpu),
        )


def _gpu(device: str) -> str | None:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else None


def _show(results: Sequence[Result], gpu: str | None) -> None:
    from xpeft_benchmarks.results import TABLE_COLUMNS, table_rows

    show_rows(TABLE_COLUMNS, table_rows(results))
    if gpu is not None:
        say(gpu)
