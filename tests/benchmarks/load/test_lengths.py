from __future__ import annotations

from pathlib import Path

import pytest

from xpeft_benchmarks.load.lengths import Length, LengthsInvalid, cut_texts, open_tokenizer, read_lengths
from xpeft_server.model.errors import ModelUnusable


@pytest.mark.parametrize(
    ("name", "text", "lengths"),
    [
        ("l.txt", "5\n\n 31 \n", [Length(5, None), Length(31, None)]),
        ("l.jsonl", '{"tokens": 5, "at": 0.1}\n{"tokens": 6, "new_tokens": 7}\n', [Length(5, None), Length(6, 7)]),
        ("l.csv", "at,tokens,new_tokens\r\n0.1,5,\r\n0.2,6,7\r\n", [Length(5, None), Length(6, 7)]),
        ("l.csv", "\ufefftokens\n5\n", [Length(5, None)]),
    ],
)
def test_lengths_are_read_by_the_files_name(tmp_path: Path, name: str, text: str, lengths: list[Length]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_lengths(tmp_path / name) == lengths


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("l.txt", "5\nfive\n", "l.txt, line 2: 'five', not a whole number above 0"),
        ("l.txt", "0\n", "line 1: '0', not a whole number above 0"),
        ("l.txt", "\n", "l.txt has no line with a length"),
        ("l.jsonl", '{"tokens": 5}\n{"tokens"\n', "l.jsonl, line 2: Expecting"),
        ("l.jsonl", "5\n", "line 1: '5' is no object"),
        ("l.jsonl", '{"tokens": true}\n', "line 1: tokens is True, not a whole number above 0"),
        ("l.jsonl", '{"tokens": 5, "new_tokens": -1}\n', "line 1: new_tokens is -1, not a whole number above 0"),
        ("l.csv", "tokens\n5\n1.5\n", "line 3: tokens is '1.5', not a whole number above 0"),
        ("l.csv", "Tokens,x\n5,6\n", "line 2: there is no 'tokens', only 'Tokens', 'x'"),
    ],
)
def test_what_is_no_length_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(LengthsInvalid) as error:
        read_lengths(tmp_path / name)
    assert says in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LengthsInvalid, match=r"gone\.txt cannot be read"):
        read_lengths(tmp_path / "gone.txt")


def test_texts_have_the_lengths_that_were_asked_for(tiny_bert: Path) -> None:
    tokenizer = open_tokenizer(str(tiny_bert))
    pool = ["w1 w2 w3", "", "w4 w5", "w6"]
    texts = cut_texts(pool, [4, 3, 12, 5], tokenizer)
    # Two special tokens each.
    assert texts == ["w1 w2", "w4", "w6 w1 w2 w3 w4 w5 w6 w1 w2 w3", "w4 w5 w6"]
    assert [len(tokenizer.encode(text).ids) for text in texts] == [4, 3, 12, 5]


def test_the_packaged_models_tokenizer_counts_word_pieces() -> None:
    tokenizer = open_tokenizer("minilm")
    texts = cut_texts(["My suitcase did not arrive, unfortunately.", "Rebooking?"], range(3, 40), tokenizer)
    assert [len(tokenizer.encode(text).ids) for text in texts] == list(range(3, 40))


def test_a_length_without_room_for_a_token_is_named(tiny_bert: Path) -> None:
    with pytest.raises(LengthsInvalid, match="tokens is 2, and special tokens alone are 2"):
        cut_texts(["w1"], [5, 2], open_tokenizer(str(tiny_bert)))
    with pytest.raises(LengthsInvalid, match="none of 1 texts has a token"):
        cut_texts([" "], [5], open_tokenizer(str(tiny_bert)))


def test_a_tokenizer_that_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelUnusable, match=r"the tokenizer of .*gone"):
        open_tokenizer(str(tmp_path / "gone"))
