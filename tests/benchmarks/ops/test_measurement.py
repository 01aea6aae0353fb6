from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from xpeft_benchmarks.ops.bare import BarePacked, BarePadded
from xpeft_benchmarks.ops.measurement import OpsPlan, Workload, run_ops
from xpeft_benchmarks.ops.peft_mixed import PeftMixed, PeftUnavailable
from xpeft_benchmarks.ops.resident import ResidentProfiles, load_resident
from xpeft_benchmarks.popularity import parse_popularities

BANK = "random:N=8,R=4,seed=0"
TEXTS = [" ".join(f"w{(start + word) % 100}" for word in range(1 + start % 9)) for start in range(40)]


@pytest.fixture(scope="module")
def resident(tiny_bert: Path) -> ResidentProfiles:
    return load_resident(str(tiny_bert), BANK, device="cpu", dtype="float32", profiles=4, seed=0)


def test_every_variant_is_measured_in_one_run(tiny_bert: Path) -> None:
    plan = OpsPlan(
        plm=str(tiny_bert),
        bank=BANK,
        device="cpu",
        dtype="float32",
        batch=4,
        rounds=2,
        profiles=4,
        texts=8,
        popularities=parse_popularities("distinct,identical"),
    )
    steps: list[str] = []
    results = {result.variant: result for result in run_ops(plan, TEXTS, on_step=steps.append)}
    assert list(results) == [
        "bare packed",
        "bare packed, sorted",
        "bare padded, sorted",
        "mixed distinct",
        "mixed identical",
        "cold distinct",
        "tokenise",
        "aggregate_adapters P=1",
        "apply_adapters one block",
        "apply_heads",
    ]
    assert all(len(result.speeds) == 2 and result.per_second > 0 for result in results.values())
    assert {name: [each.to for each in result.ratios] for name, result in results.items() if result.ratios} == {
        "bare packed, sorted": ["bare padded, sorted"],
        "mixed distinct": ["bare packed"],
        "mixed identical": ["bare packed"],
        "cold distinct": ["bare packed"],
    }
    assert "4.0 different ones a batch" in results["mixed distinct"].meaning
    assert "1.0 different ones a batch" in results["mixed identical"].meaning
    assert steps[-3:] == ["round 1 of 2", "round 2 of 2", "operators alone"]


def test_padded_and_packed_compute_the_same_thing(resident: ResidentProfiles) -> None:
    plm = resident.classifier.plm
    texts = sorted(plm.tokenizer.encode([(text, None) for text in TEXTS[:9]]), key=len)
    head = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    packed, padded = (kind(plm, resident.pooling, head)(texts) for kind in (BarePacked, BarePadded))
    np.testing.assert_allclose(packed, padded, atol=1e-4)


@pytest.mark.parametrize("pooling", ["cls", "last"])
def test_padding_does_not_disturb_other_poolings(resident: ResidentProfiles, pooling: str) -> None:
    plm = resident.classifier.plm
    texts = sorted(plm.tokenizer.encode([(text, None) for text in TEXTS[:9]]), key=len)
    head = torch.eye(32)
    packed, padded = (kind(plm, pooling, head)(texts) for kind in (BarePacked, BarePadded))  # type: ignore[arg-type]
    np.testing.assert_allclose(packed, padded, atol=1e-4)


def test_refilling_a_profile_changes_no_answer(resident: ResidentProfiles) -> None:
    texts = resident.classifier.plm.tokenizer.encode([(text, None) for text in TEXTS[:4]])
    before = resident.classify(texts, [0, 1, 2, 3])
    resident.fill([2, 0])
    after = resident.classify(texts, [0, 1, 2, 3])
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_sorted_workload_has_its_longest_texts_in_its_last_batch(resident: ResidentProfiles) -> None:
    texts = resident.classifier.plm.tokenizer.encode([(text, None) for text in TEXTS])
    batches = Workload(texts, 16).sorted().batches()
    assert [len(batch) for batch in batches] == [16, 16, 8]
    assert max(map(len, batches[0])) <= min(map(len, batches[2]))


def test_peft_is_refused_by_name_where_it_is_not_installed(
    resident: ResidentProfiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(PeftUnavailable, match="pip install peft"):
        PeftMixed(resident.classifier.plm, resident.pooling, torch.zeros(4, 32), adapters=2, rank=4)
