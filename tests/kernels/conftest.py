from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def one_thread(one_thread: None) -> None:
    """In every test."""


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter(quick_interpreter: None) -> None:
    """For every test."""
