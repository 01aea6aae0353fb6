from __future__ import annotations

import sys
from pathlib import Path

import pytest

from xpeft_benchmarks.processes.xpeft_target import started

NOT_INSTALLED = """
from importlib.metadata import Distribution, PackageNotFoundError

installed = Distribution.from_name.__func__


def from_name(cls, name):
    if name == "xpeft-server":
        raise PackageNotFoundError(name)
    return installed(cls, name)


Distribution.from_name = classmethod(from_name)
"""
OPTIONS = {"--bank": "random:N=6,R=4,seed=1,std=0.3", "--device": "cpu", "--dtype": "float32"}


def test_a_server_starts_where_the_packages_are_found_without_being_installed(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    (tmp_path / "sitecustomize.py").write_text(NOT_INSTALLED)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}:$PYTHONPATH exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with started({"--plm": str(tiny_bert), **OPTIONS}, store="memory://", tenants=1) as target:
        assert target.client.info(target.keys[0])["dtype"] == "float32"
