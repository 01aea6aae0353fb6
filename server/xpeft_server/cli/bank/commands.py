"""``xpeft bank``: make an adapter bank, or look into one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xpeft_server.settings import Settings
from xpeft_tuning.bank_import.fit_texts import MIN_FIT

from ..out_option import check_out_file, write_out_file
from ..screen import fail, say, show_facts, show_json, show_rows
from . import train as bank_train
from .facts import bank_facts, bank_record
from .sizes import bank_sizes, size_facts

if TYPE_CHECKING:
    from xpeft_tuning.bank_import.imported_adapter import ImportedAdapter

_DEFAULTS = Settings()

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Create, train, import and inspect adapter banks. A bank holds the adapters that all profiles"
    " choose from. A profile fits only the bank that it was tuned over, identified by its"
    " fingerprint.",
)


@app.command()
def create(
    out: Annotated[Path, typer.Option(help="Where to write the bank, a .safetensors file.")],
    plm: Annotated[
        str,
        typer.Option(
            envvar="XPEFT_PLM",
            help="Language model that the bank is for: a path, a hub id, or minilm for the demo package's.",
        ),
    ] = _DEFAULTS.plm,
    bank: Annotated[
        str,
        typer.Option(
            envvar="XPEFT_BANK",
            help="random:KEY=VALUE,… with N (adapters per block), R (width of each), seed, std (of the values),"
            " activation (relu or gelu), layer_norm (true or false), pooling (mean, cls or last).",
        ),
    ] = _DEFAULTS.bank,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Create a random bank. The same specification gives the same bytes on every machine.

    A profile is a choice among its adapters, so a larger N gives more choice. A std of 0.1 to 0.5 works best.

    Example: xpeft bank create --bank random:N=100,R=48,seed=0,std=0.1 --out bank.safetensors
    """
    check_out_file(out, force=force)
    from xpeft_server.model.banks.file import write_bank_file
    from xpeft_server.model.banks.random_bank import random_bank
    from xpeft_server.model.banks.spec import RandomBankSpec
    from xpeft_server.model.errors import ModelError
    from xpeft_server.model.plm import open_plm_facts

    try:
        spec = RandomBankSpec.parse(bank)
        made = random_bank(spec, plm=open_plm_facts(plm))
        write_bank_file(made, out, overwrite=force)
    except ModelError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{out} cannot be written: {error.strerror or error}")
    say(f"wrote {out}")
    show_facts(bank_facts(made).items())


@app.command("import")
def import_bank(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER…",
            help="Saved adapters of the adapters library (AdapterHub) or of PEFT: one folder each, or the file of"
            " weights in it.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the bank, a .safetensors file.")],
    plm: Annotated[
        str,
        typer.Option(
            envvar="XPEFT_PLM",
            help="Language model that they were trained on: a path, a hub id, or minilm for the demo package's.",
        ),
    ] = _DEFAULTS.plm,
    fit_texts: Annotated[
        Path | None,
        typer.Option(
            help="For LoRAs: a file of texts like those that will be served, one per line. Every fifth line"
            " measures the fit.",
            show_default=False,
        ),
    ] = None,
    min_fit: Annotated[
        float,
        typer.Option(max=1, help="Refuse a LoRA if one block's adapter explains less than this of its variance (R²)."),
    ] = MIN_FIT,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Make a bank of adapters that were trained elsewhere; each source becomes one of its N adapters.

    Bottleneck adapters of the adapters library are imported exactly, if they come after the feed-forward and before
    the residual add (SeqBnConfig(original_ln_before=False)). PEFT LoRAs on the feed-forward's last matrix are fitted
    on the texts of --fit-texts. Everything else is refused, with the reason.

    Example: xpeft bank import --plm bert-base-uncased --out bank.safetensors adapters/sst2 adapters/mnli
    """
    check_out_file(out, force=force)
    from xpeft_server.model.banks.file import write_bank_file
    from xpeft_server.model.errors import ModelError
    from xpeft_server.model.plm import load_plm
    from xpeft_tuning.bank_import import imported_bank
    from xpeft_tuning.bank_import.errors import BankImportError
    from xpeft_tuning.bank_import.fit_texts import read_fit_texts

    try:
        texts = None if fit_texts is None else read_fit_texts(fit_texts)
        bank, adapters = imported_bank.import_bank(sources, load_plm(plm), fit_texts=texts, min_fit=min_fit)
    except (ModelError, BankImportError) as error:
        fail(str(error))
    write_out_file(out, lambda path: write_bank_file(bank, path, overwrite=force))
    say(f"wrote {out}")
    show_facts(bank_facts(bank).items())
    columns = ("adapter", "source", "kind", "width", "blocks", "explained variance by block", "skipped")
    show_rows(columns, (_source(number, adapter, bank.blocks) for number, adapter in enumerate(adapters)))


app.command()(bank_train.train)


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A bank's .safetensors file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON instead of a table.")] = False,
) -> None:
    """Check a bank file; show its contents, and the size of a profile over it in a store and on the device.

    Example: xpeft bank info bank.safetensors --json
    """
    from xpeft_server.model.banks.errors import BankError
    from xpeft_server.model.banks.file import read_bank_file

    try:
        bank = read_bank_file(file)
    except BankError as error:
        fail(str(error))
    if as_json:
        show_json(bank_record(bank) | bank_sizes(bank))
    else:
        show_facts([*bank_facts(bank).items(), *size_facts(bank).items()])


def _source(number: int, adapter: ImportedAdapter, blocks: int) -> tuple[str, ...]:
    """A row for what was imported: a number for each block that was fitted, a dash where there is no adapter."""
    fits = (f"{adapter.fits[block]:.3f}" if block in adapter.fits else "-" for block in range(blocks))
    return (
        str(number),
        adapter.checkpoint.name,
        adapter.checkpoint.kind.value,
        str(adapter.width),
        f"{len(adapter.blocks)} of {blocks}",
        " ".join(fits) if adapter.fits else "exact",
        ", ".join(adapter.skipped) or "nothing",
    )
