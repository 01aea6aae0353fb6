"""Whole forwards of a small shape: what is timed is what it says, and ratios are to the same run's bare model."""

from __future__ import annotations

import pytest
import torch

from xpeft_benchmarks.shapes import (
    SHAPES,
    Shape,
    ShapesPlan,
    ShapeUnknown,
    Stage,
    TokensInvalid,
    parse_tokens,
    run_shapes,
    shape_of,
)
from xpeft_kernels import Impl

SMALL = Shape(
    {
        "model_type": "bert",
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    },
    8,
    (32, 64),
)
STEP = Shape(
    {
        "model_type": "llama",
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 64,
    },
    1,
    (3,),
)
PLAN = ShapesPlan(shape="small", adapters=9, width=4, tokens=(), device="cpu", dtype="float32", rounds=2)


@pytest.mark.parametrize("shape", [SMALL, STEP])
def test_every_variant_is_measured_at_every_number_of_tokens_against_the_bare_model(shape: Shape) -> None:
    said: list[str] = []
    results = {each.variant: each for each in run_shapes(PLAN, shape, on_step=said.append)}
    for tokens in shape.tokens:
        count = tokens // shape.sequence
        names = {name: f"small T={tokens} {name}" for name in ("bare", "mixed", "identical", "cold", f"fill P={count}")}
        for name, variant in names.items():
            result = results.pop(variant)
            assert len(result.speeds) == PLAN.rounds
            assert all(speed > 0 for speed in result.speeds)
            compared = [each.to for each in result.ratios]
            assert compared == ([names["bare"]] if name in ("mixed", "identical", "cold") else [])
    assert results == {}
    assert [f"T={tokens}" for tokens in shape.tokens] == said[1:]


@torch.inference_mode()
def test_mixed_and_identical_go_through_their_own_slots_and_bare_through_none() -> None:
    stage = Stage.of(PLAN, SMALL)
    bare, own, one = (stage.forward(stage.batch(32, slots)) for slots in (None, [0, 1, 2, 3], [0] * 4))
    assert torch.equal(own[:8], one[:8])
    for rows in (slice(8, 16), slice(16, 24), slice(24, 32)):
        assert not torch.allclose(own[rows], one[rows], atol=1e-3)
    assert not torch.allclose(bare, one, atol=1e-3)
    torch.testing.assert_close(stage.forward(stage.batch(32, [0] * 4), Impl.REFERENCE), one, rtol=0, atol=0)


@torch.inference_mode()
def test_a_fill_makes_the_profiles_anew() -> None:
    stage = Stage.of(PLAN, SMALL)
    stage.buffers.adapters.fill_(torch.nan)
    stage.fill(3)
    made = stage.buffers.adapters[..., : stage.buffers.form.bank_row].isfinite().all(-1)
    assert made[:, :3].all()
    assert not made[:, 3:].any()


def test_known_shapes_have_whole_sequences() -> None:
    assert all(tokens % shape.sequence == 0 for shape in SHAPES.values() for tokens in shape.tokens)


def test_an_unknown_shape_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ShapeUnknown, match=r"shape 'bert' is not known \(known: bert-base, minilm, llama-1b-decode\)"):
        shape_of("bert")


@pytest.mark.parametrize("text", ["63", "0", "64,x", "-64", "64,,128"])
def test_tokens_that_are_no_whole_sequences_are_refused(text: str) -> None:
    with pytest.raises(TokensInvalid, match="is not a multiple of 64"):
        parse_tokens(text, 64)


def test_tokens_are_read_and_none_means_the_shapes_own() -> None:
    assert parse_tokens("64, 128", 64) == (64, 128)
    assert parse_tokens("", 64) == ()
