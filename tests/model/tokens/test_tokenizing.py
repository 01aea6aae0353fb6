from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tokenizers.decoders import CTC
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from xpeft_server.model.errors import ModelUnusable
from xpeft_server.model.tokens.tokenizing import TextTokenizer, TokenizedText

BOS, EOS, FIRST = 0, 2, 4


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def ids(text: TokenizedText) -> list[int]:
    return text.ids.tolist()


@pytest.fixture
def tokenizer(lab: Any) -> TextTokenizer:
    return TextTokenizer(lab.tokenizer(), 12)


def test_a_text_has_its_special_tokens(tokenizer: TextTokenizer) -> None:
    (text,) = tokenizer.encode([(words(1, 2), None)])
    assert ids(text) == [BOS, FIRST + 1, FIRST + 2, EOS]
    assert text.type_ids.tolist() == [0, 0, 0, 0]
    assert len(text) == 4
    assert text.ids.dtype == text.type_ids.dtype == np.int32


def test_a_pair_is_told_apart_by_type(tokenizer: TextTokenizer) -> None:
    (text,) = tokenizer.encode([(words(1), words(2, 3))])
    assert ids(text) == [BOS, FIRST + 1, EOS, FIRST + 2, FIRST + 3, EOS]
    assert text.type_ids.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_pair_is_not_told_apart_for_a_model_that_takes_no_types(lab: Any) -> None:
    tokenizer = TextTokenizer(lab.tokenizer(model_input_names=["input_ids", "attention_mask"]), 12)
    (text,) = tokenizer.encode([(words(1), words(2, 3))])
    assert text.type_ids.tolist() == [0] * 6
    assert text.type_ids.dtype == np.int32


def test_texts_and_pairs_come_back_in_order(tokenizer: TextTokenizer) -> None:
    found = tokenizer.encode([(words(1), None), (words(2), words(3)), (words(4, 5, 6), None)])
    assert [len(text) for text in found] == [3, 5, 5]
    assert tokenizer.encode([]) == []


def test_a_text_is_as_long_as_it_is_until_it_is_to_be_cut(tokenizer: TextTokenizer) -> None:
    long = words(*range(100))
    assert len(tokenizer.encode([(long, None)])[0]) == 102
    (cut,) = tokenizer.encode([(long, None)], truncate=True)
    assert ids(cut) == [BOS, *range(FIRST, FIRST + 10), EOS]


def test_of_a_text_that_is_far_too_long_a_beginning_is_enough(tokenizer: TextTokenizer) -> None:
    long = words(*(number % 100 for number in range(200_000)))
    enough = tokenizer.enough_of(long)
    assert len(enough) < 20_000 < len(long)
    assert long.startswith(enough)
    assert len(tokenizer.encode([(enough, None)])[0]) > 2 * tokenizer.limit
    for pair in (words(1), None):
        (cut,), (whole,) = (tokenizer.encode([(text, pair)], truncate=True) for text in (enough, long))
        assert ids(cut) == ids(whole)


def test_a_text_of_many_characters_and_few_tokens_is_needed_to_its_end(tokenizer: TextTokenizer) -> None:
    text = words(1, 2) + " " * 1_000_000 + words(3)
    assert tokenizer.enough_of(text) == text


@pytest.mark.parametrize("side", ["right", "left"])
def test_of_a_text_without_tokens_no_more_than_a_million_characters_are_read(lab: Any, side: str) -> None:
    tokenizer = TextTokenizer(lab.tokenizer(truncation_side=side), 12)
    for text in ("a" * 3_000_000, " " * 3_000_000, words(1) + " " * 3_000_000 + words(2)):
        enough = tokenizer.enough_of(text)
        assert len(enough) == 1 << 20
        assert text.startswith(enough) if side == "right" else text.endswith(enough)


def test_a_text_is_cut_at_its_start_where_the_tokenizer_says_so(lab: Any) -> None:
    tokenizer = TextTokenizer(lab.tokenizer(truncation_side="left"), 12)
    (cut,) = tokenizer.encode([(words(*range(100)), None)], truncate=True)
    assert ids(cut) == [BOS, *range(FIRST + 90, FIRST + 100), EOS]
    long = words(*range(100)) * 2000 + " " + words(7, 8, 9)
    enough = tokenizer.enough_of(long)
    assert len(enough) < 20_000
    assert long.endswith(enough)
    whole, part = tokenizer.encode([(long, None), (enough, None)], truncate=True)
    assert ids(whole) == ids(part)


@pytest.mark.parametrize("truncate", [False, True])
def test_special_tokens_that_stand_in_a_text_are_words_where_the_tokenizer_says_so(lab: Any, truncate: bool) -> None:
    plain, split = (
        TextTokenizer(lab.tokenizer(split_special_tokens=split, extra_special_tokens=["w9 w8"]), 12)
        for split in (False, True)
    )
    [special] = plain.encode([("w1 w9 w8", None)], truncate=truncate)
    [words_alone] = split.encode([("w1 w9 w8", None)], truncate=truncate)
    assert (len(special), ids(words_alone)) == (4, [BOS, FIRST + 1, FIRST + 9, FIRST + 8, EOS])
    assert ids(split.encode_bare(["w9 w8"])[0]) == [FIRST + 9, FIRST + 8]


def test_what_is_short_enough_is_never_cut(tokenizer: TextTokenizer) -> None:
    texts = [(words(*range(10)), None), (words(1, 2, 3), words(4, 5, 6))]
    for whole, cut in zip(tokenizer.encode(texts), tokenizer.encode(texts, truncate=True), strict=True):
        assert ids(whole) == ids(cut)


@pytest.mark.parametrize(
    ("first", "second", "left"), [(20, 3, (6, 3)), (3, 20, (3, 6)), (20, 20, (5, 4)), (5, 5, (5, 4)), (7, 5, (5, 4))]
)
def test_of_a_pair_the_longer_side_is_cut_first(
    tokenizer: TextTokenizer, first: int, second: int, left: tuple[int, int]
) -> None:
    pair = words(*range(first)), words(*range(100, 100 + second))
    (cut,) = tokenizer.encode([pair], truncate=True)
    kept = sum(FIRST <= each < FIRST + 100 for each in ids(cut)), sum(each >= FIRST + 100 for each in ids(cut))
    assert len(cut) == 12
    assert sum(kept) == 9
    assert sorted(kept) == sorted(left)
    if abs(first - second) > 9:
        assert kept == left


def test_truncation_and_padding_of_the_file_are_switched_off(lab: Any) -> None:
    from_file = lab.tokenizer()
    from_file.backend_tokenizer.enable_truncation(5)
    from_file.backend_tokenizer.enable_padding(length=30, pad_id=1, pad_token="<pad>")
    tokenizer = TextTokenizer(from_file, 12)
    assert len(tokenizer.encode([(words(*range(100)), None)])[0]) == 102
    assert [len(text) for text in tokenizer.encode([(words(1), None), (words(*range(8)), None)])] == [3, 10]
    assert len(tokenizer.encode([(words(1), None)], truncate=True)[0]) == 3


def test_the_callers_tokenizer_is_left_as_it_was(lab: Any) -> None:
    from_file: PreTrainedTokenizerFast = lab.tokenizer()
    from_file.backend_tokenizer.enable_truncation(5)
    TextTokenizer(from_file, 12)
    assert from_file.backend_tokenizer.truncation["max_length"] == 5


@pytest.mark.parametrize(("model_max_length", "positions", "limit"), [(80, 60, 60), (50, 60, 50), (10**30, 60, 60)])
def test_the_limit_is_the_smaller_of_the_tokenizers_and_the_models(
    lab: Any, model_max_length: int, positions: int, limit: int
) -> None:
    tokenizer = TextTokenizer(lab.tokenizer(model_max_length), positions)
    assert tokenizer.limit == limit
    assert len(tokenizer.encode([(words(*range(100)), None)], truncate=True)[0]) == limit


def test_the_positions_of_a_family_are_the_limit(lab: Any) -> None:
    assert {family: lab.plm(family).tokenizer.limit for family in ("bert", "roberta", "gpt2")} == {
        "bert": 80,
        "roberta": 80,
        "gpt2": 80,
    }
    assert lab.plm("minilm").tokenizer.limit == 512


def test_words_that_nobody_knows_are_no_error(tokenizer: TextTokenizer) -> None:
    assert ids(
        tokenizer.encode([("zebra w1 \ud83d\ude42".encode("utf-16", "surrogatepass").decode("utf-16"), None)])[0]
    )


def test_a_tokenizer_without_a_fast_form_is_refused() -> None:
    with pytest.raises(ModelUnusable, match="ByT5Tokenizer\\) has no fast form"):
        TextTokenizer(ByT5Tokenizer(), 12)


def test_several_threads_may_encode_at_once(tokenizer: TextTokenizer) -> None:
    texts = [words(*range(number % 30)) or "w0" for number in range(200)]
    with ThreadPoolExecutor(4) as pool:
        whole = list(pool.map(lambda text: ids(tokenizer.encode([(text, None)])[0]), texts))
        cut = list(pool.map(lambda text: ids(tokenizer.encode([(text, None)], truncate=True)[0]), texts))
    assert [len(each) for each in whole] == [len(text.split()) + 2 for text in texts]
    assert [len(each) for each in cut] == [min(len(text.split()) + 2, 12) for text in texts]


def test_it_tells_what_a_token_adds_to_a_text(tokenizer: TextTokenizer) -> None:
    assert tokenizer.token_text(FIRST + 7) == (" w7", b" w7")
    assert tokenizer.token_text(EOS) == ("</s>", b"</s>")
    assert (tokenizer.is_special(EOS), tokenizer.is_special(FIRST + 7)) == (True, False)
    assert tokenizer.texts.part(FIRST + 7) == " w7"
    assert tokenizer.texts is tokenizer.texts


def test_one_whose_texts_cannot_be_streamed_still_encodes(lab: Any) -> None:
    from_file: PreTrainedTokenizerFast = lab.tokenizer()
    from_file.backend_tokenizer.decoder = CTC()
    tokenizer = TextTokenizer(from_file, 12)
    assert len(tokenizer.encode([(words(1), None)])[0]) == 3
    with pytest.raises(ModelUnusable, match=r"decoder \(CTC\)"):
        tokenizer.token_text(5)


def test_special_tokens_before_a_text_are_counted(tokenizer: TextTokenizer, lab: Any) -> None:
    assert tokenizer.beginning == 1
    bare = lab.tokenizer()
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    assert TextTokenizer(bare, 12).beginning == 0
