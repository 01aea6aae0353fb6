"""``xpeft bench ops``: what many profiles cost over the bare PLM, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
import torch

from xpeft_server.model.tokens.tokenizing import TokenizedText

from ..popularity import Popularity
from ..results import Result
from ..rounds import ratio, time_interleaved
from ..texts import sample_texts
from .bare import BarePacked, BarePadded
from .operators import operator_calls
from .peft_mixed import PeftMixed
from .resident import ResidentProfiles, load_resident

BARE = "bare packed"
BARE_SORTED = "bare packed, sorted"
BARE_PADDED = "bare padded, sorted"
_OPERATOR_CALLS = 5


@dataclass(frozen=True, slots=True)
class OpsPlan:
    """What to measure. ``texts`` are classified once a round by every variant; ``peft_rank`` 0 leaves PEFT out."""

    plm: str
    bank: str
    device: str
    dtype: str
    batch: int
    rounds: int
    profiles: int
    texts: int
    popularities: tuple[Popularity, ...]
    peft_rank: int = 0
    seed: int = 0

    def settings(self) -> dict[str, object]:
        return {**asdict(self), "popularities": [str(each) for each in self.popularities]}


class Variant(NamedTuple):
    """``run`` classifies all texts once."""

    meaning: str
    run: Callable[[], object]
    against: tuple[str, ...] = ()


class Workload(NamedTuple):
    """The texts in batches of ``size``, as they come and sorted by length over all."""

    texts: Sequence[TokenizedText]
    size: int

    def batches(self) -> list[Sequence[TokenizedText]]:
        return [self.texts[start : start + self.size] for start in range(0, len(self.texts), self.size)]

    def sorted(self) -> Workload:
        return Workload(sorted(self.texts, key=len), self.size)


def run_ops(plan: OpsPlan, pool: Sequence[str], *, on_step: Callable[[str], None]) -> list[Result]:
    """Load, warm up, measure. Raises: ModelError, BankError, PeftUnavailable."""
    rng = np.random.default_rng(plan.seed)
    on_step(f"loading {plan.plm} in {plan.dtype} on {plan.device}")
    resident = load_resident(
        plan.plm, plan.bank, device=plan.device, dtype=plan.dtype, profiles=plan.profiles, seed=plan.seed
    )
    texts = sample_texts(pool, plan.texts, rng)
    work = Workload(
        resident.classifier.plm.tokenizer.encode([(text, None) for text in texts], truncate=True), plan.batch
    )
    variants = {**_bare(resident, work), **_mixed(plan, resident, work, rng), **_tokenise(resident, texts)}
    if plan.peft_rank:
        variants |= _peft(plan, resident, work)
    on_step(f"warming up {len(variants)} variants on {plan.texts} texts")
    forwards = _measure(plan, variants, work, on_step)
    return [*forwards, *_operators(plan, resident, work, on_step)]


def _bare(resident: ResidentProfiles, work: Workload) -> dict[str, Variant]:
    classifier = resident.classifier
    head = torch.randn(4, classifier.geometry.hidden, device=classifier.plm.device)
    packed = BarePacked(classifier.plm, resident.pooling, head)
    padded = BarePadded(classifier.plm, resident.pooling, head)
    sorted_work = work.sorted()
    return {
        BARE: Variant("the PLM without adapters, texts in the order that they come in", _each(packed, work)),
        BARE_SORTED: Variant(
            "the PLM without adapters, packed, texts sorted by length over the whole pool",
            _each(packed, sorted_work),
            (BARE_PADDED,),
        ),
        BARE_PADDED: Variant(
            "transformers' own padded forward (sdpa, attention mask) of the same sorted batches",
            _each(padded, sorted_work),
        ),
    }


def _mixed(plan: OpsPlan, resident: ResidentProfiles, work: Workload, rng: np.random.Generator) -> dict[str, Variant]:
    def variant(popularity: Popularity) -> Variant:
        owners = _in_batches(popularity.draw(plan.texts, plan.profiles, rng).tolist(), plan.batch)
        profiles = np.mean([len(set(batch)) for batch in owners])
        pairs = list(zip(work.batches(), owners, strict=True))
        return Variant(
            f"resident profiles, {profiles:.1f} different ones a batch, in the same batches as {BARE!r}",
            lambda: [resident.classify(texts, batch) for texts, batch in pairs],
            (BARE,),
        )

    return {
        **{f"mixed {popularity}": variant(popularity) for popularity in plan.popularities},
        "cold distinct": _cold(plan, resident, work),
    }


def _cold(plan: OpsPlan, resident: ResidentProfiles, work: Workload) -> Variant:
    owners = _in_batches([number % plan.profiles for number in range(plan.texts)], plan.batch)
    pairs = [(texts, batch, sorted(set(batch))) for texts, batch in zip(work.batches(), owners, strict=True)]

    def run() -> None:
        for texts, batch, profiles in pairs:
            resident.fill(profiles)
            resident.classify(texts, batch)

    return Variant("as mixed distinct, but every batch's profiles are materialised first", run, (BARE,))


def _peft(plan: OpsPlan, resident: ResidentProfiles, work: Workload) -> dict[str, Variant]:
    classifier = resident.classifier
    head = torch.randn(4, classifier.geometry.hidden, device=classifier.plm.device)
    mixed = PeftMixed(classifier.plm, resident.pooling, head, adapters=plan.profiles, rank=plan.peft_rank)
    owners = _in_batches([number % plan.profiles for number in range(plan.texts)], plan.batch)
    pairs = list(zip(work.sorted().batches(), owners, strict=True))
    return {
        "peft mixed, sorted": Variant(
            f"HF PEFT, {plan.profiles} LoRA adapters of rank {plan.peft_rank}, every text of a batch another one",
            lambda: [mixed(texts, batch) for texts, batch in pairs],
            (BARE_PADDED, BARE_SORTED),
        )
    }


def _tokenise(resident: ResidentProfiles, texts: Sequence[str]) -> dict[str, Variant]:
    tokenizer = resident.classifier.plm.tokenizer
    pairs = [(text, None) for text in texts]
    return {
        "tokenise": Variant(
            "texts to token ids; part of no other variant", lambda: tokenizer.encode(pairs, truncate=True)
        )
    }


def _measure(
    plan: OpsPlan, variants: Mapping[str, Variant], work: Workload, on_step: Callable[[str], None]
) -> list[Result]:
    seconds = time_interleaved(
        {name: variant.run for name, variant in variants.items()},
        plan.rounds,
        plan.seed,
        on_round=lambda number: on_step(f"round {number} of {plan.rounds}"),
    )
    speeds = {name: [plan.texts / each for each in times] for name, times in seconds.items()}
    tokens = sum(map(len, work.texts))
    return [
        Result(
            variant=name,
            meaning=variant.meaning,
            unit="texts",
            speeds=speeds[name],
            ratios=[ratio(other, speeds[name], speeds[other]) for other in variant.against],
            details={"mean_tokens": round(tokens / plan.texts, 1), "batch": plan.batch},
        )
        for name, variant in variants.items()
    ]


def _operators(
    plan: OpsPlan, resident: ResidentProfiles, work: Workload, on_step: Callable[[str], None]
) -> list[Result]:
    on_step("operators alone")
    batch = list(work.batches()[0])
    calls = operator_calls(resident, batch, [number % plan.profiles for number in range(len(batch))])

    def repeat(run: Callable[[], object]) -> Callable[[], object]:
        return lambda: [run() for _ in range(_OPERATOR_CALLS)]

    seconds = time_interleaved({name: repeat(call.run) for name, call in calls.items()}, plan.rounds, plan.seed)
    results = []
    for name, call in calls.items():
        speeds = [_OPERATOR_CALLS / each for each in seconds[name]]
        milliseconds = 1000 / float(np.median(speeds))
        results.append(Result(name, call.meaning, "calls", speeds, details={"median_ms": round(milliseconds, 4)}))
    return results


def _each(run: Callable[[Sequence[TokenizedText]], object], work: Workload) -> Callable[[], object]:
    batches = work.batches()
    return lambda: [run(batch) for batch in batches]


def _in_batches(owners: list[int], size: int) -> list[list[int]]:
    return [owners[start : start + size] for start in range(0, len(owners), size)]
