"""A tiny model for the methods of quality, and a bar that nobody sees."""

from __future__ import annotations

import io
from collections.abc import Iterator

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
