"""One profile's tuning: rows, their order, schedule, outcome. Its parameters are in the stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xpeft_server.model.plm import Plm

from .best_epoch import BestEpoch
from .dataset import Dataset
from .errors import Unservable
from .evaluation import Score
from .labelled_texts import LabelledTexts
from .learnable import learnable_parts
from .masks import gumbel_noise
from .settings import TuningSettings


class HeadPenalty(NamedTuple):
    """Of ``‖W - W₀‖² / 2`` and ``‖b - b₀‖² / 2``, per row."""

    weight: float = 0.0
    bias: float = 0.0


@dataclass(kw_only=True, eq=False)
class Trainee:
    """One profile that is being tuned, in ``place`` of the stack.

    Args:
        labels: C labels of its head, the shared one's own where there is one.
        penalty: of the head.
        row_weights: ``[Q]`` of the train rows' losses, mean 1.
        score: of the last whole epoch's profile, if it was scored.
        failure: why the last whole epoch left no profile.
        noise: on the mask logits in the current step, where there is any.
        losses: of the epoch's steps so far, each the mean of its rows; they may still be on the device.
    """

    name: str
    place: int
    labels: tuple[str, ...]
    settings: TuningSettings
    train: LabelledTexts
    dev: LabelledTexts
    held_out: LabelledTexts
    row_weights: Tensor
    penalty: HeadPenalty = field(default_factory=HeadPenalty)
    score: Score | None = None
    failure: Unservable | None = None
    noise: Tensor = field(default_factory=lambda: torch.zeros(()))
    steps_done: int = 0
    losses: list[SupportsFloat] = field(default_factory=list)
    _order: list[NDArray[np.int64]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.best = BestEpoch(self.settings.stop_on, self.settings.patience)
        self._shuffle = np.random.Generator(np.random.PCG64(self.settings.seed))
        self._generator = torch.Generator().manual_seed(self.settings.seed + 1)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.train) // self.settings.batch_rows)

    @property
    def epoch(self) -> int:
        """The current epoch, from 1; after its last step still the same."""
        return max(1, -(-self.steps_done // self.steps))

    @property
    def epochs_done(self) -> int:
        return self.steps_done // self.steps

    @property
    def step(self) -> int:
        """The step of the epoch, from 1."""
        return self.steps_done - (self.epoch - 1) * self.steps

    @property
    def share_done(self) -> float:
        return self.steps_done / self._all_steps

    @property
    def temperature(self) -> float:
        """Of the next step; after the last one, of that."""
        last = self._all_steps - 1
        return self.settings.temperature_at(min(1.0, self.steps_done / last) if last else 1.0)

    @property
    def _all_steps(self) -> int:
        return self.steps * self.settings.epochs

    def draw_noise(self, shape: Sequence[int]) -> None:
        """Once a step, which may go through the PLM in several passes."""
        self.noise = gumbel_noise(shape, self._generator)

    def next_rows(self) -> NDArray[np.int64]:
        """The train rows of the next step: an epoch takes each once, in a new order."""
        if not self._order:
            self._order = np.array_split(self._shuffle.permutation(len(self.train)), self.steps)[::-1]
            self.losses = []
        return self._order.pop()

    def stepped(self, loss: SupportsFloat) -> None:
        """Args: loss: mean of the step's rows."""
        self.steps_done += 1
        self.losses.append(loss)

    @property
    def ends_epoch(self) -> bool:
        return self.steps_done > 0 and not self._order

    @property
    def finished(self) -> bool:
        if not self.ends_epoch:
            return False
        ended = self.epoch == self.settings.epochs or self.best.should_stop(self.epoch)
        return ended or self.failure is not None

    @property
    def measured(self) -> LabelledTexts:
        """The held-out rows, or the train rows if none are held out."""
        return self.held_out if len(self.held_out) else self.train


class TraineeBatch(NamedTuple):
    """A trainee's rows in a step. rows: ``[n]``, n ≥ 1, of its train texts."""

    trainee: Trainee
    rows: NDArray[np.int64]


def temperatures(trainees: Sequence[Trainee], device: torch.device) -> Tensor:
    """``[P']``, of each trainee."""
    return torch.tensor([each.temperature for each in trainees], device=device)


def enrol(plm: Plm, name: str, dataset: Dataset, labels: tuple[str, ...], settings: TuningSettings) -> Trainee:
    """Split and tokenise a dataset; `Cohort.admit` gives the place.

    Raises: DataTooSmall if there is nothing to learn from the rows.
    """
    completions = dataset.completions
    train, dev, held_out = (
        LabelledTexts(plm, rows, labels, completions=completions) for rows in learnable_parts(dataset, labels, settings)
    )
    return Trainee(
        name=name,
        place=-1,
        labels=labels,
        settings=settings,
        train=train,
        dev=dev,
        held_out=held_out,
        row_weights=_row_weights(train.targets, settings) if dataset.task == "classify" else torch.ones(len(train)),
    )


def _row_weights(targets: Tensor, settings: TuningSettings) -> Tensor:
    """``[Q]`` float32: ones, or inverse label frequencies, so that all labels that occur weigh the same."""
    if settings.class_weights is None:
        return torch.ones(len(targets))
    counts = targets.bincount()
    return (len(targets) / ((counts > 0).sum() * counts[targets])).float()
