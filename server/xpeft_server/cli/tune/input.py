"""What to tune, over which model and bank, and how, as the command line names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

from xpeft_tuning.settings import TuningSettings

from ..screen import plain

if TYPE_CHECKING:
    from xpeft_server.model.banks.bank import Bank
    from xpeft_server.model.plm import Plm
    from xpeft_tuning.dataset import Dataset


class Model(NamedTuple):
    plm: Plm
    bank: Bank


@dataclass(frozen=True, kw_only=True)
class TuningInput:
    """Names of files and models; nothing is read yet."""

    data: Path
    labels: tuple[str, ...] | None
    plm: str
    bank: str
    device: str
    dtype: str
    settings: TuningSettings

    def datasets(self, by: str | None) -> dict[str, Dataset]:
        """Value of the field ``by`` → dataset. Says once which fields nobody reads. Raises: DatasetInvalid."""
        from xpeft_tuning.dataset import read_datasets

        datasets = read_datasets(self.data, by, self.labels)
        ignored = next(iter(datasets.values())).ignored
        if ignored:
            typer.echo(plain(f"fields of {self.data} that nobody reads: {', '.join(ignored)}"), err=True)
        return datasets

    def model(self) -> Model:
        """Raises: ModelError, SettingsInvalid for a device that is not there."""
        from xpeft_server.model.banks.source import open_bank
        from xpeft_server.model.plm import load_plm

        from ..serve.assembly import choose_device, choose_dtype

        device = choose_device(self.device)
        plm = load_plm(self.plm, device=device, dtype=choose_dtype(self.dtype, device))
        return Model(plm, open_bank(self.bank, plm.facts))
