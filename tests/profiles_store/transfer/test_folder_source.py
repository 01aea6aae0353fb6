from __future__ import annotations

import os
from pathlib import Path

import pytest

from xpeft_profiles import SourceInvalid
from xpeft_profiles.transfer import Entry, Refusal, open_source


def read(path: Path) -> dict[str, Entry | Refusal]:
    return {each.where: each for each in open_source(path, max_bytes=5).entries()}


def test_files_lie_in_the_folder_or_in_a_tenants(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    (tmp_path / "acme" / "b.c.safetensors").write_bytes(b"")
    assert read(tmp_path) == {
        "a.safetensors": Entry("a.safetensors", None, "a", b"12345"),
        "acme/b.c.safetensors": Entry("acme/b.c.safetensors", "acme", "b.c", b""),
    }


def test_what_is_no_profile_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "acme" / "deep").mkdir(parents=True)
    (tmp_path / "acme" / "deep" / "x.safetensors").write_bytes(b"x")
    (tmp_path / "README").write_bytes(b"x")
    (tmp_path / "link.safetensors").symlink_to("/etc/passwd")
    (tmp_path / "folder-link").symlink_to("/etc")
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "secret.safetensors").mkdir()
    found = read(tmp_path)
    assert {where: each.error for where, each in found.items() if isinstance(each, Refusal)} == {
        "acme/deep": "is not a file, it is not followed",
        "README": "path: 'README' is no profile file, its name does not end in .safetensors",
        "link.safetensors": "is a link, it is not followed",
        "folder-link": "is a link, it is not followed",
        "pipe.safetensors": "is not a file, it is not followed",
    }
    assert len(found) == 5


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / ".git").mkdir()
    for path in (".journal.jsonl", ".a.safetensors", "acme/.b.safetensors.0f.draft", ".git/c.safetensors"):
        (tmp_path / path).write_bytes(b"x")
    (tmp_path / "a.safetensors").write_bytes(b"12345")
    assert list(read(tmp_path)) == ["a.safetensors"]


def test_no_more_of_a_large_file_is_read_than_shows_that_it_is_too_large(tmp_path: Path) -> None:
    with (tmp_path / "large.safetensors").open("wb") as file:
        file.truncate(1 << 40)
    (entry,) = read(tmp_path).values()
    assert isinstance(entry, Entry)
    assert len(entry.file) == 6


@pytest.mark.parametrize(
    ("name", "error"), [("gone", "is not there"), ("a.zip", "neither a folder nor a .tar"), ("p.jsonl", "is not there")]
)
def test_a_source_that_is_none_is_said(tmp_path: Path, name: str, error: str) -> None:
    (tmp_path / "a.zip").write_bytes(b"")
    with pytest.raises(SourceInvalid, match=error):
        open_source(tmp_path / name, max_bytes=5)
