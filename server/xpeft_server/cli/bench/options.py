"""The options of ``xpeft bench``'s commands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
DecoderPlm = Annotated[str, typer.Option(envvar="XPEFT_PLM", help="Decoder: a path or a hub id.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Number format of the model.")]
DeviceOption = Annotated[Device, typer.Option(help="Where the model runs.")]
Data = Annotated[
    Path | None,
    typer.Option(
        help='Texts, .jsonl or .jsonl.gz with a "text" in each line. Default: the example messages of a checkout.',
        show_default=False,
    ),
]
Texts = Annotated[int, typer.Option(min=1, help="Number of texts to draw from the data.")]
Rounds = Annotated[int, typer.Option(min=1, help="Interleaved rounds; medians are taken over them.")]
Profiles = Annotated[int, typer.Option(min=1, help="Number of random profiles.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed for the choice of texts and profiles.")]
Json = Annotated[
    Path | None,
    typer.Option("--json", help="Write a line of JSON for each variant to this file.", show_default=False),
]
Batch = Annotated[int, typer.Option(min=1, help="Texts in a batch.")]
_POPULARITIES = "distinct, uniform, zipf:A, identical or skewed"
SpreadList = Annotated[str, typer.Option(help=f"How texts are spread over profiles, comma-separated: {_POPULARITIES}.")]
Spread = Annotated[str, typer.Option(help=f"How requests are spread over profiles: {_POPULARITIES}.")]
Peft = Annotated[
    bool, typer.Option("--peft", help="Also measure Hugging Face PEFT with a LoRA adapter for each profile.")
]
PeftRank = Annotated[int, typer.Option(min=1, help="Rank of those adapters.")]
Store = Annotated[
    str | None,
    typer.Option(help="The server's profile store. Default: a temporary SQLite file.", show_default=False),
]
FilledStore = Annotated[
    str,
    typer.Option(
        "--store",
        help="Store to fill, sqlite:///FILE or redis://…. The profiles, of tenants bench-…, stay there.",
    ),
]
StoredProfiles = Annotated[
    int, typer.Option("--profiles", min=1, max=100_000_000, help="Number of random profiles to store.")
]
StoreTenants = Annotated[int, typer.Option("--tenants", min=1, max=1_000_000, help="Number of tenants that own them.")]
Slots = Annotated[
    int | None, typer.Option(min=1, help="The server's --slots. Default: the server's own.", show_default=False)
]
HttpProcesses = Annotated[int, typer.Option(min=0, max=64, help="The server's --http-processes.")]
Url = Annotated[
    str | None,
    typer.Option(
        help="A running server with this PLM, bank and dtype. The profiles bench-… stay there.",
        show_default=False,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="XPEFT_API_KEY", help="Admin key of one tenant, with --url.", show_default=False),
]
Tenants = Annotated[int, typer.Option(min=1, help="Number of tenants that own the profiles, with a key each.")]
Registered = Annotated[int, typer.Option(min=1, max=100_000_000, help="Profiles in the store.")]
Sharers = Annotated[int, typer.Option("--tenants", min=2, max=32, help="Number of tenants that share the server.")]
Load = Annotated[
    float,
    typer.Option(min=0.01, max=0.95, help="Load of all tenants together in quiet times, as a fraction of capacity."),
]
FloodSeconds = Annotated[float, typer.Option(min=0.1, help="Length of the flood.")]
Concurrency = Annotated[
    str, typer.Option(help="Requests in flight, comma-separated; the engine runs batches of the same sizes.")
]
Seconds = Annotated[float, typer.Option(min=0.1, help="Length of one variant's turn in a round.")]
Requests = Annotated[int | None, typer.Option(min=1, help="End a turn after this many texts.", show_default=False)]
MOST_PROMPTS = 1024  # a server's queue takes no more, unless it is told otherwise
Prompts = Annotated[int, typer.Option("--requests", min=1, max=MOST_PROMPTS, help="Prompts answered in a round.")]
Continuous = Annotated[bool, typer.Option(help="Also measure transformers' continuous batching.")]
InfinityPython = Annotated[
    Path | None,
    typer.Option(
        help="Python of an environment with infinity_emb, to measure that server beside ours.", show_default=False
    ),
]
ShapeName = Annotated[str, typer.Option(help="bert-base, minilm or llama-1b-decode.")]
Tokens = Annotated[
    str, typer.Option(help="Tokens in a batch, comma-separated. Default: the shape's own.", show_default=False)
]
Adapters = Annotated[int, typer.Option(min=1, max=1024, help="N, adapters in the bank.")]
Width = Annotated[int, typer.Option(min=1, max=256, help="R, their bottleneck.")]
RANDOM_BANK = "random:N=100,R=48,seed=0,std=0.1"
RANDOM_NARROW_BANK = "random:N=100,R=16,seed=0,std=0.1"
