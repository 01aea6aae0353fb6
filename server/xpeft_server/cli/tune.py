"""``xpeft tune``: labelled texts in, a profile out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from xpeft_server.output_file import output_file
from xpeft_server.settings import Settings
from xpeft_tuning.settings import TuningSettings

from .profiles_client import ClientError, ProfilesClient
from .screen import fail, say, show_facts

if TYPE_CHECKING:
    from xpeft_profiles import Profile
    from xpeft_tuning.dataset import Dataset
    from xpeft_tuning.mask_tuner import TunedProfile, TuningProgress

_DEFAULTS = Settings()
_BY_HAND = frozenset({"kind", "shared_head"})  # settings whose options read otherwise: --soft and --head
_SHARED = "shared:"

app = typer.Typer(pretty_exceptions_show_locals=False)

Data = Annotated[
    Path,
    typer.Option(
        help='Rows, one JSON object a line: {"text", "label"} and, if wanted, "text_pair" and "split" (train, dev or'
        " test, in every row or none). Test rows measure and never teach; dev rows too, unless --stop-on needs them."
    ),
]
PlmName = Annotated[
    str, typer.Option(envvar="XPEFT_PLM", help="The server's language model: a path, a hub id, or the default's name.")
]
BankName = Annotated[
    str, typer.Option(envvar="XPEFT_BANK", help="The server's adapter bank: a file, or random:N=…,R=…,seed=…,std=….")
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(envvar="XPEFT_DEVICE", help="Where to tune, in float32.")
]
Out = Annotated[Path | None, typer.Option(help="Write the profile file (.safetensors) here.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")]
Url = Annotated[
    str | None, typer.Option(envvar="XPEFT_URL", help="Upload to the server here, as --profile.", show_default=False)
]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="XPEFT_API_KEY",
        help="Key of the tenant. Prefer the variable: other users of this machine can read options.",
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--profile", help="Name on the server; what has it is replaced.", show_default=False),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="All labels, in the order they shall have: a,b,c. Else as the data has them.", show_default=False
    ),
]
Head = Annotated[
    str | None,
    typer.Option(help="shared:NAME takes a head of the bank; else the profile gets its own.", show_default=False),
]
Soft = Annotated[
    bool, typer.Option("--soft", help="Masks that weigh the whole bank instead of choosing k adapters; larger.")
]


def tune(  # the options that follow are the settings' (see `_setting_options`)
    context: typer.Context,
    data: Data,
    plm: PlmName = _DEFAULTS.plm,
    bank: BankName = _DEFAULTS.bank,
    device: Device = _DEFAULTS.device,
    out: Out = None,
    force: Force = False,
    url: Url = None,
    api_key: ApiKey = None,
    profile: Name = None,
    labels: Labels = None,
    head: Head = None,
    soft: Soft = False,
    **options: Any,
) -> None:
    """Tune a profile on labelled texts; write it to a file, upload it, or both.

    The language model and the bank stay as they are: learned is which adapters the profile chooses, a LayerNorm
    affine, and a head. The accuracy at the end is that of the profile as it will be served, on held-out rows.

    Example: xpeft tune --data desk.jsonl --out desk.safetensors

    Example: xpeft tune --data desk.jsonl --url http://127.0.0.1:8000 --profile desk
    """
    source = context.get_parameter_source("url")
    if profile is None and source is not None and source.name == "COMMANDLINE":
        fail("--url needs a name to upload to: give --profile")
    if profile is not None and url is None:
        fail(f"--profile {profile} needs a server: give --url, or XPEFT_URL")
    if profile is None and out is None:
        fail("there is nowhere to put the profile: give --out, or --url and --profile")
    if out is not None and out.exists() and not force:
        fail(f"{out} is there already: give another --out, or --force to replace it")
    settings = _settings(options, soft=soft, head=head)
    upload = _uploader(url, api_key, profile) if url is not None and profile is not None else None
    dataset = _dataset(data, None if labels is None else labels.split(","))
    tuned = _tune(plm, bank, device, dataset, settings)
    _report(tuned)
    _deliver(tuned.profile, out, force=force, upload=upload)


def _settings(options: dict[str, Any], *, soft: bool, head: str | None) -> TuningSettings:
    from xpeft_tuning.errors import SettingsInvalid

    if head is not None and not (head.startswith(_SHARED) and head != _SHARED):
        fail(f"head is {head!r}, it must be {_SHARED}NAME, a head of the bank")
    try:
        return TuningSettings(
            kind="soft" if soft else "hard",
            shared_head=head and head.removeprefix(_SHARED),
            **{name: value for name, value in options.items() if value is not None},
        )
    except SettingsInvalid as error:
        fail(str(error))


def _uploader(url: str, api_key: str | None, name: str) -> Callable[[bytes], str]:
    """Ask the server for its profiles first: an address or a key that is wrong shall not cost a whole tuning."""
    from xpeft_profiles import ProfileInvalid, check_name

    try:
        check_name(name)
        client = ProfilesClient(url, api_key)
        for _ in client.list(prefix=name, limit=1):
            pass
    except (ClientError, ProfileInvalid) as error:
        fail(str(error))

    def upload(file: bytes) -> str:
        answer = client.put(name, file, if_match=None, if_none_match=None)
        outcome = "created" if answer.status == 201 else "stored"
        return f"{outcome} {name} {answer.headers.get('etag', '').strip(chr(34))}".rstrip()

    return upload


def _dataset(path: Path, labels: list[str] | None) -> Dataset:
    from xpeft_tuning.dataset import read_dataset
    from xpeft_tuning.errors import DatasetInvalid

    try:
        return read_dataset(path, labels)
    except DatasetInvalid as error:
        fail(str(error))


def _tune(plm_name: str, bank_name: str, device: str, dataset: Dataset, settings: TuningSettings) -> TunedProfile:
    from xpeft_server.model.bank_source import open_bank
    from xpeft_server.model.errors import ModelError
    from xpeft_server.model.plm import load_plm
    from xpeft_server.settings import SettingsInvalid
    from xpeft_tuning.errors import TuningError
    from xpeft_tuning.mask_tuner import tune_profile

    from .assembly import choose_device

    try:
        plm = load_plm(plm_name, device=choose_device(device))
        bank = open_bank(bank_name, plm.facts)
        with _progress_bar() as show:
            return tune_profile(plm, bank, dataset, settings, show)
    except (ModelError, TuningError, SettingsInvalid) as error:
        fail(str(error))


@contextmanager
def _progress_bar() -> Iterator[Callable[[TuningProgress], None]]:
    """On stderr: epoch, loss, accuracy after the last whole epoch, and the time that is left."""
    columns = (
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[accuracy]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("tune", total=None, epoch="-", loss="-", accuracy="")

        def show(progress: TuningProgress) -> None:
            bar.update(
                task,
                total=progress.epochs * progress.steps,
                completed=(progress.epoch - 1) * progress.steps + progress.step,
                epoch=f"{progress.epoch}/{progress.epochs}",
                loss=f"{progress.loss:.4f}",
                accuracy="" if progress.score is None else f"accuracy {progress.score.accuracy:.3f}",
            )

        yield show


def _report(tuned: TunedProfile) -> None:
    measured = tuned.held_out or tuned.train
    facts = {
        "rows": f"{tuned.train.rows} tuned on, {tuned.held_out.rows if tuned.held_out else 'none'} held out",
        "epoch kept": str(tuned.epoch),
        "accuracy on": "held-out rows" if tuned.held_out else "the rows it was tuned on: none are held out",
        "  always the most frequent label": f"{tuned.majority:.3f}",
    }
    if tuned.head_alone is not None:
        facts["  a head alone, without masks"] = f"{tuned.head_alone.accuracy:.3f}"
    facts["  this profile"] = f"{measured.accuracy:.3f}"
    facts["version"] = tuned.profile.version
    show_facts(facts.items())
    if tuned.head_alone is not None and measured.accuracy <= tuned.head_alone.accuracy:
        say("On these rows the masks add no accuracy to what a head alone has.")
    if tuned.cut:
        say(f"{tuned.cut} texts were longer than the model takes; what was beyond its limit was not read.")


def _deliver(profile: Profile, out: Path | None, *, force: bool, upload: Callable[[bytes], str] | None) -> None:
    from xpeft_profiles import write_profile_file

    file = write_profile_file(profile)
    if out is not None:
        try:
            with output_file(out, overwrite=force) as target:
                target.write(file)
        except OSError as error:
            fail(f"{out} cannot be written: {error.strerror or error}")
        say(f"wrote {out} ({len(file)} bytes)")
    if upload is not None:
        try:
            say(upload(file))
        except ClientError as error:
            fail(str(error))


def _setting_options() -> list[inspect.Parameter]:
    """An option for each setting of `TuningSettings`, which describes it."""
    hints = get_type_hints(TuningSettings)
    return [_option(setting, hints[setting.name]) for setting in fields(TuningSettings) if setting.name not in _BY_HAND]


def _option(setting: Field[Any], kind: Any) -> inspect.Parameter:
    text = setting.metadata["help"]
    variable = f"XPEFT_TUNE_{setting.name.upper()}"
    default = "" if setting.default is None else f" Default: {setting.default}."
    option = typer.Option(
        envvar=variable, show_envvar=False, show_default=False, help=f"{text[0].upper()}{text[1:]}.{default}"
    )
    return inspect.Parameter(
        setting.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


_BY_SIGNATURE = [
    parameter.replace(annotation=get_type_hints(tune, include_extras=True)[name])
    for name, parameter in inspect.signature(tune).parameters.items()
    if parameter.kind is not inspect.Parameter.VAR_KEYWORD
]
tune.__signature__ = inspect.Signature([*_BY_SIGNATURE, *_setting_options()])  # type: ignore[attr-defined]
app.command()(tune)
