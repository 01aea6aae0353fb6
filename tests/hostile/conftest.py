"""Seeds of the fuzzers, which the other tests change as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from xpeft_profiles import ProfileInvalid, RecordDamaged, decode_record, read_profile_file

READERS: dict[str, Callable[[bytes], object]] = {"record": decode_record, "profile_file": read_profile_file}


@pytest.fixture(scope="session")
def corpus() -> Path:
    """A folder for each fuzzer."""
    return Path(__file__).parent / "corpus"


@pytest.fixture(scope="session")
def valid_seeds(corpus: Path) -> Callable[[str], list[bytes]]:
    """What lies in a corpus and is valid, in the order of the names."""

    def read(kind: str) -> list[bytes]:
        found = []
        for path in sorted((corpus / kind).iterdir()):
            data = path.read_bytes()
            try:
                READERS[kind](data)
            except (ProfileInvalid, RecordDamaged):
                continue
            found.append(data)
        return found

    return read
