"""``xpeft bank train``: labelled texts in, a bank of adapters out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from xpeft_server.settings import Settings, SettingsInvalid
from xpeft_tuning.bank_training.settings import BankTrainingSettings, Method
from xpeft_tuning.errors import TuningSettingsInvalid

from ..epoch_bar import epoch_bar, shown_score
from ..out_option import check_out_file, write_out_file
from ..screen import fail, plain, say, show_facts
from ..setting_options import add_options, check_variables, is_typed, option_name, setting_options
from .facts import bank_facts

if TYPE_CHECKING:
    from xpeft_server.model.banks.bank import Bank
    from xpeft_server.model.plm import Plm
    from xpeft_tuning.bank_training.outcome import TrainedBank
    from xpeft_tuning.dataset import Dataset

_DEFAULTS = Settings()
_VARIABLES = "XPEFT_BANK_TRAIN_"
_PANELS: Mapping[tuple[str, ...], str] = {
    (): "How to train",
    ("users", "mixture"): "Not with method branches",
    ("users", "branches"): "With --by",
    ("users",): "With --by, method users",
    ("mixture",): "Without --by (method mixture)",
}

Data = Annotated[
    Path,
    typer.Option(
        help='Rows, one JSON object per line, plain or .gz: {"text", "label"} and optionally "text_pair" and'
        ' "split" (train, dev or test, in every row or none). Only train rows are trained on; dev and'
        " test rows measure. If labels are numbers, it is a regression."
    ),
]
Out = Annotated[Path, typer.Option(help="Where to write the bank, a .safetensors file.")]
PlmName = Annotated[
    str,
    typer.Option(
        envvar="XPEFT_PLM",
        help="Language model that the bank is for: a path, a hub id, or minilm for the demo package's.",
    ),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(envvar="XPEFT_DEVICE", help="Where to train.")]
Dtype = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(
        envvar=f"{_VARIABLES}DTYPE",
        help="Number format of the language model during training; the bank is float32.",
        show_envvar=False,
    ),
]
By = Annotated[
    str | None,
    typer.Option(metavar="FIELD", help="Field of a row that identifies its user.", show_default=False),
]
MethodName = Annotated[
    Method | None,
    typer.Option(
        "--method",
        help="users (the default with --by), mixture (the default without), or branches (needs --by and --start).",
        show_default=False,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="All labels in the order of the head, as a,b,c. By default, those of --start or of the data.",
        show_default=False,
    ),
]
Start = Annotated[
    Path | None,
    typer.Option(
        help="Bank to start from instead of random adapters, including its head named by --head. If it has"
        " fewer adapters than --adapters, they are repeated with differences of --start-apart, so that"
        " one shared adapter can become many.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")]


def train(  # the options that follow are the settings' (see `setting_options`)
    context: typer.Context,
    data: Data,
    out: Out,
    plm: PlmName = _DEFAULTS.plm,
    device: Device = _DEFAULTS.device,
    dtype: Dtype = "float32",
    by: By = None,
    method: MethodName = None,
    labels: Labels = None,
    start: Start = None,
    force: Force = False,
    **options: Any,
) -> None:
    """Train a bank on labelled texts, together with a head that profiles can share.

    With --by, on the texts of many users (X-PEFT's warm start): each user has masks during training, which are then
    discarded. The bank is for profiles of similar users. Without --by, on one task (AdaMix): random adapters take
    turns and learn to agree. Measured is their average, a profile with every adapter in its masks.

    Method branches (Branch-Train-Merge) starts from one adapter that all users share. Each adapter of the bank is a
    copy of it, trained alone on its own part of the users. The shared head stays fixed; measured is the average again.

    Example: xpeft bank train --data reviews.jsonl.gz --by user --out bank.safetensors

    Example: xpeft bank train --data reviews.jsonl.gz --by user --method branches --start one.safetensors --out
    bank.safetensors

    Example: xpeft bank train --data desk.jsonl --adapters 4 --width 16 --out bank.safetensors
    """
    from xpeft_server.model.banks.file import read_bank_file, write_bank_file
    from xpeft_server.model.errors import ModelError
    from xpeft_tuning.bank_training.trainable_bank import bank_bytes
    from xpeft_tuning.errors import TuningError

    check_variables(context, _VARIABLES)
    chosen = _method(method, by, start)
    try:
        settings = _settings(context, options, chosen)
        check_out_file(out, force=force)
        beginning = None if start is None else read_bank_file(start)
        order = _order_to_start_from(beginning, settings.head, chosen)
        datasets = _datasets(data, by, None if labels is None else labels.split(","), order)
        model = _plm(plm, device, dtype)
        check_out_file(out, force=force, size=bank_bytes(settings, model.facts))
        trained = _train(model, datasets, settings, chosen, beginning)
    except (ModelError, TuningError, SettingsInvalid) as error:
        fail(str(error))
    write_out_file(out, lambda path: write_bank_file(trained.bank, path, overwrite=force))
    say(f"wrote {out}")
    _report(trained)


def _method(method: Method | None, by: str | None, start: Path | None) -> Method:
    if method in ("users", "branches") and by is None:
        fail(f"--method {method} is without --by: give --by FIELD, the field that says whose row it is")
    if method == "mixture" and by is not None:
        fail(f"--by {by} and --method mixture contradict each other: a mixture knows no users")
    if method == "branches" and start is None:
        fail("--method branches is without --start: give a bank of one adapter that all users share (--adapters 1)")
    return method or ("mixture" if by is None else "users")


def _settings(context: typer.Context, options: Mapping[str, Any], method: Method) -> BankTrainingSettings:
    """Raises: TuningSettingsInvalid, also for an option on the command line that only other methods have."""
    for setting in fields(BankTrainingSettings):
        only = setting.metadata.get("methods", (method,))
        if method not in only and is_typed(context, setting.name):
            which = f"method{'s' if len(only) > 1 else ''} {' and '.join(only)}"
            raise TuningSettingsInvalid(f"{option_name(setting.name)} is of the {which}, and this is {method}")
    return BankTrainingSettings(**{name: value for name, value in options.items() if value is not None})


def _order_to_start_from(beginning: Bank | None, head: str, method: Method) -> Sequence[str]:
    """The labels of the head that training goes on with; of a bank without it none."""
    if beginning is None:
        return ()
    if head in beginning.heads:
        return beginning.heads[head].labels
    if method != "branches":  # which refuses that
        there = ", ".join(beginning.heads) or "none"
        message = f"the bank to start from has no head {head!r} (it has: {there}): it starts from zero"
        typer.echo(plain(message), err=True)
    return ()


def _datasets(data: Path, by: str | None, labels: list[str] | None, order: Sequence[str]) -> dict[str, Dataset]:
    """Of each user, or of all under one name, with the same labels. Args: order: that they have in the head to start
    from. Raises: DatasetInvalid."""
    from xpeft_tuning.bank_training.training_rows import with_all_labels
    from xpeft_tuning.dataset import read_datasets

    datasets = read_datasets(data, by, labels)
    if ignored := next(iter(datasets.values())).ignored:
        typer.echo(plain(f"fields of {data} that nobody reads: {', '.join(ignored)}"), err=True)
    return with_all_labels(datasets, order) if labels is None else datasets


def _plm(name: str, device: str, dtype: str) -> Plm:
    """Raises: ModelError, SettingsInvalid for a device that is not there."""
    from xpeft_server.model.plm import load_plm

    from ..serve.assembly import choose_device, choose_dtype

    where = choose_device(device)
    return load_plm(name, device=where, dtype=choose_dtype(dtype, where))


def _train(
    plm: Plm, datasets: Mapping[str, Dataset], settings: BankTrainingSettings, method: Method, start: Bank | None
) -> TrainedBank:
    from xpeft_server.model.banks.source import with_pooling
    from xpeft_tuning.bank_training.branches import Branches
    from xpeft_tuning.bank_training.mixture import MixtureTrainer
    from xpeft_tuning.bank_training.warm_start import WarmStart

    start = None if start is None else with_pooling(start, plm.facts)
    trainer: WarmStart | Branches | MixtureTrainer
    if method == "branches" and start is not None:  # which it never is without one, see `_method`
        trainer = Branches(plm, datasets, settings, start)
    elif method == "users":
        trainer = WarmStart(plm, datasets, settings, start)
    else:
        trainer = MixtureTrainer(plm, next(iter(datasets.values())), settings, start)
    with epoch_bar("branch" if method == "branches" else "epoch") as show:
        return trainer.train(show)


def _report(trained: TrainedBank) -> None:
    measured = f"not measured: no row's split is dev or test{', but of users left out' if trained.skipped else ''}"
    if trained.held_out is not None:
        measured = f"{shown_score(trained.held_out)} ({trained.held_out.rows} rows)"
    facts = {"rows": f"{trained.rows} trained on", "on held-out rows": measured}
    show_facts([*bank_facts(trained.bank).items(), *facts.items()])
    if trained.skipped:
        say(f"Users that are left out because they have no train row: {trained.skipped}.")
    if trained.cut:
        say(f"{trained.cut} texts were longer than the model takes; what was beyond its limit was not read.")


add_options(train, setting_options(BankTrainingSettings, variables=_VARIABLES, panels=_PANELS))
