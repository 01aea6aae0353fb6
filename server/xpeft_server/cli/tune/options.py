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
        help='Rows, one JSON object per line, plain or .gz: {"text", "label"} and optionally "text_pair" and'
        ' "split" (train, dev or test, in every row or none). Test rows only measure; so do dev rows,'
        " unless --stop-on needs them. If labels are numbers, it is a regression. With a decoder,"
        ' {"prompt", "completion"} tunes a profile that writes.'
    ),
]
PlmName = Annotated[
    str,
    typer.Option(
        envvar="XPEFT_PLM", help="The server's language model: a path, a hub id, or minilm for the demo package's."
    ),
]
BankName = Annotated[
    str, typer.Option(envvar="XPEFT_BANK", help="The server's adapter bank: a file, or random:N=…,R=…,seed=…,std=….")
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(envvar="XPEFT_DEVICE", help="Where to tune.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(
        envvar=f"{VARIABLES}DTYPE",
        help="Number format of the language model during tuning; what is learned is float32.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        help="Write the profile file (.safetensors) here. With --by, a folder for a NAME.safetensors of each profile.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace the file if it exists. With --by, tune all profiles again.", rich_help_panel=_WHERE_TO
    ),
]
Url = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_URL",
        help="Upload to the server at this URL. The variable is used only with --profile.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_API_KEY",
        help="API key of the tenant. Prefer the variable: other users of this machine can see options.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        envvar=f"{VARIABLES}STORE",
        help="Write into this profile store, without a server: sqlite:///FILE or redis://…. The variable is"
        " used only with --profile.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
Tenant = Annotated[
    str | None,
    typer.Option(
        help="Tenant of the profiles in the store. Default: default, the tenant of a server without keys.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="Name on the server or in the store; an existing profile is replaced. With --by, a pattern with"
        " the field in braces; characters that names may not have become '-'. Default: {FIELD}.",
        show_default=False,
        rich_help_panel=_WHERE_TO,
    ),
]
By = Annotated[
    str | None,
    typer.Option(
        metavar="FIELD",
        help="Tune one profile for each value of this field of the rows, together.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
JournalFile = Annotated[
    Path | None,
    typer.Option(
        "--journal",
        help="File with a line for each finished profile, from which the same command resumes. Default:"
        " OUT/.journal.jsonl.",
        show_default=False,
        rich_help_panel=_MANY,
    ),
]
BatchProfiles = Annotated[
    int | None,
    typer.Option(
        envvar=f"{VARIABLES}BATCH_PROFILES",
        min=1,
        help="Number of profiles tuned together. Default: 16 on a CPU, 256 on a GPU.",
        show_default=False,
        show_envvar=False,
        rich_help_panel=_MANY,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="All labels in their order, as a,b,c. By default, those of the data.",
        show_default=False,
        rich_help_panel=_HOW,
    ),
]
Head = Annotated[
    str,
    typer.Option(
        metavar="HEAD",
        help="own; shared:NAME for a head of the bank; or shared+own:NAME for one of its own that starts as"
        " the bank's and is regularised towards it.",
        rich_help_panel=_HOW,
    ),
]
Soft = Annotated[
    bool,
    typer.Option(
        "--soft",
        help="Use masks that weigh the whole bank instead of choosing k adapters. The profile is larger.",
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
