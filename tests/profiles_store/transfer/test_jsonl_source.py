from __future__ import annotations

import gzip
import json
import tracemalloc
from base64 import b64encode
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from xpeft_profiles import SourceInvalid
from xpeft_profiles.transfer import Entry, Refusal, bounded_file, jsonl_source, open_source

FILE = bytes(range(256))
TEXT = b64encode(FILE).decode()


def read(path: Path, *, max_bytes: int = 1000) -> list[Entry | Refusal]:
    source = open_source(path, max_bytes=max_bytes)
    found = list(source.entries())
    assert source.bytes_total == path.stat().st_size
    assert source.bytes_read == source.bytes_total
    source.close()
    return found


@pytest.fixture
def lines(tmp_path: Path) -> Any:
    def write(*texts: str | bytes) -> Path:
        path = tmp_path / "p.jsonl"
        path.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
        return path

    return write


@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_each_line_is_an_entry_and_says_where_it_stood(lines: Any, end: str) -> None:
    path = lines(
        f'{{"tenant":"acme","name":"a","file":"{TEXT}"}}',
        f'{{"name":"b","file":"{TEXT}"}}',
        "",
        json.dumps({"file": TEXT, "name": "c", "tenant": "acme"}),
        f' {{ "name" : "\\u0064", "file":"{TEXT.replace("/", chr(92) + "/")}" }}\r{end}',
    )
    assert read(path) == [
        Entry("p.jsonl:1", "acme", "a", FILE),
        Entry("p.jsonl:2", None, "b", FILE),
        Entry("p.jsonl:4", "acme", "c", FILE),
        Entry("p.jsonl:5", None, "d", FILE),
    ]


def test_a_line_as_an_export_writes_it_is_not_parsed_as_json(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jsonl_source, "parse_json", None)
    path = lines(f'{{"tenant":"acme","name":"a","file":"{TEXT}"}}', json.dumps({"name": "b", "file": TEXT}))
    assert [entry.name for entry in read(path)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "name", "error"),
    [
        ("{", None, "line: '{' is not valid JSON"),
        ("[]", None, "line: [] is not a JSON object"),
        (b"\xff", None, "the line is not UTF-8 at byte 0"),
        ("[" * 900, None, "line: "),
        ('{"name":"a"}', "a", "file: the line must have it"),
        ('{"file":""}', None, "name: the line must have it"),
        ('{"name":1,"file":""}', None, "name: 1 is not a string"),
        ('{"name":"a","file":null}', "a", "file: None is not a string"),
        ('{"name":"a","file":"","tenant":null}', "a", "tenant: None is not a string"),
        ('{"name":"a","file":"AAAA","file":"AAAA"}', None, "line: the key 'file' stands there twice"),
        ('{"name":"a","name":"b","file":"AAAA"}', None, "line: the key 'name' stands there twice"),
        ('{"name":"a","file":"AAAA","path":"/etc"}', "a", "'path': a line may only have tenant, name, file"),
        ('{"name":"a","file":"AA"}', "a", "file: 'AA' is not base64"),
        ('{"name":"a","file":"AA A"}', "a", "file: 'AA A' is not base64"),
        ('{"name":"a","file":"ü"}', "a", "file: 'ü' is not base64"),
        ('{"name":"a","file":"\\ud800"}', "a", "file: "),
        ('{"name":"a","file":NaN}', None, "NaN is not a JSON number"),
        ('{"name":"a","file":' + "1" * 5000 + "}", None, "line: "),
    ],
)
def test_a_line_that_is_wrong_is_refused_and_the_next_is_read(
    lines: Any, line: str | bytes, name: str | None, error: str
) -> None:
    path = lines(f'{{"name":"x","file":"{TEXT}"}}', line, f'{{"name":"y","file":"{TEXT}"}}')
    first, refusal, last = read(path)
    assert (first.name, last.name) == ("x", "y")
    assert isinstance(refusal, Refusal)
    assert (refusal.where, refusal.name) == ("p.jsonl:2", name)
    assert error in refusal.error


@pytest.mark.parametrize("piece", [7, 64, 1000, 1 << 18])
def test_lines_are_the_same_whatever_is_read_at_once(lines: Any, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(jsonl_source, "PIECE", piece)
    long = "x" * 7000
    names = [f"p{n}" for n in range(9)]
    texts = [f'{{"name":"{name}","file":"{TEXT}"}}' for name in names]
    found = read(lines(*texts[:4], long, *texts[4:], long))
    assert [each.name for each in found if isinstance(each, Entry)] == names
    refusals = [each for each in found if isinstance(each, Refusal)]
    assert [each.where for each in refusals] == ["p.jsonl:5", "p.jsonl:11"]
    assert "longer than 6096 bytes" in refusals[0].error
    assert [each.where for each in found][5:7] == ["p.jsonl:6", "p.jsonl:7"]


def test_many_lines_behind_the_last_long_one_are_all_read(lines: Any) -> None:
    texts = [f'{{"name":"p{n}","file":"{TEXT}"}}' for n in range(40)]
    long, *found = read(lines("x" * (jsonl_source.PIECE + 7000), *texts))
    assert isinstance(long, Refusal)
    assert found == [Entry(f"p.jsonl:{n + 2}", None, f"p{n}", FILE) for n in range(40)]


def test_a_bomb_takes_no_memory_and_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_file, "SKIPPED_MAX", 30 << 20)
    path = tmp_path / "bomb.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(f'{{"name":"a","file":"{TEXT}"}}\n'.encode())
        for _ in range(40):
            file.write(bytes(1 << 20))
    source = open_source(path, max_bytes=1000)
    entries = source.entries()
    assert next(entries).name == "a"
    tracemalloc.start()
    with pytest.raises(SourceInvalid, match="an entry of more than 31457280 bytes: not read any further"):
        list(entries)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    source.close()
    assert peak < 4 << 20


def test_a_zipped_source_that_is_cut_off_or_none_is_said(tmp_path: Path, lines: Any) -> None:
    text = gzip.compress(f'{{"name":"a","file":"{TEXT}"}}\n'.encode() * 100)
    for content, reason in (
        (text[:-20], "ended before"),
        (b"no gzip", "Not a gzipped file"),
        (text[:20] + b"\xff" * 20 + text[40:], ""),
    ):
        path = tmp_path / "p.jsonl.gz"
        path.write_bytes(content)
        with (
            closing(open_source(path, max_bytes=1000)) as source,
            pytest.raises(SourceInvalid, match=f"p.jsonl.gz cannot be read: .*{reason}"),
        ):
            list(source.entries())
