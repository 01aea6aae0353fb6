from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from xpeft_tuning.evaluation import Score
from xpeft_tuning.journal import Entry, Journal, JournalFailed, RefusedEntry, TunedEntry

ANN = TunedEntry(
    name="ann",
    value="Ann",
    digest="sha256:1",
    version="sha256:2",
    train=Score(0.25, 10, accuracy=0.9),
    held_out=Score(0.5, 2, accuracy=0.5),
    majority=0.5,
    epoch=3,
    cut=0,
    seconds=1.5,
)
BOB = replace(ANN, name="bob", train=Score(0.25, 10, correlation=0.9), held_out=None, majority=None)
CARL = replace(ANN, name="carl", majority=None, bare=Score(0.75, 2))
EVE = RefusedEntry(name="eve", value="é\n\ud800", digest="sha256:3", refused="the train rows have 1 label")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def write(path: Path, *entries: Entry) -> None:
    with Journal(path) as journal:
        for entry in entries:
            journal.append(entry)


def read(path: Path) -> dict[str, Entry]:
    with Journal(path) as journal:
        return journal.entries


def test_what_was_appended_is_read_back(path: Path) -> None:
    assert read(path) == {}
    write(path, ANN, BOB, CARL, EVE)
    assert read(path) == {"ann": ANN, "bob": BOB, "carl": CARL, "eve": EVE}


def test_a_line_of_a_version_that_did_not_score_the_bare_model_is_read(path: Path) -> None:
    write(path, ANN)
    path.write_text(path.read_text().replace(', "bare": null', ""))
    assert "bare" not in path.read_text()
    assert read(path) == {"ann": ANN}


def test_a_line_is_json_with_the_scores_that_there_are(path: Path) -> None:
    write(path, ANN, BOB)
    ann, bob = map(json.loads, path.read_text().splitlines())
    assert (ann["train"], ann["held_out"]) == (
        {"loss": 0.25, "rows": 10, "accuracy": 0.9},
        {"loss": 0.5, "rows": 2, "accuracy": 0.5},
    )
    assert (bob["train"], bob["held_out"]) == ({"loss": 0.25, "rows": 10, "correlation": 0.9}, None)


def test_of_several_lines_about_a_profile_the_last_counts(path: Path) -> None:
    again = replace(ANN, version="sha256:9")
    write(path, ANN, BOB, again)
    assert read(path) == {"ann": again, "bob": BOB}
    with Journal(path) as journal:
        journal.append(EVE)
        assert journal.entries == {"ann": again, "bob": BOB, "eve": EVE}


def test_a_line_is_on_the_disk_before_append_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(path.read_bytes()))
    write(path, ANN, BOB)
    whole = path.read_bytes()
    assert synced == [whole[: whole.index(b"\n") + 1], whole]


def test_a_last_line_that_was_torn_anywhere_is_cut_off(path: Path) -> None:
    write(path, ANN, EVE)
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert read(path) == {"ann": ANN}, whole[first:end]
        assert path.read_bytes() == whole[:first]
    write(path, BOB)
    assert read(path) == {"ann": ANN, "bob": BOB}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"text": "a", "label": "b"}\n', 1),
        (b'{"text": "a", "label": "b"}', 1),
        (b'{"name": "a", "value": "a"}\n', 1),
        (b'{"name": "a", "value": "a", "digest": "d", "refused": "r", "more": 1}\n', 1),
        (b'{"name": "a", "value": "a", "digest": "d", "refused": "r"}\n[]\n', 2),
        (b'{"name": "a", "value": "a", "digest": "d", "refused": "r"}\n\n', 2),
        (b'{"name": "a", "value": "a", "digest": "d", "refused": "r"}\n{"name": "\n', 2),
        (b'{"name": "a", "value": "a", "digest": "d", "refused": "r"}\nx', 2),
        (b"\xff\xfe\n", 1),
    ],
)
def test_a_file_that_is_no_journal_is_left_as_it_is(path: Path, content: bytes, line: int) -> None:
    path.write_bytes(content)
    with pytest.raises(JournalFailed, match=rf"journal\.jsonl: line {line} is no line of a journal"):
        Journal(path)
    assert path.read_bytes() == content


def test_two_runs_do_not_write_one_journal(path: Path) -> None:
    with Journal(path), pytest.raises(JournalFailed, match="is being written by another run"):
        Journal(path)
    write(path, ANN)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalFailed, match="no/journal cannot be opened: No such file or directory"):
        Journal(tmp_path / "no" / "journal")
    with pytest.raises(JournalFailed, match="cannot be opened: Is a directory"):
        Journal(tmp_path)


def test_a_full_disk_is_told_by_the_journals_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with Journal(path) as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(JournalFailed, match=r"journal\.jsonl cannot be written: No space left on device"):
            journal.append(ANN)
        assert journal.entries == {}
