from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest

from xpeft_profiles import BankGeometry, BankMismatch, Profile, ProfileInvalid

BANK = "sha256:" + "5a" * 32
HARD = np.array([[1, 0, 1], [0, 1, 1]], np.uint8)
SOFT = np.array([[0.25, 0.5, 0.25], [0, 0, 1]], np.float32)
NORM = np.ones((2, 4), np.float32)
HEAD = np.ones((2, 8), np.float16)
MakeProfile = Callable[..., Any]


def profile_of(**parts: Any) -> Profile:
    return Profile(**{"bank": BANK, "mask_a": HARD, "mask_b": HARD, **parts})


def with_value(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.astype(np.float32)
    changed[1, 2] = value
    return changed


def test_a_hard_profile_keeps_bools_and_knows_k() -> None:
    profile = profile_of()
    assert (profile.hard, profile.k) == (True, 2)
    assert profile.mask_a.dtype == np.bool_
    assert np.array_equal(profile.mask_a, HARD)
    assert (profile.ln_weight, profile.ln_bias, profile.head_weight, profile.labels) == (None,) * 4


def test_a_soft_profile_keeps_halves_and_has_no_k() -> None:
    profile = profile_of(mask_a=SOFT, mask_b=SOFT.astype(np.float16))
    assert (profile.hard, profile.k) == (False, None)
    assert profile.mask_a.dtype == np.float16


def test_a_missing_half_of_the_layer_norm_is_the_identity() -> None:
    weight, bias = profile_of(ln_bias=NORM * 2), profile_of(ln_weight=NORM * 2)
    assert weight.ln_weight is not None
    assert bias.ln_bias is not None
    assert (weight.ln_weight == 1).all()
    assert (bias.ln_bias == 0).all()


def test_a_missing_head_bias_is_zero() -> None:
    profile = profile_of(head_weight=HEAD, labels=("a", "b"))
    assert profile.head_bias is not None
    assert profile.head_bias.tolist() == [0, 0]
    zeros = profile_of(head_weight=HEAD, head_bias=-np.zeros(2, np.float32), labels=("a", "b"))
    assert zeros.version == profile.version


def test_a_profile_cannot_be_changed_from_inside_or_outside() -> None:
    mask, norm = HARD.copy(), NORM.astype(np.float16)
    profile = profile_of(mask_a=mask, ln_weight=norm)
    version = profile.version
    mask[:], norm[:] = 0, 7
    assert np.array_equal(profile.mask_a, HARD)
    for array in (profile.mask_a, profile.mask_b, profile.ln_weight, profile.ln_bias):
        assert array is not None
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0
    with pytest.raises(FrozenInstanceError):
        profile.bank = "other"  # type: ignore[misc]
    assert profile.version == version


def test_equal_values_in_another_dtype_or_layout_are_the_same_version() -> None:
    one = profile_of(mask_a=HARD, ln_weight=NORM, ln_bias=-0.0 * NORM)
    two = profile_of(mask_a=np.asfortranarray(HARD.astype(bool)), ln_weight=NORM.astype(np.float16), ln_bias=0 * NORM)
    assert one.version == two.version
    soft = profile_of(mask_a=SOFT, mask_b=SOFT)
    assert soft.version == profile_of(mask_a=SOFT.astype(np.float16), mask_b=SOFT * 1.0).version


def test_anything_that_is_served_makes_another_version() -> None:
    head = {"head_weight": HEAD, "labels": ("a", "b")}
    profiles = [
        profile_of(),
        profile_of(bank="sha256:" + "5b" * 32),
        profile_of(bank="another"),
        profile_of(mask_b=HARD[::-1]),
        profile_of(mask_a=HARD[:, ::-1]),
        profile_of(ln_weight=NORM),
        profile_of(ln_weight=NORM * 2),
        profile_of(description="x"),
        profile_of(description=""),
        profile_of(shared_head="x"),
        profile_of(**head),
        profile_of(**head, head_bias=np.ones(2, np.float16)),
        profile_of(head_weight=HEAD, labels=("b", "a")),
    ]
    assert len({profile.version for profile in profiles}) == len(profiles)
    assert all(profile.version.startswith("sha256:") for profile in profiles)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"mask_a": HARD[0]}, r"mask_a: shape is \[3\], it must be \[L, N\]"),
        ({"mask_a": HARD[:0], "mask_b": HARD[:0]}, r"mask_a: shape is \[0, 3\]"),
        ({"mask_a": HARD.tolist()}, r"mask_a: \[\[1, 0, 1\], \[0, 1, 1\]\] is not a numpy array"),
        ({"mask_b": HARD[:, :2]}, r"mask_b: shape is \[2, 2\], it must be \[L=2, N=3\]"),
        ({"mask_a": HARD.astype(np.int8)}, "mask_a: dtype is int8"),
        ({"mask_b": SOFT.astype(np.float64)}, "mask_b: dtype is float64"),
        ({"mask_b": SOFT}, "mask_b: dtype is float32 and mask_a's is uint8"),
        ({"mask_a": HARD * 2}, r"mask_a: \[0, 0\] is 2, a hard mask has 0 and 1 only"),
        ({"mask_b": HARD * 0}, "mask_b: row 0 is empty"),
        ({"mask_a": HARD * [[1], [0]] == 1}, "mask_a: row 1 is empty"),
        (
            {"mask_a": np.array([[1, 1, 1], [0, 1, 1]], bool)},
            "mask_a: row 1 selects k=2 .* row 0 .* k=3",
        ),
        ({"mask_b": np.ones((2, 3), bool)}, "mask_b: row 0 selects k=3 adapters, mask_a selects k=2"),
        ({"mask_a": SOFT, "mask_b": SOFT * 1.01}, r"mask_b: row 0 sums to 1\.01"),
        (
            {"mask_a": HARD.astype(np.float32), "mask_b": SOFT},
            r"mask_a: row 0 sums to 2, .* within 0\.001 \(a hard mask is uint8 or bool\)",
        ),
        ({"mask_a": SOFT * np.float32(0.9985), "mask_b": SOFT}, r"mask_a: row 0 sums to 0\.9985"),
        ({"mask_a": SOFT * 0, "mask_b": SOFT}, "mask_a: row 0 sums to 0,"),
        ({"mask_a": with_value(SOFT, np.nan), "mask_b": SOFT}, r"mask_a: \[1, 2\] is nan"),
        ({"mask_a": with_value(SOFT, -0.5), "mask_b": SOFT}, r"mask_a: \[1, 2\] is -0\.5, a soft mask is ≥ 0"),
        ({"mask_a": with_value(SOFT, -1e-9), "mask_b": SOFT}, r"mask_a: \[1, 2\] is -1e-0?9|-9\.99"),
        ({"ln_weight": NORM[:1]}, r"ln_weight: shape is \[1, 4\], it must be \[L=2, R\]"),
        ({"ln_bias": NORM[0]}, r"ln_bias: shape is \[4\]"),
        ({"ln_weight": NORM, "ln_bias": NORM[:, :3]}, r"ln_bias: shape is \[2, 3\], it must be \[L=2, R=4\]"),
        ({"ln_weight": NORM.astype(np.float64)}, "ln_weight: dtype is float64"),
        ({"ln_weight": with_value(NORM, np.inf)}, r"ln_weight: \[1, 2\] is inf, which is not a finite number"),
        ({"ln_bias": with_value(NORM, -70000)}, r"ln_bias: \[1, 2\] is -70000.0, which is beyond float16's range"),
        ({"ln_bias": with_value(NORM, 65519)}, r"ln_bias: \[1, 2\] is 65519.0, which is beyond"),
        ({"head_weight": HEAD}, "labels: a head of its own needs 2 labels"),
        ({"head_weight": HEAD, "labels": ("a",)}, "labels: there are 1, head.weight has C=2 rows"),
        ({"head_weight": HEAD, "labels": ("a", "a")}, "labels: 'a' stands there twice"),
        ({"head_weight": HEAD, "labels": ("a", "")}, "labels: '' is not a non-empty string"),
        ({"head_weight": HEAD, "labels": ("a", 1)}, "labels: 1 is not a non-empty string"),
        ({"head_weight": HEAD, "labels": ("a", "\ud800")}, "labels: .* is not valid Unicode"),
        ({"head_weight": HEAD, "labels": ("a", "é" * 513)}, "labels: .* has 1026 bytes, at most 1024 are allowed"),
        ({"head_weight": HEAD, "labels": "ab"}, "labels: 'ab' is not a list"),
        ({"head_weight": HEAD, "labels": ("a", "b"), "shared_head": "x"}, "head: 'shared:x' and an own head.weight"),
        ({"head_weight": HEAD[0], "labels": ("a",)}, r"head.weight: shape is \[8\]"),
        ({"head_weight": HEAD[:, :0], "labels": ("a", "b")}, r"head.weight: shape is \[2, 0\]"),
        ({"head_weight": HEAD, "head_bias": HEAD[0], "labels": ("a", "b")}, r"head.bias: shape is \[8\]"),
        ({"head_weight": with_value(HEAD, np.nan), "labels": ("a", "b")}, r"head.weight: \[1, 2\] is nan"),
        ({"head_bias": HEAD[0]}, "head.bias: there is no head.weight"),
        ({"labels": ("a", "b")}, "labels: .* without a head.weight"),
        ({"shared_head": ""}, "head: '' is not a non-empty string"),
        ({"bank": ""}, "bank: '' is not a non-empty string"),
        ({"bank": 5}, "bank: 5 is not"),
        ({"bank": "x" * 129}, "bank: .* has 129 bytes, at most 128"),
        ({"description": "é" * 513}, "description: .* has 1026 bytes, at most 1024"),
    ],
)
def test_a_broken_rule_is_named_with_tensor_and_value(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileInvalid, match=message) as refused:
        profile_of(**parts)
    assert refused.value.param == refused.value.message.split(":")[0]
    assert len(refused.value.message) < 400


@pytest.mark.parametrize("total", [0.9991, 1.0, 1.0009])
def test_soft_rows_may_miss_one_by_a_thousandth_and_come_back(total: float) -> None:
    generator = np.random.default_rng(3)
    for adapters in (2, 7, 100, 3000):
        weights = generator.dirichlet(np.ones(adapters), size=4)
        mask = (weights / weights.sum(axis=1, keepdims=True) * total).astype(np.float32)
        profile = profile_of(mask_a=mask, mask_b=mask)
        again = profile_of(mask_a=profile.mask_a, mask_b=profile.mask_b.astype(np.float32))
        assert again.version == profile.version


def test_a_description_of_exactly_1024_bytes_is_kept() -> None:
    assert profile_of(description="é" * 512).description == "é" * 512


GEOMETRY = BankGeometry(BANK, blocks=2, adapters=3, hidden=8, width=4, shared_heads={"topics": ("x", "y")})


def test_a_profile_fits_its_own_bank(make_profile: MakeProfile) -> None:
    profile_of(ln_weight=NORM, head_weight=HEAD, labels=("a", "b")).check_fits(GEOMETRY)
    profile_of(shared_head="topics").check_fits(GEOMETRY)
    profile_of().check_fits(BankGeometry(BANK, 2, 3, 8, 4, layer_norm=False))


def test_a_foreign_bank_is_refused_before_any_shape() -> None:
    with pytest.raises(BankMismatch, match=r"5a5a.*sha256:0000"):
        profile_of(mask_a=HARD[:1], mask_b=HARD[:1]).check_fits(BankGeometry("sha256:" + "00" * 32, 2, 3, 8, 4))


@pytest.mark.parametrize(
    ("parts", "geometry", "message"),
    [
        ({}, BankGeometry(BANK, 3, 3, 8, 4), r"mask_a: shape is \[2, 3\], it must be \[L=3, N=3\]"),
        ({}, BankGeometry(BANK, 2, 4, 8, 4), r"mask_a: shape is \[2, 3\], it must be \[L=2, N=4\]"),
        ({"ln_weight": NORM}, BankGeometry(BANK, 2, 3, 8, 5), r"ln_weight: shape is \[2, 4\], .* \[L=2, R=5\]"),
        ({"ln_bias": NORM}, BankGeometry(BANK, 2, 3, 8, 4, layer_norm=False), "ln_weight: .* have no LayerNorm"),
        ({"head_weight": HEAD, "labels": ("a", "b")}, BankGeometry(BANK, 2, 3, 9, 4), r"head.weight: .* \[C, H=9\]"),
        ({"shared_head": "tone"}, GEOMETRY, r"head: 'shared:tone' is not a head of this bank \(it has: topics\)"),
    ],
)
def test_what_does_not_fit_the_bank_is_named(parts: dict[str, Any], geometry: BankGeometry, message: str) -> None:
    with pytest.raises(ProfileInvalid, match=message) as refused:
        profile_of(**parts).check_fits(geometry)
    assert refused.value.param is not None


def test_label_names_come_from_the_head_that_is_used() -> None:
    assert profile_of(head_weight=HEAD, labels=("a", "b")).label_names(GEOMETRY) == ("a", "b")
    assert profile_of(shared_head="topics").label_names(GEOMETRY) == ("x", "y")
    assert profile_of(shared_head="gone").label_names(GEOMETRY) is None
    assert profile_of().label_names(GEOMETRY) is None
