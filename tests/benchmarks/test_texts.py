from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from xpeft_benchmarks.texts import TextsInvalid, example_texts, read_texts, sample_texts


def test_texts_are_read_from_json_lines_and_other_fields_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "one", "label": 3}\n\n{"text": "zwölf"}\n', encoding="utf-8")
    assert read_texts(path) == ["one", "zwölf"]


def test_texts_are_read_from_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps({"text": "packed"}).encode()))
    assert read_texts(path) == ["packed"]


@pytest.mark.parametrize("line", ["no json", "[1]", '{"txt": "a"}', '{"text": 5}', '{"text": " "}'])
def test_a_line_without_a_text_is_refused_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(TextsInvalid, match=r"texts\.jsonl, line 2"):
        read_texts(path)


@pytest.mark.parametrize(
    ("name", "content"), [("empty.jsonl", b""), ("torn.jsonl.gz", b"\x1f\x8b"), ("x.jsonl", b"\xff")]
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextsInvalid, match=name.replace(".", r"\.")):
        read_texts(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TextsInvalid, match=r"gone\.jsonl"):
        read_texts(tmp_path / "gone.jsonl")


def test_the_examples_of_a_checkout_are_found() -> None:
    assert len(example_texts()) > 100


def test_a_sample_repeats_no_text_before_it_has_all() -> None:
    pool = [f"text {number}" for number in range(10)]
    drawn = sample_texts(pool, 25, np.random.default_rng(0))
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == pool
    assert len(drawn) == 25
