"""The options of ``xpeft tune``."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from xpeft_tuning.errors import TuningSettingsInvalid
from xpeft_tuning.settings import TuningSettings

from ..setting_options import setting_options

VARIABLES: Final = "XPEFT_TUNE_"
"""What the variables of this command alone begin with."""

_BY_HAND = frozenset({"kind", "shared_head", "own_head"})  # settings whose options read otherwise: --soft and --head
_WHERE_TO = "Where profiles go"
_MANY = "Many profiles"
_HOW = "How to tune"

Data = Annotated[
    Path,
    typer.Option(
        help='Rows, one JSON object a line, .gz too: {"text", "label"} and, if wanted, "text_pair" and "split" (train,'
        " dev or test, in every row or none). Test rows measure and never teach; dev rows too, unless --stop-on needs"
        " them. Labels that are numbers make a regression;"
        ' {"prompt", "completion"} teaches a decoder to write.'
    ),
]
PlmName = Annotated[
    str, typer.Option(envvar="XPEFT_PLM", help="The server's language model: a path, a hub id, or the default's name.")
]
BankName = Annotated[
    str, typer.Option(envvar="XPEFT_BANK", help="The server's adapter bank: a file, or random:N=…,R=…,seed=…,std=….")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(envvar="XPEFT_DEVICE", help="Where to tune.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(
        envvar=f"{VARIABLES}DTYPE", help="Number format of the language model while tuning; what is learned is float32."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Write the profile file (.safetensors) here; with --by a folder, which gets NAME.safetensors of each.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace the file if it is there; with --by tune all again.", rich_help_panel=_WHERE_TO
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_URL",
        help="Upload to the server here. The variable counts only beside --profile.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_API_KEY",
        help="Key of the tenant. Prefer the variable: other users of this machine can read options.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        envvar=f"{VARIABLES}STORE",
        help="Write into this profile store, which needs no server: sqlite:///FILE or redis://…. The variable counts"
        " only beside --profile.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
Tenant = Annotated[
    str | None,
    typer.Option(
        help="Whose profiles they are in the store. Default: default, the tenant of a server without keys.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="Name on the server or in the store; what has it is replaced. With --by a pattern with the field in braces"
        " for its value; what no name may have becomes '-'. Default: {FIELD}.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="A profile for each value of this field of the rows, tuned together.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
JournalFile = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        help="A line for each profile that is done; the same command goes on from there. Default: OUT/.journal.jsonl.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
BatchProfiles = Annotated[
    int | None,
    typer.Option(
        envvar=f"{VARIABLES}BATCH_PROFILES",
        min=1,
        help="Profiles that are tuned together. Default: 16 on CPU, 256 on a GPU.",
        show_default=False,
        show_envvar=False,
        rich_help_panel=_MANY,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="All labels, in the order they shall have: a,b,c. Else as the data has them.",
        show_default=False,
        rich_help_panel=_HOW,
    ),
]
Head = Annotated[
    str,
    typer.Option(
        metavar="HEAD",
        help="own; shared:NAME, one of the bank's; or shared+own:NAME, one of its own that starts as the bank's and is"
        " drawn to it.",
        rich_help_panel=_HOW,
    ),
]
Soft = Annotated[
    bool,
    typer.Option(
        "--soft",
        help="Masks that weigh the whole bank instead of choosing k adapters; larger.",
        rich_help_panel=_HOW,
    ),
]


def tuning_settings(options: dict[str, Any], *, soft: bool, head: str) -> TuningSettings:
    """Args: options: of `learning_options`. Raises: TuningSettingsInvalid."""
    shared, own = _parsed_head(head)
    return TuningSettings(
        kind="soft" if soft else "hard",
        shared_head=shared,
        own_head=own,
        **{name: value for name, value in options.items() if value is not None},
    )


def learning_options() -> list[inspect.Parameter]:
    """An option for each setting that has none of its own here."""
    every = setting_options(TuningSettings, variables=VARIABLES, panels={(): _HOW})
    return [each for each in every if each.name not in _BY_HAND]


def _parsed_head(text: str) -> tuple[str | None, bool]:
    """``shared_head`` and ``own_head``."""
    if text == "own":
        return None, False
    kind, _, name = text.partition(":")
    if kind not in ("shared", "shared+own") or not name:
        raise TuningSettingsInvalid(
            f"head is {text!r}, it must be own, shared:NAME or shared+own:NAME, a head of the bank"
        )
    return name, kind == "shared+own"
