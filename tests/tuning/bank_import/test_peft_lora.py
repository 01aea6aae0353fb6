from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from xpeft_tuning.bank_import.checkpoint import read_checkpoint
from xpeft_tuning.bank_import.errors import (
    BankImportError,
    CheckpointForeign,
    CheckpointInvalid,
    CheckpointUnsupported,
    FitTextsInvalid,
    FitTooPoor,
)
from xpeft_tuning.bank_import.fit_texts import FitTexts
from xpeft_tuning.bank_import.imported_bank import import_bank
from xpeft_tuning.bank_import.peft_lora import read_lora

TOLERANCE = 2e-5
SQUARE = {"distilbert": {"hidden_dim": 32}, "gpt2": {"n_inner": 32}}
"""Inside as wide as outside, so that the last matrix can be inverted and x follows from h exactly."""


def square(make_source: Any, family: str = "bert") -> Any:
    return make_source(family, **SQUARE.get(family, {"intermediate_size": 32}))


def lora_hidden(source: Any, folder: Path, root: str, scales: dict[int, float]) -> Tensor:
    """What PEFT's Linear adds to the last matrix' output, scale · B(A x), in float64."""
    tensors = load_file(folder / "adapter_model.safetensors")

    def change(block: int) -> Callable[[Tensor, Tensor], Tensor]:
        a, b = (tensors[f"{root}{source.last_matrix(block)}.lora_{side}.weight"].double() for side in "AB")
        return lambda x, _: scales[block] * functional.linear(functional.linear(x, a), b)

    hidden: Tensor = source.hidden({block: change(block) for block in scales})
    return hidden


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "electra", "distilbert", "gpt2", "modernbert", "llama", "qwen3", "gemma"]
)
def test_where_the_output_tells_the_input_a_lora_gives_the_hidden_states_of_peft(
    make_source: Any, save: Any, fit_texts: FitTexts, family: str
) -> None:
    source = square(make_source, family)
    root = f"base_model.model.{source.prefix}."
    folder = save.lora(source=source, inner=32, root=root)
    bank, (adapter,) = import_bank([folder], source.plm, fit_texts=fit_texts)
    expected = lora_hidden(source, folder, root, dict.fromkeys(range(3), 2.0))
    torch.testing.assert_close(source.served(bank, 0).double(), expected, rtol=0, atol=TOLERANCE)
    assert (expected - source.hidden({})).abs().max() > 1000 * TOLERANCE
    assert min(adapter.fits.values()) > 1 - 1e-9
    assert (bank.width, bank.activation, bank.layer_norm) == (8, "relu", False)


def test_ranks_alphas_and_blocks_may_differ(make_source: Any, save: Any, fit_texts: FitTexts) -> None:
    source = square(make_source)
    root = "base_model.model."
    of_others = {"layers_to_transform": [1], "ensure_weight_tying": True}
    first = save.lora("first", source=source, inner=32, blocks=(1,), use_rslora=True, **of_others)
    patterns = {"rank_pattern": {r"2\.output\.dense": 2}, "alpha_pattern": {r"encoder.layer.[02].output.dense": 5}}
    narrow = {
        "base_model.model.encoder.layer.2.output.dense.lora_A.weight": save.values(2, 32),
        "base_model.model.encoder.layer.2.output.dense.lora_B.weight": save.values(32, 2),
    }
    second = save.lora("second", source=source, inner=32, tensors=narrow, **patterns)
    bank, adapters = import_bank([first, second], source.plm, fit_texts=fit_texts)
    for number, (folder, scales) in enumerate(((first, {1: 8 / math.sqrt(4)}), (second, {0: 5 / 4, 1: 2.0, 2: 5 / 2}))):
        expected = lora_hidden(source, folder, root, scales)
        torch.testing.assert_close(source.served(bank, number).double(), expected, rtol=0, atol=TOLERANCE)
    assert [[*adapter.fits] for adapter in adapters] == [[1], [0, 1, 2]]


def test_a_fit_that_is_measured_is_what_the_served_adapter_explains(
    make_source: Any, save: Any, fit_texts: FitTexts
) -> None:
    source = make_source()
    folder = save.lora(source=source, blocks=(0,))
    _, (adapter,) = import_bank([folder], source.plm, fit_texts=fit_texts, min_fit=-1.0)
    a, b = load_file(folder / "adapter_model.safetensors").values()
    seen: list[tuple[Tensor, Tensor]] = []
    hook = source.model.get_submodule(source.last_matrix(0)).register_forward_hook(
        lambda module, arguments, out: seen.append((arguments[0][0], out[0]))
    )
    for text in fit_texts.measured:
        (tokens,) = source.plm.tokenizer.encode([(text, None)])
        with torch.no_grad():
            source.model(input_ids=torch.from_numpy(tokens.ids)[None].long())
    hook.remove()
    x, h = (torch.cat(rows) for rows in zip(*seen, strict=True))
    wanted = 2 * x @ a.double().T @ b.double().T
    part = adapter.blocks[0]
    found = torch.relu(h @ part.down.double() + part.down_bias) @ part.up.double()
    share = 1 - (wanted - found).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert adapter.fits[0] == pytest.approx(share.item(), abs=1e-5)
    assert 0.05 < adapter.fits[0] < 0.95


def test_a_poor_fit_is_refused_by_source_block_and_value(make_source: Any, save: Any, fit_texts: FitTexts) -> None:
    source = make_source()
    good = save.lora("good", source=source, blocks=(0,))
    null = torch.linalg.qr(source.model.get_parameter(f"{source.last_matrix(1)}.weight").float().T, mode="complete")[0]
    unseen = {"base_model.model.encoder.layer.1.output.dense.lora_A.weight": null[:, -4:].T.contiguous()}
    folder = save.lora("unseen", source=source, tensors=unseen)
    _, (_, adapter) = import_bank([good, folder], source.plm, fit_texts=fit_texts, min_fit=-1.0)
    worst = min(adapter.fits.values())
    assert worst == adapter.fits[1]
    with pytest.raises(FitTooPoor) as refused:
        import_bank([folder, good], source.plm, fit_texts=fit_texts, min_fit=worst + 0.01)
    assert str(refused.value).startswith(
        f"{folder}: block 1: an adapter at the feed-forward's output explains {worst:.4f} "
    )
    assert f"it must be {worst + 0.01:g} (--min-fit) at least" in str(refused.value)


def test_a_lora_without_texts_says_why_they_are_needed(make_source: Any, save: Any) -> None:
    source = make_source()
    with pytest.raises(FitTextsInvalid, match=r"a LoRA reads what goes into .* is fitted over texts \(--fit-texts"):
        import_bank([save.lora(source=source)], source.plm)


def test_a_head_that_was_saved_along_is_skipped_and_reported(make_source: Any, save: Any) -> None:
    source = make_source()
    heads = {f"base_model.model.{name}.weight": torch.ones(2, 32) for name in ("classifier", "score", "pre_classifier")}
    folder = save.lora(source=source, tensors=heads, modules_to_save=["classifier", "score"])
    assert read_lora(read_checkpoint(folder), source.plm).skipped == ("prediction head",)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"use_dora": True}, "use_dora is true, a field that is not known here"),
        ({"bias": "lora_only"}, "bias is 'lora_only', it must be 'none'"),
        ({"lora_bias": True}, "lora_bias is true"),
        ({"modules_to_save": ["classifier", "embeddings"]}, 'modules_to_save is ["classifier", "embeddings"]'),
        ({"modules_to_save": "pooler"}, 'modules_to_save is "pooler"'),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the model's own"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication is [[0, 2], [1, 3]]"),
        ({"trainable_token_indices": [4]}, "trainable_token_indices is [4]"),
        ({"target_parameters": ["experts"]}, 'target_parameters is ["experts"]'),
        ({"use_qalora": True}, "use_qalora is true"),
        ({"alora_invocation_tokens": [7]}, "alora_invocation_tokens is [7]"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3', it must be 'LORA'"),
    ],
    ids=str,
)
def test_what_is_no_plain_lora_is_refused_by_field_and_value(
    make_source: Any, save: Any, config: dict[str, Any], reason: str
) -> None:
    source = make_source()
    with pytest.raises(CheckpointUnsupported, match=re.escape(reason)):
        import_bank([save.lora(source=source, **config)], source.plm)


@pytest.mark.parametrize(
    "module", ["attention.self.query", "attention.output.dense", "intermediate.dense", "crossattention.self.key"]
)
def test_lora_on_another_matrix_is_refused_by_its_path(make_source: Any, save: Any, module: str) -> None:
    source = make_source()
    other = {
        f"base_model.model.bert.encoder.layer.{block}.{module}.lora_A.weight": torch.ones(4, 32) for block in (0, 1)
    }
    with pytest.raises(CheckpointUnsupported) as refused:
        import_bank([save.lora(source=source, tensors=other)], source.plm)
    assert f"it has LoRA on bert.encoder.layer.*.{module}; " in str(refused.value)
    assert "only LoRA on encoder.layer.*.output.dense can become one" in str(refused.value)


def test_a_tensor_of_no_lora_is_an_error_that_names_it(make_source: Any, save: Any) -> None:
    source = make_source()
    name = "base_model.model.bert.embeddings.word_embeddings.weight"
    with pytest.raises(CheckpointUnsupported, match=re.escape(name)):
        import_bank([save.lora(source=source, tensors={name: torch.ones(4, 32)})], source.plm)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"blocks": (0, 3)}, CheckpointForeign, "it has an adapter in block 3, so 4 blocks at least, the bert model"),
        (
            {"hidden": 40},
            CheckpointForeign,
            "lora_B in block 0 is 40, the bert model's hidden size is 32",
        ),
        ({"inner": 40}, CheckpointForeign, "lora_A in block 0 is 40, the bert model's feed-forward is 48 wide inside"),
        ({"r": 16}, CheckpointInvalid, "encoder.layer.0.output.dense has rank 4, its configuration says 16"),
        ({"r": 0, "rank": 0}, CheckpointInvalid, "r of encoder.layer.0.output.dense is 0, it must be 1 at least"),
        ({"r": 10**400}, CheckpointInvalid, "r of encoder.layer.0.output.dense is 1000"),
        ({"lora_alpha": math.nan}, CheckpointInvalid, "lora_alpha of encoder.layer.0.output.dense is NaN, it must be"),
        ({"lora_alpha": 1e39}, CheckpointInvalid, "lora_alpha of encoder.layer.0.output.dense is 1e+39, it must be"),
        ({"lora_alpha": 10**400}, CheckpointInvalid, "lora_alpha of encoder.layer.0.output.dense is 1000"),
        ({"lora_alpha": "8"}, CheckpointInvalid, 'lora_alpha of encoder.layer.0.output.dense is "8", it must be a'),
        ({"rank_pattern": ["a"]}, CheckpointInvalid, 'rank_pattern is ["a"], it must be an object of regular'),
        ({"alpha_pattern": {"(": 4}}, CheckpointInvalid, 'alpha_pattern is {"(": 4}, it must be an object of regular'),
        ({"blocks": ()}, CheckpointInvalid, "there is no adapter in it"),
        (
            {"tensors": {"base_model.model.encoder.layer.1.output.dense.lora_B.weight": None}},
            CheckpointInvalid,
            "block 1 has no lora_B.weight",
        ),
        (
            {"tensors": {"base_model.model.encoder.layer.1.output.dense.lora_B.weight": torch.ones(32, 3)}},
            CheckpointInvalid,
            "lora_A and lora_B of block 1 have the shapes [4, 48] and [32, 3], they must be [r, I] and [H, r]",
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused_with_both_values(
    make_source: Any, save: Any, changes: dict[str, Any], kind: type[BankImportError], message: str
) -> None:
    source = make_source()
    with pytest.raises(kind, match=re.escape(message)):
        import_bank([save.lora(source=source, **changes)], source.plm)
