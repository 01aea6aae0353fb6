from __future__ import annotations

import sys
from pathlib import Path

import pytest

from xpeft_benchmarks.xpeft_target import started

OPTIONS = {"--bank": "random:N=6,R=4,seed=1,std=0.3", "--device": "cpu", "--dtype": "float32"}


def test_a_server_starts_where_the_packages_are_found_without_being_installed(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with started({"--plm": str(tiny_bert), **OPTIONS}, store="memory://", tenants=1) as target:
        assert target.client.info(target.keys[0])["dtype"] == "float32"
