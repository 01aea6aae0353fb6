"""Two processes against one, without Ray: what a machine leaves of twice, and so what two replicas can be at most.

    python deploy/ray/two_processes.py --rounds 8 > two-processes.txt

Each process classifies batches of 32 texts in a loop, with one thread. Nobody else should compute meanwhile.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Final

import typer

from xpeft_benchmarks.machine import machine
from xpeft_benchmarks.texts import example_texts, read_texts

BATCH: Final = 32

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)


@app.command(help=__doc__)
def measure(
    plm: Annotated[str, typer.Option(help="Language model: a path, a hub id, or minilm.")] = "minilm",
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of a turn.")] = 6.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds: one process, then both.")] = 8,
    data: Annotated[Path | None, typer.Option(help="JSON lines with texts; without it, the examples.")] = None,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    texts = (example_texts() if data is None else read_texts(data))[: 16 * BATCH]
    spawn = multiprocessing.get_context("spawn")
    ends = [spawn.Pipe() for _ in range(2)]
    for _, theirs in ends:
        spawn.Process(target=_classify, args=(theirs, plm, texts), daemon=True).start()
    first, second = (ours for ours, _ in ends)
    for ready in (first, second):
        ready.recv()
    typer.echo(", ".join(f"{name} {value}" for name, value in machine().items()))
    ratios = []
    for _ in range(rounds):
        one = _speed([first], seconds)
        both = _speed([first, second], seconds)
        ratios.append(both / one)
        typer.echo(f"one {one:.1f} texts/s, two {both:.1f} texts/s, ratio {ratios[-1]:.3f}")
    typer.echo(f"median ratio {statistics.median(ratios):.3f}")


def _speed(processes: list[Connection], seconds: float) -> float:
    for each in processes:
        each.send(seconds)
    return float(sum(each.recv() for each in processes))


def _classify(orders: Connection, plm: str, texts: list[str]) -> None:
    import numpy as np

    from xpeft_server.cli.serve.assembly import load_classifier
    from xpeft_server.model.classifier import ClassifierInput
    from xpeft_server.settings import Settings

    classifier = load_classifier(Settings(plm=plm, device="cpu", slots=BATCH))
    classifier.warm_up()
    tokens = classifier.plm.tokenizer.encode([(text, None) for text in texts], truncate=True)
    inputs = [ClassifierInput(text, number % BATCH, np.arange(2)) for number, text in enumerate(tokens)]
    orders.send("ready")
    while True:
        seconds, done, began = orders.recv(), 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            place = done % (len(inputs) - BATCH + 1)
            classifier.logits(inputs[place : place + BATCH])
            done += BATCH
        orders.send(done / (time.perf_counter() - began))


if __name__ == "__main__":
    app()
