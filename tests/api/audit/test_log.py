"""The audit log's thread, its limit of refusals, and its file."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

from xpeft_server.api.audit.file import AuditFile
from xpeft_server.api.audit.log import REFUSED_PER_SECOND, AuditLog, AuditLogger


class SlowSink:
    def __init__(self):
        self.go, self.lines = threading.Event(), []

    def write(self, lines):
        assert self.go.wait(10)
        self.lines += map(json.loads, lines)

    def close(self):
        pass


class Sink:
    def __init__(self):
        self.lines, self.failure, self.told = [], None, threading.Event()

    def write(self, lines):
        if self.failure:
            raise self.failure
        self.lines += map(json.loads, lines)
        if any("left_out" in json.loads(line) for line in lines):
            self.told.set()

    def close(self):
        pass


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def actions(path):
    return [json.loads(line)["action"] for line in path.read_text().splitlines()]


def test_entries_are_written_in_their_order_and_all_before_the_end(path):
    log = AuditLog(AuditFile(path))
    for number in range(3000):
        log.write({"action": number})
    log.close()
    assert actions(path) == list(range(3000))
    assert opened(path) == 0, "what a full disk is rid of takes no room while the server runs"


def test_who_writes_an_entry_does_not_wait_for_the_sink():
    sink = SlowSink()
    log = AuditLog(sink)
    for number in range(12_000):
        log.write({"action": number})
    sink.go.set()
    log.close()
    log._thread.join()
    kept = [line["action"] for line in sink.lines if line["action"] != "lines_lost"]
    assert 10_000 <= len(kept) < 12_000
    assert kept == list(range(len(kept)))


def test_lines_that_were_lost_are_counted_when_the_sink_works_again(caplog):
    sink = Sink()
    log = AuditLog(sink)
    failed = threading.Event()

    class Full:
        def write(self, lines):
            failed.set()
            raise OSError(28, "No space left on device")

    log._sink = Full()
    log.write({"action": "lost"})
    assert failed.wait(10)
    while not caplog.records:
        pass
    log._sink = sink
    log.write({"action": "kept"})
    log.close()
    assert [(line["action"], line.get("lost")) for line in sink.lines] == [("kept", None), ("lines_lost", 1)]
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "No space left on device" in caplog.text


def test_so_many_refusals_of_a_second_are_written_for_each_status():
    now = 5.0
    sink = Sink()
    log = AuditLog(sink, now=lambda: now)
    for _ in range(50):
        log.refused(401, {"action": "a"})
    for _ in range(12):
        log.refused(403, {"action": "b"})
    now = 6.0
    log.refused(401, {"action": "c"})
    assert sink.told.wait(10), "the count is told when the second is over, without another refusal"
    log.close()
    written = [line["action"] for line in sink.lines if "left_out" not in line]
    assert (written.count("a"), written.count("b"), written.count("c")) == (REFUSED_PER_SECOND, REFUSED_PER_SECOND, 1)
    counts = {line["status"]: line["left_out"] for line in sink.lines if "left_out" in line}
    assert counts == {401: 50 - REFUSED_PER_SECOND, 403: 12 - REFUSED_PER_SECOND}


def test_the_end_tells_what_was_left_out():
    sink = Sink()
    log = AuditLog(sink, now=lambda: 1.0)
    for _ in range(25):
        log.refused(401, {"action": "a"})
    log.close()
    assert sink.lines[-1]["left_out"] == 25 - REFUSED_PER_SECOND


def test_without_a_file_the_lines_are_logged_at_info(caplog):
    caplog.set_level("INFO")
    log = AuditLog(AuditLogger())
    log.write({"action": "profile.put"})
    log.close()
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("xpeft.audit", "INFO")
    assert json.loads(record.getMessage())["action"] == "profile.put"


def test_a_file_is_made_for_its_owner_alone_and_appended_to(path):
    AuditFile(path).write([b"one\n"])
    AuditFile(path).write([b"two\n"])
    assert path.read_bytes() == b"one\ntwo\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_was_moved_away_is_begun_anew(path):
    file = AuditFile(path)
    file.write([b"one\n"])
    path.rename(path.with_suffix(".1"))
    file.write([b"two\n"])
    path.unlink()
    file.write([b"three\n"])
    path.unlink()
    path.touch()
    file.write([b"four\n"])
    assert path.with_suffix(".1").read_bytes() == b"one\n"
    assert path.read_bytes() == b"four\n"
    assert opened(path) == 1


def opened(path):
    return sum(str(path) in _target(link) for link in Path("/proc/self/fd").iterdir())


def _target(link):
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_a_line_that_was_cut_by_a_full_disk_does_not_spoil_the_next(path, monkeypatch):
    file = AuditFile(path)
    write = os.write
    room = [3]

    def full(descriptor, data):
        if not room:
            raise OSError(28, "No space left on device")
        return write(descriptor, bytes(data[: room.pop()]))

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            file.write([b"first\n", b"second\n"])
        with pytest.raises(OSError, match="No space"):
            file.write([b"third\n"])
    file.write([b"fourth\n"])
    assert path.read_bytes() == b"fir\nfourth\n"


def test_a_line_that_another_process_or_an_earlier_server_left_unfinished_does_not_spoil_the_next(path):
    here, there = AuditFile(path), AuditFile(path)
    here.write([b"one\n"])
    with path.open("ab") as unfinished:
        unfinished.write(b"tw")
    there.write([b"three\n"])
    with path.open("ab") as unfinished:
        unfinished.write(b"fo")
    AuditFile(path).write([b"five\n"])
    here.write([b"six\n"])
    assert path.read_bytes() == b"one\ntw\nthree\nfo\nfive\nsix\n"


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    for path in (tmp_path, tmp_path / "fifo", tmp_path / "no" / "folder"):
        with pytest.raises(OSError, match=r"directory|regular|No such"):
            AuditFile(path)
    os.close(reader)
