from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
import torch

from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.errors import BankError, BankInvalid
from xpeft_server.model.errors import ModelError

PLM = "sha256:" + "ab" * 32
L, N, H, R = 2, 3, 4, 5


def values(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    count = torch.Size(shape).numel()
    return (torch.arange(count, dtype=torch.float32).reshape(shape) / 64 - 0.25).to(dtype)


def bank(**changes: Any) -> Bank:
    tensors: dict[str, Any] = {"down": values(L, N, H, R), "up": values(L, N, R, H), "plm": PLM}
    return Bank(**{**tensors, **changes})


def head(classes: int = 2, labels: tuple[Any, ...] = ("good", "bad")) -> SharedHead:
    return SharedHead(values(classes, H), values(classes), labels)


def test_a_bank_knows_its_sizes_and_its_bytes() -> None:
    made = bank(down_bias=values(L, N, R), up_bias=values(L, N, H), heads={"mood": head()})
    assert (made.blocks, made.adapters, made.hidden, made.width) == (L, N, H, R)
    assert made.dtype == torch.float32
    assert made.nbytes == 4 * (2 * L * N * H * R + L * N * (R + H) + 2 * H + 2)


def test_the_geometry_tells_everything_that_a_profile_must_fit() -> None:
    geometry = bank(layer_norm=False, heads={"mood": head()}).geometry
    assert (geometry.blocks, geometry.adapters, geometry.hidden, geometry.width) == (L, N, H, R)
    assert geometry.fingerprint == bank(layer_norm=False, heads={"mood": head()}).fingerprint
    assert geometry.layer_norm is False
    assert dict(geometry.shared_heads) == {"mood": ("good", "bad")}


def test_a_bank_cannot_be_changed() -> None:
    made = bank()
    with pytest.raises(FrozenInstanceError):
        made.layer_norm = False  # type: ignore[misc]
    with pytest.raises(TypeError):
        made.heads["mood"] = head()  # type: ignore[index]


def test_a_bank_made_of_a_trainers_parameters_has_no_gradients() -> None:
    made = bank(down=torch.nn.Parameter(values(L, N, H, R)), heads={"mood": head()})
    assert not made.down.requires_grad
    assert not made.heads["mood"].weight.requires_grad


def test_strided_tensors_become_contiguous_ones_of_the_same_values() -> None:
    down = values(L, N, R, H).transpose(2, 3)
    assert bank(down=down).down.is_contiguous()
    assert bank(down=down).fingerprint == bank(down=down.contiguous()).fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"down": values(L, N, H)}, r"down has the shape \[2, 3, 4\], it must be \[L, N, H, R\]"),
        ({"down": values(L, 0, H, R)}, r"down has the shape \[2, 0, 4, 5\], .* none of them 0"),
        ({"up": values(L, N, H, R)}, r"up has the shape \[2, 3, 4, 5\], it must be \[2, 3, 5, 4\]"),
        ({"down_bias": values(L, N, H)}, r"down_bias has the shape \[2, 3, 4\], it must be \[2, 3, 5\]"),
        ({"up_bias": values(L, N)}, r"up_bias has the shape \[2, 3\], it must be \[2, 3, 4\]"),
        ({"up": values(L, N, R, H, dtype=torch.float64)}, "up is float64, it must be float32, float16 or bfloat16"),
        ({"up": values(L, N, R, H, dtype=torch.float16)}, "up is F16 and down is F32: .* one dtype"),
        ({"plm": "bert"}, "plm is 'bert', it must be a model's fingerprint"),
        ({"activation": "tanh"}, "activation is 'tanh', it must be relu or gelu"),
        ({"pooling": "max"}, "pooling is 'max', it must be mean, cls or last"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BankInvalid, match=message):
        bank(**changes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_value_that_is_not_finite_is_refused_with_its_place(bad: float, dtype: torch.dtype) -> None:
    up = values(L, N, R, H, dtype=dtype)
    up[1, 2, 3, 0] = bad
    with pytest.raises(BankInvalid, match=rf"up\[1, 2, 3, 0\] is {bad}, it must be finite"):
        bank(down=values(L, N, H, R, dtype=dtype), up=up)


@pytest.mark.parametrize(
    ("name", "made", "message"),
    [
        ("a/b", head(), "shared head 'a/b': a name is"),
        ("", head(), "shared head '': a name is"),
        ("mood", SharedHead(values(2, H + 1), values(2), ("a", "b")), r"heads.mood.weight .*\[2, 5\].*\[C, 4\]"),
        ("mood", SharedHead(values(0, H), values(0), ()), r"heads.mood.weight has the shape \[0, 4\]"),
        ("mood", SharedHead(values(2, H), values(3), ("a", "b")), r"heads.mood.bias .*\[3\], it must be \[2\]"),
        ("mood", head(3), "shared head 'mood' has 2 labels, its weight has 3 rows"),
        ("mood", head(labels=("a", "")), "label 1 is ''"),
        ("mood", head(labels=("a", 7)), "label 1 is 7, it must be a non-empty string"),
        ("mood", head(labels=("a", "a")), "the label 'a' is there twice"),
        ("mood", SharedHead(values(2, H).int(), values(2), ("a", "b")), "heads.mood.weight is int32"),
        ("mood", SharedHead(values(2, H), values(2) / 0, ("a", "b")), r"heads.mood.bias\[0\] is -inf"),
    ],
)
def test_a_shared_head_that_does_not_fit_is_refused(name: str, made: SharedHead, message: str) -> None:
    with pytest.raises(BankInvalid, match=message):
        bank(heads={name: made})


def test_a_wrong_bank_is_a_reason_not_to_start_like_a_wrong_model() -> None:
    assert issubclass(BankError, ModelError)


def test_the_fingerprint_is_what_its_docstring_says() -> None:
    made = bank(heads={"mood": head(labels=("gut", "schlägt"))}, provenance="anywhere")
    header = {
        "format": "xpeft-bank-1",
        "plm": PLM,
        "activation": "relu",
        "layer_norm": True,
        "pooling": "mean",
        "heads": {"mood": ["gut", "schlägt"]},
        "tensors": [
            {"name": "down", "dtype": "F32", "shape": [L, N, H, R]},
            {"name": "heads.mood.bias", "dtype": "F32", "shape": [2]},
            {"name": "heads.mood.weight", "dtype": "F32", "shape": [2, H]},
            {"name": "up", "dtype": "F32", "shape": [L, N, R, H]},
        ],
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n"
    tensors = (made.down, made.heads["mood"].bias, made.heads["mood"].weight, made.up)
    content = text.encode("ascii") + b"".join(tensor.numpy().astype("<f4").tobytes() for tensor in tensors)
    assert made.fingerprint == "sha256:" + hashlib.sha256(content).hexdigest()


def test_the_fingerprint_does_not_depend_on_where_a_bank_comes_from() -> None:
    assert bank(provenance="here").fingerprint == bank(provenance="there").fingerprint


@pytest.mark.parametrize(
    "changes",
    [
        {"plm": "sha256:" + "cd" * 32},
        {"activation": "gelu"},
        {"layer_norm": False},
        {"pooling": "last"},
        {"pooling_by_default": True},
        {"down_bias": torch.zeros(L, N, R)},
        {"heads": {"mood": head()}},
        {"up": -values(L, N, R, H)},
        {"down": values(L, N, H, R).bfloat16(), "up": values(L, N, R, H).bfloat16()},
    ],
)
def test_the_fingerprint_changes_with_everything_that_changes_an_answer(changes: dict[str, Any]) -> None:
    assert bank(**changes).fingerprint != bank().fingerprint


def test_the_fingerprint_tells_labels_and_head_names_apart() -> None:
    made = bank(heads={"mood": head()})
    assert made.fingerprint != bank(heads={"mode": head()}).fingerprint
    assert made.fingerprint != bank(heads={"mood": head(labels=("bad", "good"))}).fingerprint


def test_the_order_in_which_heads_are_given_does_not_matter() -> None:
    one, two = {"a": head(), "b": head()}, {"b": head(), "a": head()}
    assert bank(heads=one).fingerprint == bank(heads=two).fingerprint


def test_a_default_pooling_can_be_settled_without_a_new_fingerprint() -> None:
    unsettled = bank(pooling_by_default=True)
    assert replace(unsettled, pooling="last").fingerprint == unsettled.fingerprint
