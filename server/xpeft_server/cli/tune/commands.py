"""``xpeft tune``: labelled texts in, profiles out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from xpeft_server.settings import Settings
from xpeft_tuning.errors import TuningSettingsInvalid

from ..https_options import https_options, take_https_options
from ..screen import fail
from ..setting_options import add_options, check_variables
from .destinations import Destinations
from .input import TuningInput
from .options import (
    VARIABLES,
    ApiKey,
    BankName,
    BatchProfiles,
    By,
    Data,
    Device,
    Dtype,
    Force,
    Head,
    JournalFile,
    Labels,
    Name,
    Out,
    PlmName,
    Soft,
    Store,
    Tenant,
    Url,
    learning_options,
    tuning_settings,
)

_DEFAULTS = Settings()

app = typer.Typer(pretty_exceptions_show_locals=False)


def tune(  # the options that follow are `https_options` and `learning_options`
    context: typer.Context,
    data: Data,
    plm: PlmName = _DEFAULTS.plm,
    bank: BankName = _DEFAULTS.bank,
    device: Device = _DEFAULTS.device,
    dtype: Dtype = "float32",
    out: Out = None,
    force: Force = False,
    url: Url = None,
    api_key: ApiKey = None,
    store: Store = None,
    tenant: Tenant = None,
    profile: Name = None,
    by: By = None,
    journal: JournalFile = None,
    batch_profiles: BatchProfiles = None,
    labels: Labels = None,
    head: Head = "own",
    soft: Soft = False,
    **options: Any,
) -> None:
    """Tune a profile on labelled texts, or one for each user, and deliver to files, a server or a store.

    The language model and the bank stay frozen. Tuning learns which adapters the profile chooses, a LayerNorm affine
    and a head. The accuracy at the end is measured on held-out rows, with the profile as it will be served.

    Example: xpeft tune --data desk.jsonl --out desk.safetensors

    Example: xpeft tune --data reviews.jsonl.gz --by user --profile 'critic-{user}' --out critics
    """
    check_variables(context, VARIABLES)
    where = Destinations(
        out=out,
        force=force,
        url=url,
        api_key=api_key,
        tls=take_https_options(options),
        store=store,
        tenant=tenant,
        profile=profile,
    ).meant(context)
    try:
        settings = tuning_settings(options, soft=soft, head=head)
    except TuningSettingsInvalid as error:
        fail(str(error))
    given = TuningInput(
        data=data,
        labels=None if labels is None else tuple(labels.split(",")),
        plm=plm,
        bank=bank,
        device=device,
        dtype=dtype,
        settings=settings,
    )
    if by is None:
        _tune_one(given, where, journal)
    else:
        _tune_many(given, where, by, journal, batch_profiles)


def _tune_one(given: TuningInput, where: Destinations, journal: Path | None) -> None:
    where.check_for_one()
    if journal is not None:
        fail(f"--journal {journal} is for many profiles: give --by")
    from .one import tune_one

    tune_one(given, where)


def _tune_many(
    given: TuningInput, where: Destinations, by: str, journal: Path | None, batch_profiles: int | None
) -> None:
    where.check_for_many()
    from .many import ManyOptions, tune_many

    if journal is None:
        if where.out is None:
            fail("without --out there is no place for the journal, which a run goes on from: give --journal FILE")
        journal = _journal_in(where.out)
    tune_many(given, where, ManyOptions(by=by, journal=journal, places=batch_profiles))


def _journal_in(folder: Path) -> Path:
    """Hidden, so that an import of the folder finds profiles alone; one that was begun in sight is gone on with."""
    in_sight = folder / "journal.jsonl"
    return in_sight if in_sight.exists() else folder / ".journal.jsonl"


add_options(tune, [*https_options(), *learning_options()])
app.command()(tune)
