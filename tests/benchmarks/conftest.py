"""A tiny model for the methods of quality, and a bar that nobody sees."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

from xpeft_benchmarks.processes.workers import WorkerFailed
from xpeft_quality.progress import Show
from xpeft_server.model.plm import Plm, load_plm


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Of products this small, threads only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plm(tiny_bert, one_thread) -> Plm:
    return load_plm(str(tiny_bert))


@pytest.fixture(scope="module")
def bar() -> Progress:
    return Progress(console=Console(file=io.StringIO()))


@pytest.fixture(scope="module")
def show(bar: Progress) -> Show:
    return Show(bar, "a cell")


@pytest.fixture(scope="session")
def endless(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, of which every token ends a text where that is not switched off."""
    folder = tmp_path_factory.mktemp("endless") / "endless"
    shutil.copytree(tiny_llama, folder)
    tokens = list(range(json.loads((folder / "config.json").read_text())["vocab_size"]))
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": tokens}))
    return folder


class WorkerHere:
    """A `Worker` of one job, whose program runs in this process: one of its own imports torch for seconds."""

    def __init__(self, module: str) -> None:
        self._module = module

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, **job: Any) -> dict[str, Any]:
        output = io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", io.StringIO(json.dumps(job) + "\n"))
            patch.setattr(sys, "stdout", output)
            patch.delitem(sys.modules, self._module, raising=False)
            runpy.run_module(self._module, run_name="__main__")
        answer: dict[str, Any] = json.loads(output.getvalue())
        if "failed" in answer:
            raise WorkerFailed(answer["failed"])
        return answer

    def close(self) -> None:
        """Its program ended with its job."""


@pytest.fixture
def worker_here() -> type[WorkerHere]:
    return WorkerHere
