from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from xpeft_tuning.bank_import.checkpoint import Kind, read_checkpoint
from xpeft_tuning.bank_import.errors import CheckpointInvalid


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointInvalid) as refused:
        read_checkpoint(path)
    return str(refused.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_is_read_whichever_way_its_tensors_are_stored(save: Any, safe: bool) -> None:
    folder = save.bottleneck(safe=safe)
    file = folder / ("adapter.safetensors" if safe else "pytorch_adapter.bin")
    checkpoint = read_checkpoint(folder)
    assert checkpoint.kind is Kind.ADAPTERS
    assert checkpoint.name == "task"
    assert checkpoint.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(checkpoint.tensors) == 12
    assert read_checkpoint(file).sha256 == checkpoint.sha256
    assert read_checkpoint(file).name == "task"


def test_a_folder_with_two_files_of_weights_asks_which(save: Any) -> None:
    folder = save.bottleneck()
    (folder / "adapter.safetensors").write_bytes(b"")
    assert refusal(folder) == (
        "there are both pytorch_adapter.bin and adapter.safetensors in the folder: name the file that is meant"
    )
    assert read_checkpoint(folder / "pytorch_adapter.bin").kind is Kind.ADAPTERS


def test_half_precision_becomes_float32_without_a_change(save: Any) -> None:
    name = "bert.encoder.layer.0.output.adapters.task.adapter_up.bias"
    value = torch.tensor([0.1, -2.5]).bfloat16()
    tensor = read_checkpoint(save.bottleneck(tensors={name: value})).tensors[name]
    assert tensor.dtype == torch.float32
    assert tensor.equal(value.float())


class Nasty:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("owned"),))


def test_a_pickle_that_would_run_something_is_refused(
    save: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save.bottleneck()
    torch.save({"a": Nasty()}, folder / "pytorch_adapter.bin")
    assert refusal(folder).startswith("pytorch_adapter.bin cannot be read as tensors alone: UnpicklingError")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(2, dtype=torch.int64)}, "a is torch.int64, it must be a dense tensor of floating-point"),
        ({"a": 3}, "a is int, it must be a dense tensor of floating-point numbers"),
        ({"a": torch.tensor([[1.0, float("nan")]])}, "a[0, 1] is nan, it must be finite"),
        ({"a": torch.tensor(float("inf"))}, "a[] is inf, it must be finite"),
        ([torch.ones(1)], "pytorch_adapter.bin holds a list, it must hold tensors by their names"),
    ],
    ids=str,
)
def test_what_is_no_finite_tensor_is_refused_by_name(save: Any, content: object, message: str) -> None:
    folder = save.bottleneck()
    torch.save(content, folder / "pytorch_adapter.bin")
    assert refusal(folder).startswith(message)


@pytest.mark.parametrize("name", ["pytorch_adapter.bin", "adapter.safetensors"])
def test_a_damaged_file_is_refused_in_one_line(save: Any, name: str) -> None:
    folder = save.bottleneck(safe=name == "adapter.safetensors")
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    message = refusal(folder)
    assert message.startswith(f"{name} cannot be read as tensors alone: ")
    assert "\n" not in message


def test_what_is_not_there_is_named(save: Any, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == "no such file or folder"
    assert refusal(tmp_path) == "there is no adapter_config.json"
    folder = save.bottleneck()
    (folder / "pytorch_adapter.bin").unlink()
    assert refusal(folder) == "there is neither pytorch_adapter.bin nor adapter.safetensors in the folder"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "adapter_config.json is not JSON: "),
        ("[]", "adapter_config.json holds a list, it must hold an object"),
        (json.dumps({"hidden_size": 8}), "adapter_config.json has neither peft_type, as PEFT writes it, nor config"),
    ],
)
def test_a_configuration_of_neither_library_is_refused(save: Any, text: str, message: str) -> None:
    folder = save.bottleneck()
    (folder / "adapter_config.json").write_text(text)
    assert refusal(folder).startswith(message)
