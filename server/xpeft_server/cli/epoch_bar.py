"""How far a training of several epochs is: a bar on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from xpeft_tuning.evaluation import Score


class EpochProgress(Protocol):
    """After a step. ``score``: of the last whole epoch, where anybody looked."""

    @property
    def epoch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def loss(self) -> float: ...
    @property
    def score(self) -> Score | None: ...


@contextmanager
def epoch_bar(part: str = "epoch") -> Iterator[Callable[[EpochProgress], None]]:
    """Epoch, loss, score after the last whole epoch, and the time that is left. Args: part: what epochs are called."""
    columns = (
        TextColumn(f"{part} {{task.fields[epoch]}}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[score]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), speed_estimate_period=300) as bar:
        task = bar.add_task("train", total=None, epoch="-", loss="-", score="")

        def show(progress: EpochProgress) -> None:
            bar.update(
                task,
                total=progress.epochs * progress.steps,
                completed=(progress.epoch - 1) * progress.steps + progress.step,
                epoch=f"{progress.epoch}/{progress.epochs}",
                loss=f"{progress.loss:.4f}",
                score="" if progress.score is None else _brief(progress.score),
            )

        yield show


def _brief(score: Score) -> str:
    if score.accuracy is not None:
        return f"accuracy {score.accuracy:.3f}"
    return "" if score.correlation is None else f"correlation {score.correlation:.3f}"


def shown_score(score: Score) -> str:
    """Accuracy and cross-entropy, or where labels are numbers the correlation and the mean squared error."""
    if score.accuracy is not None:
        return f"accuracy {score.accuracy:.3f}, loss {score.loss:.4g}"
    correlation = "none" if score.correlation is None else f"{score.correlation:.3f}"
    return f"correlation {correlation}, mean squared error {score.loss:.4g}"
