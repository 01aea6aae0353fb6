from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.errors import BankInvalid
from xpeft_server.model.banks.file import read_bank_file, write_bank_file

PLM = "sha256:" + "ab" * 32
L, N, H, R = 2, 3, 4, 5
Tensors = dict[str, torch.Tensor]
Metadata = dict[str, str]


def values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32).reshape(shape) / 64 - 0.25).to(dtype)


def full_bank(dtype: torch.dtype = torch.float32) -> Bank:
    return Bank(
        down=values(L, N, H, R, dtype=dtype),
        up=values(L, N, R, H, dtype=dtype),
        down_bias=values(L, N, R, dtype=dtype),
        up_bias=values(L, N, H, dtype=dtype),
        heads={
            "mood": SharedHead(values(2, H), values(2), ("good", "schlägt 'quer' \n 🙂")),
            "topic.weight": SharedHead(values(1, H).half(), values(1).half(), ("stars",)),
        },
        plm=PLM,
        activation="gelu",
        layer_norm=False,
        pooling="cls",
        provenance="a test",
    )


def parts() -> tuple[Tensors, Metadata]:
    """The least that a bank's file holds."""
    tensors = {"down": values(L, N, H, R), "up": values(L, N, R, H)}
    return tensors, {"format": "xpeft-bank-1", "plm": PLM}


def raw_file(path: Path, header: bytes, body: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + body)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bank.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_bank_that_is_written_and_read_is_the_same(dtype: torch.dtype, path: Path) -> None:
    bank = full_bank(dtype)
    write_bank_file(bank, path)
    read = read_bank_file(path)
    for name, tensor in bank.tensors().items():
        assert torch.equal(read.tensors()[name], tensor)
        assert read.tensors()[name].dtype == tensor.dtype
    assert {name: head.labels for name, head in read.heads.items()} == {
        name: head.labels for name, head in bank.heads.items()
    }
    assert (read.activation, read.layer_norm, read.pooling) == ("gelu", False, "cls")
    assert (read.plm, read.provenance) == (PLM, "a test")
    assert read.fingerprint == bank.fingerprint


def test_the_file_is_an_ordinary_safetensors_file(path: Path) -> None:
    bank = full_bank()
    write_bank_file(bank, path)
    loaded = load_file(path)
    assert sorted(loaded) == sorted(bank.tensors())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in bank.tensors().items())


def test_a_bank_has_one_form_as_a_file(path: Path) -> None:
    bank = full_bank()
    write_bank_file(bank, path)
    again = path.with_name("again.safetensors")
    write_bank_file(read_bank_file(path), again)
    assert again.read_bytes() == path.read_bytes()
    swapped = replace(bank, heads=dict(reversed(list(bank.heads.items()))))
    write_bank_file(swapped, again, overwrite=True)
    assert again.read_bytes() == path.read_bytes()


def test_a_file_of_another_writer_has_the_same_fingerprint(path: Path) -> None:
    bank = full_bank()
    heads = {name: list(head.labels) for name, head in bank.heads.items()}
    metadata = {
        "provenance": "elsewhere",
        "pooling": "cls",
        "heads": json.dumps(heads, ensure_ascii=False, indent=1),
        "layer_norm": "false",
        "activation": "gelu",
        "plm": PLM,
        "format": "xpeft-bank-1",
    }
    save_file(dict(reversed(bank.tensors().items())), path, metadata=metadata)
    assert read_bank_file(path).fingerprint == bank.fingerprint


def test_what_the_metadata_leaves_out_has_its_default(path: Path) -> None:
    tensors, metadata = parts()
    save_file(tensors, path, metadata=metadata)
    bank = read_bank_file(path)
    assert (bank.activation, bank.layer_norm, bank.pooling, bank.provenance) == ("relu", True, "mean", "")
    assert bank.pooling_by_default
    assert not bank.heads
    assert bank.down_bias is None
    write_bank_file(bank, path, overwrite=True)
    assert read_bank_file(path).fingerprint == bank.fingerprint


def test_a_shared_head_without_a_bias_has_one_of_zeros(path: Path) -> None:
    tensors, metadata = parts()
    tensors["heads.mood.weight"] = values(2, H).bfloat16()
    save_file(tensors, path, metadata={**metadata, "heads": '{"mood": ["good", "bad"]}'})
    bias = read_bank_file(path).heads["mood"].bias
    assert torch.equal(bias, torch.zeros(2, dtype=torch.bfloat16))


def test_reading_maps_the_file_and_copies_nothing(path: Path) -> None:
    write_bank_file(full_bank(), path)
    bank = read_bank_file(path)
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith(str(path))]
    for tensor in (bank.down, bank.up):
        assert any(int(low, 16) <= tensor.data_ptr() < int(high, 16) for low, high in ranges)


def change(
    tensors: Tensors | None = None, metadata: Metadata | None = None, without: tuple[str, ...] = ()
) -> Callable[[Path], None]:
    """Write the least bank with something else, or something less, in it."""

    def write(path: Path) -> None:
        all_tensors, all_metadata = parts()
        all_tensors.update(tensors or {})
        all_metadata.update(metadata or {})
        for name in without:
            all_tensors.pop(name, None)
            all_metadata.pop(name, None)
        save_file(all_tensors, path, metadata=all_metadata)

    return write


HEAD = {"heads.mood.weight": values(2, H), "heads.mood.bias": values(2)}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (change({"down": values(L, N, H)}), r"down has the shape \[2, 3, 4\], it must be \[L, N, H, R\]"),
        (change({"up": values(L, N, H, R)}), r"up has the shape \[2, 3, 4, 5\], it must be \[2, 3, 5, 4\]"),
        (change({"up": values(L, N, R, H) / 0}), r"up\[0, 0, 0, 0\] is -inf, it must be finite"),
        (change({"up": torch.full((L, N, R, H), torch.nan)}), r"up\[0, 0, 0, 0\] is nan, it must be finite"),
        (change({"up": values(L, N, R, H).half()}), "up is F16 and down is F32"),
        (change({"up": values(L, N, R, H).long()}), "up has the dtype 'I64', it must be F32, F16, BF16"),
        (change({"left": values(2)}), "unknown tensor 'left', this bank may have down, down_bias, up, up_bias"),
        (change(HEAD), r"unknown tensor 'heads.mood.*' \(its head is not in metadata heads\)"),
        (change(without=("up",)), "tensor 'up' is missing"),
        (change(metadata={"heads": '{"mood": ["a"]}'}), "tensor 'heads.mood.weight' is missing"),
        (change(HEAD, {"heads": '{"mood": ["a"]}'}), "shared head 'mood' has 1 labels, its weight has 2 rows"),
        (change(HEAD, {"heads": '{"mood": ["a", 1]}'}), "label 1 is 1, it must be a non-empty string"),
        (change(metadata={"heads": "{mood"}), "metadata heads is not JSON"),
        (change(metadata={"heads": "[" * 100_000}), "metadata heads is not JSON"),
        (change(metadata={"heads": '["mood"]'}), r"metadata heads is '\[\"mood\"\]', it must be a JSON object"),
        (change(HEAD, {"heads": '{"mood": ["a"], "mood": ["b"]}'}), "metadata heads names 'mood' twice"),
        (change(without=("format",)), "metadata format is None, it must be 'xpeft-bank-1'"),
        (change(metadata={"format": "pt"}), "metadata format is 'pt', it must be 'xpeft-bank-1'"),
        (change(metadata={"format": "xpeft-profile-1"}), "metadata format is 'xpeft-profile-1'"),
        (change(metadata={"author": "me"}), "unknown metadata key 'author', a bank has format, plm"),
        (change(without=("plm",)), "metadata plm is missing"),
        (change(metadata={"plm": "bert"}), "plm is 'bert', it must be a model's fingerprint"),
        (change(metadata={"activation": "swish"}), "activation is 'swish', it must be relu or gelu"),
        (change(metadata={"layer_norm": "1"}), "metadata layer_norm is '1', it must be true or false"),
        (change(metadata={"pooling": ""}), "pooling is '', it must be mean, cls or last"),
    ],
)
def test_a_file_that_breaks_a_rule_is_refused(write: Callable[[Path], None], message: str, path: Path) -> None:
    write(path)
    with pytest.raises(BankInvalid, match=message) as refused:
        read_bank_file(path)
    assert str(refused.value).startswith(f"{path}: ")


def entry(start: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [1, 1, 1, 1], "data_offsets": [start, end], **changes}


def header(**entries: Any) -> bytes:
    whole = {"__metadata__": parts()[1], "down": entry(0, 4), "up": entry(4, 8), **entries}
    return json.dumps(whole).encode()


def test_the_least_file_made_by_hand_is_read(path: Path) -> None:
    bank = read_bank_file(raw_file(path, header(), bytes(8)))
    assert (bank.blocks, bank.adapters, bank.hidden, bank.width) == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("head", "body"),
    [
        (header(up=entry(4, 800)), bytes(8)),
        (header(up=entry(0, 4)), bytes(4)),
        (header(up=entry(4, 8, shape=[1, 1, 2, 1])), bytes(8)),
        (header(up=entry(4, 8, shape=[-1, 1, -1, 1])), bytes(8)),
        (header(up="nothing"), bytes(8)),
        (header(), bytes(7)),
        (header(), bytes(9)),
        (header()[:-1], bytes(8)),
        (header().replace(b'{"__meta', b'{"down": {}, "__meta'), bytes(8)),
        (header(__metadata__={"format": 1}), bytes(8)),
        (header(__metadata__=[]), bytes(8)),
        (b"[]", b""),
        (b"\xff\xfe", b""),
    ],
)
def test_a_lying_header_is_refused(head: bytes, body: bytes, path: Path) -> None:
    with pytest.raises(BankInvalid, match=r"bank\.safetensors: "):
        read_bank_file(raw_file(path, head, body))


@pytest.mark.parametrize("data", [b"", b"short", struct.pack("<Q", 2**63) + b"{}", b"PK\x03\x04 a pickle"])
def test_what_is_no_safetensors_file_is_refused(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(BankInvalid, match="not a safetensors file"):
        read_bank_file(path)


def test_a_truncated_file_is_refused(path: Path) -> None:
    write_bank_file(full_bank(), path)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(BankInvalid, match=r"bank\.safetensors: "):
        read_bank_file(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BankInvalid, match="no such file"):
        read_bank_file(tmp_path / "nothing")
    with pytest.raises(BankInvalid, match="cannot be read"):
        read_bank_file(tmp_path)


def test_a_file_that_is_there_is_not_replaced_unasked(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"it is there already: .*bank\.safetensors"):
        write_bank_file(full_bank(), path)
    assert path.read_bytes() == b"precious"
    write_bank_file(full_bank(), path, overwrite=True)
    assert read_bank_file(path).fingerprint == full_bank().fingerprint


def test_a_bank_in_use_outlives_the_replacement_of_its_file(path: Path) -> None:
    write_bank_file(full_bank(), path)
    bank = read_bank_file(path)
    write_bank_file(replace(full_bank(), down=values(L, N, H, R) * 2), path, overwrite=True)
    assert torch.equal(bank.down, full_bank().down)
