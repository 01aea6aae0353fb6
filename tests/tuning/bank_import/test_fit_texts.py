from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_tuning.bank_import.errors import FitTextsInvalid
from xpeft_tuning.bank_import.fit_texts import read_fit_texts


def test_every_fifth_text_is_kept_to_measure(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f" text {number} \n\n" for number in range(1, 12)))
    texts = read_fit_texts(path)
    assert texts.measured == ("text 5", "text 10")
    assert texts.fitted == tuple(f"text {number}" for number in (1, 2, 3, 4, 6, 7, 8, 9, 11))


def test_too_few_texts_are_refused_with_their_number(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("one\ntwo\n\nthree\nfour\n")
    with pytest.raises(FitTextsInvalid, match="has 4 texts, it must have 5 at least"):
        read_fit_texts(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(FitTextsInvalid, match=r"nowhere\.txt cannot be read: No such file"):
        read_fit_texts(tmp_path / "nowhere.txt")
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9")
    with pytest.raises(FitTextsInvalid, match=r"latin\.txt is not UTF-8 at byte 3"):
        read_fit_texts(path)


def test_json_lines_are_no_texts(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one", "label": "a"}\n' * 5)
    with pytest.raises(FitTextsInvalid, match=r"rows\.jsonl begins with the JSON object .* it must have plain texts"):
        read_fit_texts(path)
    path.write_text('{one}\ntwo\n3\n[4]\n"five"\n')
    assert read_fit_texts(path).measured == ('"five"',)
