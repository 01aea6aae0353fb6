"""``xpeft bank``: make an adapter bank, or look into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xpeft_server.settings import Settings

from .screen import fail, say, show_facts, show_json

if TYPE_CHECKING:
    from xpeft_server.model.bank import Bank

_DEFAULTS = Settings()

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Make adapter banks and look into them. A bank holds the adapters that every profile chooses from;"
    " a profile fits exactly the bank that it was tuned over, which its fingerprint tells.",
)


@app.command()
def create(
    out: Annotated[Path, typer.Option(help="Where to write the bank, a .safetensors file.")],
    plm: Annotated[
        str,
        typer.Option(
            envvar="XPEFT_PLM",
            help="The language model that the bank is for: a path, a hub id, or the demo package's.",
        ),
    ] = _DEFAULTS.plm,
    bank: Annotated[
        str,
        typer.Option(
            envvar="XPEFT_BANK",
            help="random:KEY=VALUE,… with N adapters a block, R width of each, seed, std of the values,"
            " activation (relu or gelu), layer_norm (true or false), pooling (mean, cls or last).",
        ),
    ] = _DEFAULTS.bank,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
) -> None:
    """Make a random bank: the same words give the same bytes on every machine.

    A profile is a choice among its adapters: a larger N gives more choice, std 0.1 to 0.5 works best.

    Example: xpeft bank create --bank random:N=100,R=48,seed=0,std=0.1 --out bank.safetensors
    """
    from xpeft_server.model.bank_file import write_bank_file
    from xpeft_server.model.bank_spec import RandomBankSpec
    from xpeft_server.model.errors import ModelError
    from xpeft_server.model.plm import open_plm_facts
    from xpeft_server.model.random_bank import random_bank

    try:
        spec = RandomBankSpec.parse(bank)
        if out.exists() and not force:
            fail(f"{out} is there already: give another --out, or --force to replace it")
        made = random_bank(spec, plm=open_plm_facts(plm))
        write_bank_file(made, out, overwrite=force)
    except ModelError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror or error}")
    say(f"wrote {out}")
    show_facts(_facts(made).items())


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A bank's .safetensors file.")],
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of a table.")] = False,
) -> None:
    """Check a bank's file and show what is in it: fingerprint, model, sizes, shared heads.

    Example: xpeft bank info bank.safetensors --json
    """
    from xpeft_server.model.bank_errors import BankError
    from xpeft_server.model.bank_file import read_bank_file

    try:
        bank = read_bank_file(file)
    except BankError as error:
        fail(str(error))
    if as_json:
        show_json(_record(bank))
    else:
        show_facts(_facts(bank).items())


def _record(bank: Bank) -> dict[str, object]:
    """Everything about a bank but its values, under the names that the file has for it."""
    return {
        "fingerprint": bank.fingerprint,
        "plm": bank.plm,
        "blocks": bank.blocks,
        "adapters": bank.adapters,
        "hidden": bank.hidden,
        "width": bank.width,
        "dtype": str(bank.dtype).removeprefix("torch."),
        "bytes": bank.nbytes,
        "activation": bank.activation,
        "layer_norm": bank.layer_norm,
        "pooling": None if bank.pooling_by_default else bank.pooling,
        "biases": bank.down_bias is not None or bank.up_bias is not None,
        "heads": {name: list(head.labels) for name, head in bank.heads.items()},
        "provenance": bank.provenance,
    }


def _facts(bank: Bank) -> dict[str, str]:
    heads = (f"{name} ({', '.join(head.labels)})" for name, head in bank.heads.items())
    return {
        "fingerprint": bank.fingerprint,
        "model": bank.plm,
        "blocks (L)": str(bank.blocks),
        "adapters (N)": str(bank.adapters),
        "hidden (H)": str(bank.hidden),
        "width (R)": str(bank.width),
        "dtype": str(bank.dtype).removeprefix("torch."),
        "bytes": f"{bank.nbytes:,}",
        "biases": ", ".join(name for name in ("down_bias", "up_bias") if name in bank.tensors()) or "none",
        "activation": bank.activation,
        "layer norm": "yes" if bank.layer_norm else "no",
        "pooling": "the model's default" if bank.pooling_by_default else bank.pooling,
        "shared heads": ", ".join(heads) or "none",
        "provenance": bank.provenance or "not told",
    }
