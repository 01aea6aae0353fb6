"""What a checkpoint's configuration asks for is computed, or refused by name."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from xpeft_server.model.batches.packing import pack
from xpeft_server.model.errors import ModelUnusable
from xpeft_server.model.plm import Plm, load_plm

TOLERANCE = 2e-4
NO_WINDOW = {"sliding_window": None, "use_sliding_window": False}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 80, "rope_theta": 1e4}
LINEAR = {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}
LLAMA_3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
    "rope_theta": 1e4,
}
LONG = {
    "rope_type": "longrope",
    "factor": 4.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 40,
    "rope_theta": 1e4,
}


def with_head(lab: Any, folder: Path, family: str, **changes: Any) -> Path:
    """A small decoder whose checkpoint brings a language-model head."""
    saved: Path = lab.saved(family, folder, **changes)
    config = load_plm(str(saved)).model.config
    AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**config.to_diff_dict())).save_pretrained(folder)
    return saved


def configured(folder: Path, **changes: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


def with_weights(folder: Path, *names: str) -> Path:
    path = folder / "model.safetensors"
    save_file({**load_file(path), **{name: torch.ones(3) for name in names}}, path, {"format": "pt"})
    return folder


def difference(lab: Any, plm: Plm, lengths: tuple[int, ...] = (17, 1, 50, 50)) -> float:
    """From what the original model says of each text alone."""
    original = lab.one_at_a_time(plm.name, lab.bank(plm))
    rng = np.random.default_rng(11)
    texts = [lab.text(rng, length) for length in lengths]
    with torch.inference_mode():
        hidden = plm.forward(pack(texts, None, first_position=plm.first_position))
    found = hidden[: sum(lengths)].split(list(lengths))
    pairs = zip(texts, found, strict=True)
    return max(float((each.double() - original.hidden(text)).abs().max()) for text, each in pairs)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "qwen3", "mistral", "gemma"])
def test_a_decoder_made_to_look_both_ways_does_and_writes_nothing(lab: Any, tmp_path: Path, family: str) -> None:
    folder = with_head(lab, tmp_path, family, **NO_WINDOW)
    assert load_plm(str(folder)).vocabulary_head is not None
    plm = load_plm(str(configured(folder, is_causal=False)))
    assert difference(lab, plm) < TOLERANCE
    assert plm.vocabulary_head is None


def test_a_decoder_without_a_head_may_look_both_ways(lab: Any, tmp_path: Path) -> None:
    assert difference(lab, load_plm(str(configured(lab.saved("llama", tmp_path), is_causal=False)))) < TOLERANCE


def test_gemmas_own_word_for_both_ways_is_known_too(lab: Any, tmp_path: Path) -> None:
    folder = configured(with_head(lab, tmp_path, "gemma"), use_bidirectional_attention=True)
    assert load_plm(str(folder)).vocabulary_head is None


def test_a_window_that_looks_both_ways_is_refused(lab: Any, tmp_path: Path) -> None:
    folder = configured(lab.saved("mistral", tmp_path), is_causal=False)
    with pytest.raises(ModelUnusable, match="is_causal is false beside a sliding_window"):
        load_plm(str(folder))


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("both_ways", [{}, {"is_causal": False}], ids=["causal", "both ways"])
def test_an_encoder_that_was_made_to_decode_looks_where_it_says(
    lab: Any, tmp_path: Path, family: str, both_ways: dict[str, Any]
) -> None:
    folder = configured(lab.saved(family, tmp_path), is_decoder=True, **both_ways)
    assert difference(lab, load_plm(str(folder))) < TOLERANCE


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("mistral", {"sliding_window": 0}, "sliding_window is 0, at least 1"),
        ("mistral", {"sliding_window": -1}, "sliding_window is -1, at least 1"),
        ("qwen2", {"sliding_window": 0}, "sliding_window is 0, at least 1"),
        ("qwen3", {"sliding_window": None}, "layer_types has 'sliding_attention', but there is no sliding_window"),
        ("qwen2", {"use_sliding_window": False}, "layer_types has 'sliding_attention', but there is no sliding_window"),
        ("modernbert", {"local_attention": -1}, "local_attention is -1, at least 0"),
    ],
)
def test_a_window_that_is_not_there_or_has_no_token_is_refused(
    lab: Any, tmp_path: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    folder = configured(lab.saved(family, tmp_path), **changes)
    with pytest.raises(ModelUnusable, match=message):
        load_plm(str(folder))


@pytest.mark.parametrize("family", ["bert", "distilbert", "modernbert", "gpt2", "llama"])
def test_how_a_model_is_told_to_answer_does_not_matter(lab: Any, tmp_path: Path, family: str) -> None:
    plm = load_plm(str(configured(lab.saved(family, tmp_path), return_dict=False)))
    plain = lab.plm(family)
    batch = pack([lab.text(np.random.default_rng(0), 20)], None)
    with torch.inference_mode():
        assert torch.equal(plm.forward(batch), plain.forward(batch))


def test_rotations_that_depend_on_the_longest_text_are_refused(lab: Any, tmp_path: Path) -> None:
    folder = lab.saved("llama", tmp_path)
    with pytest.raises(ModelUnusable, match="rope_type is 'longrope'"):
        load_plm(str(configured(folder, rope_parameters=LONG)))


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("llama", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "rope_type 'spiral'"),
        ("llama", {"rope_scaling": {"type": "spiral", "factor": 2.0}}, "rope_type 'spiral'"),
        ("modernbert", {"rope_parameters": {"full_attention": {"rope_type": "spiral"}}}, "rope_type 'spiral'"),
        ("bert", {"hidden_act": "swoosh"}, "hidden_act 'swoosh'"),
        ("modernbert", {"hidden_activation": "swoosh"}, "hidden_activation 'swoosh'"),
        ("gpt2", {"activation_function": "swoosh"}, "activation_function 'swoosh'"),
        ("distilbert", {"activation": "swoosh"}, "activation 'swoosh'"),
    ],
)
def test_words_that_nothing_is_known_by_are_refused_with_the_field_and_what_is_known(
    lab: Any, tmp_path: Path, family: str, changes: dict[str, Any], named: str
) -> None:
    folder = configured(lab.saved(family, tmp_path), **changes)
    with pytest.raises(ModelUnusable, match=re.escape(f"plm: {str(folder)!r} has {named} in its config.json, known")):
        load_plm(str(folder))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_sizes_of_attention_that_a_model_has_no_use_for_change_nothing(lab: Any, tmp_path: Path, family: str) -> None:
    plm = load_plm(str(configured(lab.saved(family, tmp_path), head_dim=32, num_key_value_heads=2)))
    assert plm.attention_shape == lab.plm(family).attention_shape == (4, 4, 16)


def test_rotations_that_would_change_beyond_the_limit_never_do(lab: Any, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    plm = load_plm(str(configured(lab.saved("llama", tmp_path), rope_parameters=rope)))
    assert plm.model.get_submodule("rotary_emb").rope_type == "default"
    assert plm.tokenizer.limit == lab.limit
    assert difference(lab, plm, (lab.limit, 5)) < TOLERANCE


@pytest.mark.parametrize(
    ("rope", "limit"),
    [(LINEAR, 240), (YARN, 320), ({**YARN, "factor": 0.5}, 80), ({**YARN, "factor": None}, 80), (LLAMA_3, 80)],
    ids=str,
)
def test_scaled_positions_make_room_for_longer_texts(
    lab: Any, tmp_path: Path, rope: dict[str, Any], limit: int
) -> None:
    tokenizer = lab.tokenizer(10_000)
    plm = load_plm(str(configured(lab.saved("llama", tmp_path, tokenizer), rope_parameters=rope)))
    assert plm.tokenizer.limit == limit
    assert difference(lab, plm, (limit, 3)) < TOLERANCE


def test_a_tokenizer_may_know_of_less_room(lab: Any, tmp_path: Path) -> None:
    folder = configured(lab.saved("llama", tmp_path, lab.tokenizer(100)), rope_parameters=YARN)
    assert load_plm(str(folder)).tokenizer.limit == 100


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_positions_of_another_kind_are_refused(lab: Any, tmp_path: Path, kind: str) -> None:
    folder = configured(lab.saved("bert", tmp_path), position_embedding_type=kind)
    with pytest.raises(ModelUnusable, match=f"position_embedding_type is '{kind}'"):
        load_plm(str(folder))


def test_a_pair_for_a_bert_that_knows_one_kind_of_text(lab: Any, tmp_path: Path) -> None:
    plm = load_plm(str(lab.saved("bert", tmp_path, type_vocab_size=1)))
    text = plm.tokenizer.encode([("w1 w2", "w3 w4 w5")])[0]
    assert set(text.type_ids) == {0, 1}
    original = lab.one_at_a_time(plm.name, lab.bank(plm))
    with torch.inference_mode():
        found = plm.forward(pack([text], None))[: len(text)]
    torch.testing.assert_close(found.double(), original.hidden(text), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
@pytest.mark.parametrize("inputs", [["input_ids", "attention_mask"], ["input_ids", "token_type_ids"]], ids=str)
def test_the_tokenizer_says_whether_a_pair_has_segments(
    lab: Any, tmp_path: Path, family: str, inputs: list[str]
) -> None:
    tokenizer = lab.tokenizer(model_input_names=inputs)
    plm = load_plm(str(lab.saved(family, tmp_path, tokenizer, type_vocab_size=2)))
    text = plm.tokenizer.encode([("w1 w2", "w3 w4 w5")])[0]
    original = AutoModel.from_pretrained(tmp_path, dtype=torch.float64).eval()
    with torch.inference_mode():
        found = plm.forward(pack([text], None, first_position=plm.first_position))[: len(text)]
        given = AutoTokenizer.from_pretrained(tmp_path)("w1 w2", "w3 w4 w5", return_tensors="pt")
        expected = original(**given).last_hidden_state[0]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert"])
def test_a_feed_forward_in_chunks_takes_any_number_of_tokens(lab: Any, tmp_path: Path, family: str) -> None:
    plm = load_plm(str(configured(lab.saved(family, tmp_path), chunk_size_feed_forward=7)))
    with torch.inference_mode():
        plm.forward(pack([lab.text(np.random.default_rng(0), 23)], None, first_position=plm.first_position))


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", ["encoder.layer.1.attention.self.distance_embedding.weight"]),
        ("bert", ["bert.embeddings.more.weight"]),
        ("llama", [f"layers.{block}.self_attn.q_proj.bias" for block in range(3)]),
        ("gpt2", ["transformer.h.1.attn.more"]),
    ],
)
def test_weights_that_would_not_be_used_are_refused_by_name(
    lab: Any, tmp_path: Path, family: str, names: list[str]
) -> None:
    folder = with_weights(lab.saved(family, tmp_path), *names)
    message = f"does not use: {', '.join(names)} ({len(names)} in all)"
    with pytest.raises(ModelUnusable, match=re.escape(message)):
        load_plm(str(folder))


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("bert", ["embeddings.position_ids", "pooler.dense.weight", "cls.predictions.bias"]),
        ("gpt2", ["h.0.attn.bias", "h.1.attn.masked_bias"]),
        ("llama", ["layers.0.self_attn.rotary_emb.inv_freq", "score.weight", "layers.3.mlp.down_proj.weight"]),
        ("electra", ["discriminator_predictions.dense.weight"]),
    ],
)
def test_what_is_computed_or_lies_behind_the_blocks_may_be_there(
    lab: Any, tmp_path: Path, family: str, names: list[str]
) -> None:
    expected = lab.saved(family, tmp_path / "bare")
    folder = with_weights(lab.saved(family, tmp_path / "more"), *names)
    assert load_plm(str(folder)).facts == load_plm(str(expected)).facts


@pytest.mark.parametrize(
    ("named", "ends"), [(5, {5, 2}), ([5, 6], {5, 6, 2}), (2, {2}), (None, {2})], ids=["one", "several", "same", "none"]
)
def test_a_text_ends_where_the_checkpoint_or_its_tokenizer_says(
    lab: Any, tmp_path: Path, named: Any, ends: set[int]
) -> None:
    folder = with_head(lab, tmp_path, "llama")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
    assert load_plm(str(folder)).ends == ends


def test_it_is_warned_of_settings_of_generation_that_are_not_applied(
    lab: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = with_head(lab, tmp_path, "llama")
    settings = {
        "eos_token_id": 2,
        "do_sample": True,
        "temperature": 0.6,
        "repetition_penalty": 1.3,
        "no_repeat_ngram_size": 2,
        "num_beams": 4,
        "suppress_tokens": list(range(3, 4000)),
        "forced_eos_token_id": 0,
    }
    (folder / "generation_config.json").write_text(json.dumps(settings))
    with caplog.at_level(logging.WARNING):
        load_plm(str(folder))
    [warning] = caplog.messages
    named = (
        "repetition_penalty = 1.3, num_beams = 4, no_repeat_ngram_size = 2, suppress_tokens = [3, 4, 5, 6, 7, 8, ...], "
        "forced_eos_token_id = 0"
    )
    assert f"plm: {str(folder)!r} sets {named} for generation, which is not applied" in warning


@pytest.mark.parametrize(
    "neutral",
    [
        {},
        {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "suppress_tokens": []},
        {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8, "max_new_tokens": 9, "pad_token_id": 0},
    ],
)
def test_settings_of_generation_that_leave_greedy_texts_alone_are_no_news(
    lab: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, neutral: dict[str, Any]
) -> None:
    folder = with_head(lab, tmp_path, "llama")
    (folder / "generation_config.json").write_text(json.dumps(neutral))
    with caplog.at_level(logging.WARNING):
        load_plm(str(folder))
    assert caplog.messages == []
