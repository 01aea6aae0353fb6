from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from xpeft_profiles import Profile
from xpeft_server.cli.tune.delivery import Delivery
from xpeft_server.cli.tune.sinks import SinkFailed
from xpeft_tuning.journal import Journal, RefusedEntry

MASK = np.eye(2, dtype=bool)
PROFILE = Profile(bank="sha256:" + "ab" * 32, mask_a=MASK, mask_b=MASK, shared_head="polar")


class Sink:
    """Holds every put up until it may go on, and looks at the journal meanwhile."""

    def __init__(self, journal: Path, fails_at: str | None = None) -> None:
        self.journal = journal
        self.fails_at = fails_at
        self.go = threading.Event()
        self.seen: list[tuple[str, int]] = []

    def versions(self, names: Sequence[str]) -> dict[str, str]:
        raise AssertionError("nobody asks")

    def put(self, name: str, profile: Profile) -> str:
        assert self.go.wait(60)
        assert profile is PROFILE
        self.seen.append((name, self.journal.read_bytes().count(b"\n")))
        if name == self.fails_at:
            raise SinkFailed("507 Insufficient Storage")
        return ""


def entry(name: str) -> RefusedEntry:
    return RefusedEntry(name=name, value=name, digest="sha256:1", refused="-")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_the_journal_is_written_after_every_sink_and_nobody_waits_for_it(path: Path) -> None:
    one, two = Sink(path), Sink(path)
    two.go.set()
    with Journal(path) as journal, closing(Delivery([one, two], journal)) as delivery:
        for name in ("ann", "bob"):
            delivery.put(entry(name), PROFILE)  # returns although the first sink holds everything up
        assert (path.read_bytes(), delivery.entries) == (b"", [])
        one.go.set()
        delivery.finish()
        assert [each.name for each in delivery.entries] == ["ann", "bob"] == list(journal.entries)
    assert one.seen == two.seen == [("ann", 0), ("bob", 1)]


def test_who_was_refused_goes_into_the_journal_alone(path: Path) -> None:
    sink = Sink(path)
    with Journal(path) as journal, closing(Delivery([sink], journal)) as delivery:
        delivery.put(entry("ann"), None)
        delivery.finish()
        assert list(journal.entries) == ["ann"]
    assert sink.seen == []


def test_nothing_is_delivered_after_a_failure_which_is_told(path: Path) -> None:
    sink = Sink(path, fails_at="bob")
    with Journal(path) as journal, closing(Delivery([sink], journal)) as delivery:
        for name in ("ann", "bob", "eve"):
            delivery.put(entry(name), PROFILE)
        sink.go.set()
        with pytest.raises(SinkFailed, match="507"):
            delivery.finish()
        delivery.close()
        assert [each.name for each in delivery.entries] == ["ann"] == list(journal.entries)
    assert sink.seen == [("ann", 0), ("bob", 1)]


def test_a_slow_sink_is_waited_for_when_too_much_is_on_the_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xpeft_server.cli.tune.delivery._WAITING", 2)
    sink = Sink(path)
    with Journal(path) as journal, closing(Delivery([sink], journal)) as delivery:
        for name in ("ann", "bob"):
            delivery.put(entry(name), PROFILE)
        threading.Timer(0.01, sink.go.set).start()
        delivery.put(entry("eve"), PROFILE)
        assert sink.seen[0] == ("ann", 0)
        delivery.finish()
    assert [name for name, _ in sink.seen] == ["ann", "bob", "eve"]
