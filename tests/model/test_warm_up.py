"""What serving launches was launched before anybody asked, and nobody's profile has noticed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xpeft_kernels import piece_rows
from xpeft_kernels.aggregate.launch import tile_profiles
from xpeft_kernels.dispatch import Operator
from xpeft_server.model import slots
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.batches.step_packing import Chunk
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.decoder import Decoder
from xpeft_server.model.kv.arena import KvArena
from xpeft_server.model.lanes import HostLanes, Lanes
from xpeft_server.model.plm import load_plm
from xpeft_server.model.slots import SlotFill

Launches = set[tuple[object, ...]]


class Asynchronous(HostLanes):
    """As of a device that computes by itself."""

    asynchronous = True


class Version(NamedTuple):
    """What an operator makes of its arguments here, and by what a compiled one is told from its others."""

    compute: Callable[..., Any]
    key: Callable[..., tuple[object, ...]]


OPERATORS: dict[str, Version] = {
    "aggregate_adapters": Version(
        lambda *_, **__: None,
        lambda bank, masks, rows, ids, **_: (bank.dtype, masks.dtype, rows.stride(), tile_profiles(ids.numel())),
    ),
    "apply_adapters": Version(
        lambda hidden, *_, **__: hidden + 0,
        lambda hidden, rows, tiles, form, *, residual, norm, **_: (
            hidden.dtype,
            rows.stride(),
            residual is None,
            norm is None,
            piece_rows(tiles.tokens, form, torch.bfloat16.itemsize),
        ),
    ),
    "apply_heads": Version(
        lambda pooled, weight, bias, rows, owners: pooled.new_zeros(rows.numel()),
        lambda pooled, weight, *_: (pooled.dtype, weight.stride()),
    ),
    "attend_packed": Version(
        lambda query, *_, **__: query + 0, lambda query, *_, **how: (query.dtype, query.shape[1:], tuple(how.items()))
    ),
    "attend_cache": Version(
        lambda query, *_, **__: query + 0,
        lambda query, keys, values, steps, **how: (query.dtype, query.shape[1:], len(steps.joins) > 0, how["window"]),
    ),
    "mean_rows": Version(
        lambda hidden, starts, _: torch.zeros(starts.numel(), hidden.shape[1]), lambda hidden, *_: (hidden.dtype,)
    ),
}


class Launched(TorchDispatchMode):
    """Operators of PyTorch, each with the types of its tensors."""

    def __init__(self, seen: Launches) -> None:
        super().__init__()
        self._seen = seen

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._seen.add((function._schema.name, *(each.dtype for each in args if isinstance(each, Tensor))))
        return function(*args, **(kwargs or {}))


@contextmanager
def noted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """What is launched meanwhile."""
    seen: Launches = set()

    def chosen(self: Operator, device_type: str, impl: object) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            compute, key = OPERATORS[self.name]
            seen.add((self.name, *key(*arguments, **options)))
            return compute(*arguments, **options)

        return run

    with monkeypatch.context() as patch, Launched(seen):
        patch.setattr(Operator, "__call__", chosen)
        yield seen


@pytest.mark.parametrize("lanes", [HostLanes(), Asynchronous()], ids=["cpu", "asynchronous"])
@pytest.mark.parametrize("graph_tokens", [0, 128])
@pytest.mark.parametrize("family", ["bert", "modernbert", "mistral"])
def test_all_that_serving_launches_was_launched(
    lab: Any, monkeypatch: pytest.MonkeyPatch, family: str, graph_tokens: int, lanes: Lanes
) -> None:
    plm = lab.plm(family)
    bank = lab.bank(plm)
    monkeypatch.setattr(slots, "lanes_of", lambda device: lanes)
    classifier = Classifier(plm, bank, slots=40, head_rows=7, graph_tokens=graph_tokens)
    profiles = {hard: lab.profile(bank, number, affine=True) for number, hard in ((4, True), (5, False))}
    with noted(monkeypatch) as warm:
        classifier.warm_up()
    assert {each[0] for each in warm} >= {"aggregate_adapters", "apply_adapters", "apply_heads"}
    rng = np.random.default_rng(0)
    with noted(monkeypatch) as served:
        for profiles_at_once in (1, 2, 16, 17, 40) if lanes.asynchronous else (1,):
            for hard, profile in profiles.items():
                rows = np.arange(len(profile.labels))
                assert profile.hard is hard
                classifier.fill([SlotFill(slot, profile, rows) for slot in range(profiles_at_once)], overlap=True)
        # 160 tokens fit into no graph. Sequences of different lengths are a loop on a CPU, as nowhere else.
        for count, length in ((1, 16), (7, 16), (2, 80), *([(60, 80)] if lanes.asynchronous else [])):
            texts = [lab.text(rng, length) for _ in range(count)]
            classifier.launch([ClassifierInput(text, n, np.arange(1 + n)) for n, text in enumerate(texts)])
    assert served - warm == set()


@pytest.mark.parametrize("graph_tokens", [0, 16])
def test_all_that_a_step_launches_was_launched(
    save_word_llama: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_tokens: int
) -> None:
    plm = load_plm(str(save_word_llama(tmp_path / "llama", ["w0", "w1"], hidden=32, positions=600)))
    monkeypatch.setattr(slots, "lanes_of", lambda device: Asynchronous())
    buffers = Classifier(plm, open_bank("random:N=4,R=8", plm.facts), slots=2, head_rows=1).buffers
    decoder = Decoder(plm, buffers, kv_tokens=2048, cache=KvArena, graph_tokens=graph_tokens)
    with noted(monkeypatch) as warm:
        decoder.warm_up()
    assert decoder.cache.used == 0
    rows = [decoder.cache.claim(600) for _ in range(2)]
    with noted(monkeypatch) as served:
        # 40 tokens fit into no graph.
        for count, pasts in ((20, (0, 0)), (1, (20, 20)), (1, (299, 20))):
            ids = np.zeros(count, np.int32)
            decoder.step([Chunk(ids, pasts[slot], rows[slot], slot, asks=True) for slot in range(2)])
    assert {each[3] for each in warm if each[0] == "attend_cache"} == {False, True}
    assert served - warm == set()


@pytest.mark.parametrize("lanes", [HostLanes(), Asynchronous()], ids=["cpu", "asynchronous"])
def test_nobodys_slot_or_head_is_touched(lab: Any, monkeypatch: pytest.MonkeyPatch, lanes: Lanes) -> None:
    monkeypatch.setattr(slots, "lanes_of", lambda device: lanes)
    plm = lab.plm("bert")
    crowd = lab.crowd(plm, lab.bank(plm), 6)
    buffers = crowd.classifier.buffers
    inputs = [crowd.input(n, lab.text(np.random.default_rng(n), 4 + n)) for n in range(6)]
    answers = crowd.classifier.logits(inputs)
    before = [each.clone() for each in (buffers.adapters, buffers.head_weight, buffers.head_bias)]
    crowd.classifier.warm_up()
    after = [buffers.adapters, buffers.head_weight, buffers.head_bias]
    before[0][:, buffers.bare_slot] = 0
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one, rtol=0, atol=0, equal_nan=True)
    assert not buffers.head_weight[buffers.spare_head_row].any()
    assert not np.isin(buffers.spare_head_row, np.concatenate(list(buffers.shared_head_rows.values())))
    assert [each.tolist() for each in crowd.classifier.logits(inputs)] == [each.tolist() for each in answers]
