"""The options that ``xpeft bench load`` has beside those of all benchmarks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

_SERVERS: Final = "Servers that run already"
_LOAD: Final = "The load"
_LIMITS: Final = "What an answer must keep to count"


class Kind(StrEnum):
    CLASSIFY = "classify"
    GENERATE = "generate"


LoadUrl = Annotated[
    str | None,
    typer.Option(
        help="A running server, http:// or https://. The profiles bench-… stay there. Without it, a server is"
        " started here.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
AdminKey = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_API_KEY",
        help="Admin key of one tenant there.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="Its name in tables and plots. Default: its address.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="URL of a second server to compare with the first.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
AgainstKey = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_AGAINST_API_KEY",
        help="Admin key of one tenant there.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
LoadKind = Annotated[
    Kind, typer.Option(help="What to request: labels, or generated text as a stream.", rich_help_panel=_LOAD)
]
Rates = Annotated[
    str,
    typer.Option(
        help="Requests a second, comma-separated; auto: nine rates, up to more than the server's capacity.",
        rich_help_panel=_LOAD,
    ),
]
LoadSeconds = Annotated[
    float,
    typer.Option("--seconds", min=0.1, help="Length of one rate's turn in a round.", rich_help_panel=_LOAD),
]
Lengths = Annotated[
    Path | None,
    typer.Option(
        help="File of text lengths in tokens, to build texts of these lengths: one number per line, or .jsonl"
        " or .csv with tokens (and new_tokens). The tokenizer of --plm counts them.",
        show_default=False,
        rich_help_panel=_LOAD,
    ),
]
NewTokens = Annotated[
    int,
    typer.Option(min=1, help="Maximum tokens to generate, unless --lengths says it.", rich_help_panel=_LOAD),
]
SloTime = Annotated[
    str | None,
    typer.Option(
        "--slo",
        help="Latency limit such as 100ms, to the end of an answer or the first token of a stream. Default:"
        " 100ms, for streams 500ms.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]
SloPerToken = Annotated[
    str | None,
    typer.Option(
        help="For streams, also a limit on the mean time per token after the first.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]
Plot = Annotated[Path | None, typer.Option(help="Write a plot to this file, .png or .html.", show_default=False)]
