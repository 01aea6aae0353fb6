from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from xpeft_tuning.bank_import.errors import CheckpointForeign, CheckpointInvalid, CheckpointUnsupported
from xpeft_tuning.bank_import.imported_bank import import_bank

TOLERANCE = 5e-6

PATHS = {
    "bert": "bert.encoder.layer.{}.output.adapters.",
    "roberta": "roberta.encoder.layer.{}.output.adapters.",
    "electra": "electra.encoder.layer.{}.output.adapters.",
    "distilbert": "distilbert.transformer.layer.{}.output_adapters.adapters.",
    "gpt2": "transformer.h.{}.output_adapters.adapters.",
    "llama": "model.layers.{}.output_adapters.adapters.",
    "mistral": "model.layers.{}.output_adapters.adapters.",
    "modernbert": "layers.{}.output_adapters.adapters.",
    "qwen2": "layers.{}.output_adapters.adapters.",
    "qwen3": "layers.{}.output_adapters.adapters.",
    "gemma": "layers.{}.output_adapters.adapters.",
}
"""As version 1.3 of the library writes them, from a model with a head where it has one for the family."""


def library_hidden(source: Any, folder: Path, path: str, *, scaling: float, act: Callable[[Tensor], Tensor]) -> Tensor:
    """What the library's Adapter.forward adds to the feed-forward's output, in float64."""
    name = json.loads((folder / "adapter_config.json").read_text())["name"]
    tensors = torch.load(folder / "pytorch_adapter.bin", weights_only=True)

    def part(block: int, key: str) -> Tensor:
        return tensors[f"{path.format(block)}{name}.{key}"].double()

    def change(block: int) -> Callable[[Tensor, Tensor], Tensor]:
        def add(_: Tensor, h: Tensor) -> Tensor:
            down = act(functional.linear(h, part(block, "adapter_down.0.weight"), part(block, "adapter_down.0.bias")))
            return scaling * functional.linear(down, part(block, "adapter_up.weight"), part(block, "adapter_up.bias"))

        return add

    there = [block for block in range(source.blocks) if f"{path.format(block)}{name}.adapter_up.weight" in tensors]
    hidden: Tensor = source.hidden({block: change(block) for block in there})
    return hidden


@pytest.mark.parametrize("family", PATHS)
def test_an_imported_adapter_gives_the_hidden_states_of_its_library(make_source: Any, save: Any, family: str) -> None:
    source = make_source(family)
    folder = save.bottleneck(family=family, path=PATHS[family], scaling=0.5)
    bank, (adapter,) = import_bank([folder], source.plm)
    expected = library_hidden(source, folder, PATHS[family], scaling=0.5, act=torch.relu)
    torch.testing.assert_close(source.served(bank, 0).double(), expected, rtol=0, atol=TOLERANCE)
    assert (expected - source.hidden({})).abs().max() > 1000 * TOLERANCE
    assert adapter.fit is None


@pytest.mark.parametrize("name", ["gelu", "GELU", "gelu_python"])
def test_gelu_is_the_exact_one(make_source: Any, save: Any, name: str) -> None:
    source = make_source()
    folder = save.bottleneck(non_linearity=name)
    bank, _ = import_bank([folder], source.plm)
    expected = library_hidden(source, folder, PATHS["bert"], scaling=1.0, act=functional.gelu)
    torch.testing.assert_close(source.served(bank, 0).double(), expected, rtol=0, atol=TOLERANCE)
    assert bank.activation == "gelu"


def test_names_without_the_prefix_of_a_model_with_a_head_mean_the_same(make_source: Any, save: Any) -> None:
    with_head = save.bottleneck("with-head")
    tensors = torch.load(with_head / "pytorch_adapter.bin", weights_only=True)
    bare = {key.removeprefix("bert."): tensor for key, tensor in tensors.items()}
    folder = save.bottleneck("bare", widths={}, top={"name": "with-head"}, tensors=bare, safe=True)
    bank, _ = import_bank([with_head, folder], make_source().plm)
    assert bank.down[:, 0].equal(bank.down[:, 1])
    assert bank.up_bias is not None
    assert bank.up_bias[:, 0].equal(bank.up_bias[:, 1])


def test_blocks_that_are_left_out_change_nothing(make_source: Any, save: Any) -> None:
    source = make_source()
    folder = save.bottleneck(widths={1: 8}, leave_out=[0, 2])
    bank, (adapter,) = import_bank([folder], source.plm)
    expected = library_hidden(source, folder, PATHS["bert"], scaling=1.0, act=torch.relu)
    torch.testing.assert_close(source.served(bank, 0).double(), expected, rtol=0, atol=TOLERANCE)
    assert [bool(tensor[block].any()) for tensor in bank.adapter_tensors().values() for block in (0, 2)] == [False] * 8
    assert list(adapter.blocks) == [1]


def test_adapters_of_several_widths_share_a_bank_and_stay_what_they_are(make_source: Any, save: Any) -> None:
    source = make_source()
    folders = [save.bottleneck("narrow"), save.bottleneck("wide", widths={0: 16, 1: 4, 2: 8})]
    bank, adapters = import_bank(folders, source.plm)
    assert bank.width == 16
    assert [adapter.width for adapter in adapters] == [8, 16]
    for number, folder in enumerate(folders):
        expected = library_hidden(source, folder, PATHS["bert"], scaling=1.0, act=torch.relu)
        torch.testing.assert_close(source.served(bank, number).double(), expected, rtol=0, atol=TOLERANCE)


def test_a_bias_that_is_absent_is_zero(make_source: Any, save: Any) -> None:
    absent = {f"{PATHS['bert'].format(1)}task.{part}": None for part in ("adapter_down.0.bias", "adapter_up.bias")}
    bank, _ = import_bank([save.bottleneck(tensors=absent)], make_source().plm)
    assert bank.down_bias is not None
    assert bank.up_bias is not None
    assert [bool(bank.down_bias[block].any()) for block in range(3)] == [True, False, True]
    assert [bool(bank.up_bias[block].any()) for block in range(3)] == [True, False, True]


def test_a_prediction_head_is_skipped_and_reported(make_source: Any, save: Any) -> None:
    folder = save.bottleneck()
    (folder / "head_config.json").write_text("{}")
    _, (adapter,) = import_bank([folder], make_source().plm)
    assert adapter.skipped == ("prediction head",)


@pytest.mark.parametrize(
    ("top", "message"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta', the language model's is 'bert'"),
        ({"hidden_size": 64}, "hidden_size is 64, the bert model's hidden size is 32"),
    ],
)
def test_an_adapter_of_another_model_is_refused(make_source: Any, save: Any, top: Any, message: str) -> None:
    with pytest.raises(CheckpointForeign) as refused:
        import_bank([save.bottleneck(top=top)], make_source().plm)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("blocks", "left_out", "message"),
    [
        (range(4), [], "it has an adapter in block 3, so 4 blocks at least, the bert model has 3"),
        (range(2), [], "it has adapters for 2 blocks, the bert model has 3"),
        (range(2), [7], "it has adapters for 2 blocks, the bert model has 3"),
    ],
)
def test_a_model_of_another_depth_is_refused_with_both_numbers(
    make_source: Any, save: Any, blocks: range, left_out: list[int], message: str
) -> None:
    with pytest.raises(CheckpointForeign, match=message):
        import_bank([save.bottleneck(widths=dict.fromkeys(blocks, 8), leave_out=left_out)], make_source().plm)


def test_a_block_that_is_left_out_and_there_is_a_contradiction(make_source: Any, save: Any) -> None:
    with pytest.raises(CheckpointInvalid, match="leave_out names block 1, which has an adapter"):
        import_bank([save.bottleneck(leave_out=[1])], make_source().plm)


def test_a_matrix_of_another_hidden_size_is_refused_with_both_numbers(make_source: Any, save: Any) -> None:
    wider = {f"{PATHS['bert'].format(1)}task.adapter_down.0.weight": torch.ones(8, 40)}
    message = "the input of adapter_down in block 1 is 40, the bert model's hidden size is 32"
    with pytest.raises(CheckpointForeign, match=message):
        import_bank([save.bottleneck(tensors=wider)], make_source().plm)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("adapter_up.weight", None, "block 1 has no adapter_up.weight"),
        ("adapter_down.0.weight", None, "block 1 has no adapter_down.0.weight"),
        ("adapter_up.weight", torch.ones(32, 4), "adapter_up.weight of block 1 has the shape [32, 4], it must be [32"),
        ("adapter_down.0.bias", torch.ones(1), "adapter_down.0.bias of block 1 has the shape [1], it must be [8]"),
        ("adapter_down.0.weight", torch.ones(8), "adapter_down.0.weight of block 1 has the shape [8], it must be [8"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(
    make_source: Any, save: Any, part: str, value: Tensor | None, message: str
) -> None:
    with pytest.raises(CheckpointInvalid) as refused:
        import_bank([save.bottleneck(tensors={f"{PATHS['bert'].format(1)}task.{part}": value})], make_source().plm)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "name",
    [
        "bert.encoder.layer.1.attention.output.adapters.task.adapter_up.weight",
        "bert.encoder.layer.1.output.adapters.task.adapter_norm_before.weight",
        "bert.encoder.layer.1.output.adapters.other.adapter_up.weight",
        "bert.invertible_adapters.task.F.0.weight",
        "roberta.encoder.layer.1.output.adapters.task.adapter_up.weight",
    ],
)
def test_a_tensor_that_nothing_reads_is_an_error_that_names_it(make_source: Any, save: Any, name: str) -> None:
    with pytest.raises(CheckpointUnsupported) as refused:
        import_bank([save.bottleneck(tensors={name: torch.ones(32, 8)})], make_source().plm)
    assert name in str(refused.value)


def test_a_tensor_under_both_of_its_names_is_refused(make_source: Any, save: Any) -> None:
    again = {"encoder.layer.1.output.adapters.task.adapter_up.weight": torch.ones(32, 8)}
    with pytest.raises(CheckpointInvalid, match=r"encoder\.layer\.1.*adapter_up\.weight is there twice"):
        import_bank([save.bottleneck(tensors=again)], make_source().plm)


def test_an_empty_checkpoint_is_refused(make_source: Any, save: Any) -> None:
    with pytest.raises(CheckpointInvalid, match="there is no adapter in it"):
        import_bank([save.bottleneck(widths={})], make_source().plm)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("mlp.down_proj", None),
        ("mlp.up_proj", "layer_output_proj in adapter_interface.json is 'mlp.up_proj', .* ends with 'mlp.down_proj'"),
    ],
)
def test_where_an_interface_hooks_the_adapter_in_must_be_the_feed_forwards_end(
    make_source: Any, save: Any, place: str, message: str | None
) -> None:
    folder = save.bottleneck(family="qwen2", path=PATHS["qwen2"])
    (folder / "adapter_interface.json").write_text(json.dumps({"interface": {"layer_output_proj": place}}))
    if message is None:
        assert import_bank([folder], make_source("qwen2").plm).bank.adapters == 1
    else:
        with pytest.raises(CheckpointUnsupported, match=message):
            import_bank([folder], make_source("qwen2").plm)


def test_an_adapter_without_a_name_cannot_be_found(make_source: Any, save: Any) -> None:
    with pytest.raises(CheckpointInvalid, match="name is 7, it must be the adapter's name"):
        import_bank([save.bottleneck(top={"name": 7})], make_source().plm)
