"""A tiny model for the methods of quality, and a bar that nobody sees."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.progress import Progress

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
