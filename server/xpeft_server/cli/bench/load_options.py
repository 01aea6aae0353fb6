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
        help="A server, http:// or https://; it keeps the profiles bench-…. Without it one is started here.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
AdminKey = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_API_KEY",
        help="An admin's key of one tenant there.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="What tables and plots call it; without it, its address.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
Against = Annotated[
    str | None,
    typer.Option(
        help="The URL of a second server, which is compared with the first.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
AgainstKey = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_AGAINST_API_KEY",
        help="An admin's key of one tenant there.",
        show_default=False,
        rich_help_panel=_SERVERS,
    ),
]
LoadKind = Annotated[Kind, typer.Option(help="What is asked for: labels, or text as a stream.", rich_help_panel=_LOAD)]
Rates = Annotated[
    str,
    typer.Option(
        help="Requests a second, comma-separated; auto: nine, up to more than the server can do.",
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
        help="Lengths in tokens that texts are built with: a number a line, or .jsonl or .csv with tokens (and"
        " new_tokens). The tokenizer of --plm counts them.",
        show_default=False,
        rich_help_panel=_LOAD,
    ),
]
NewTokens = Annotated[
    int,
    typer.Option(
        min=1, help="Tokens that a text to write may have, where --lengths tells none.", rich_help_panel=_LOAD
    ),
]
SloTime = Annotated[
    str | None,
    typer.Option(
        "--slo",
        help="A time such as 100ms, to an answer's end, of a stream to its first token. Without it, 100ms, for streams"
        " 500ms.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]
SloPerToken = Annotated[
    str | None,
    typer.Option(
        help="Of a stream also the mean time of a token after the first.",
        show_default=False,
        rich_help_panel=_LIMITS,
    ),
]
Plot = Annotated[Path | None, typer.Option(help="Write a plot to this file, .png or .html.", show_default=False)]
