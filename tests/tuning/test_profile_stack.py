from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.batches.packing import pack
from xpeft_server.model.plm import Plm, load_plm
from xpeft_server.model.slots import SlotAdapters, SlotBuffers, SlotFill
from xpeft_tuning.bank_parts import BankParts
from xpeft_tuning.errors import Unservable
from xpeft_tuning.linear_head import LinearHead
from xpeft_tuning.profile_stack import Learned, ProfileStack
from xpeft_tuning.settings import Kind, TuningSettings

CPU = torch.device("cpu")
LABELS = ("a", "b")


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _stack(bank: Bank, *, places: int = 3, classes: int = 4, **settings: object) -> ProfileStack:
    """Heads of two labels, and everything that is learned somewhere else than at its start."""
    chosen = TuningSettings(**settings)  # type: ignore[arg-type]
    stack = ProfileStack(bank, chosen, places=places, classes=classes, device=CPU)
    for place in range(places):
        stack.begin(place, seed=place)
        head = LinearHead(_normal(2, bank.hidden, seed=place), _normal(2, seed=place))
        stack.begin_head(place, LinearHead.zero(2, bank.hidden), head)
    for number, each in enumerate((stack.learned.logits, stack.learned.ln_weight, stack.learned.ln_bias)):
        each.add_(_normal(*each.shape, seed=10 + number))
    return stack


def _with_biases(bank: Bank) -> Bank:
    down = _normal(bank.blocks, bank.adapters, bank.width, seed=3)
    return replace(bank, down_bias=down, up_bias=_normal(bank.blocks, bank.adapters, bank.hidden, seed=4))


@pytest.mark.parametrize(("kind", "temperature"), [("hard", 1.0), ("hard", 0.3), ("soft", 1.0), ("soft", 0.3)])
@pytest.mark.parametrize("change", [lambda bank: bank, _with_biases, lambda bank: replace(bank, layer_norm=False)])
def test_what_is_tuned_is_what_is_served_up_to_float16(
    bank: Bank, change: Callable[[Bank], Bank], kind: Kind, temperature: float
) -> None:
    bank = change(bank)
    stack = _stack(bank, kind=kind)
    buffers = SlotBuffers(bank, slots=3, head_rows=6, device=CPU, dtype=torch.float32)
    profiles = [stack.profile(place, LABELS, temperature) for place in range(3)]
    buffers.fill([SlotFill(place, each, 2 * place + np.arange(2)) for place, each in enumerate(profiles)])
    weights = stack.weights(stack.learned.logits, temperature)
    rows = stack.slot_rows(weights, stack.learned, BankParts.of(bank, CPU))
    torch.testing.assert_close(rows, buffers.adapters[:, :3], rtol=2e-3, atol=1e-3)
    weight, bias = stack.head(torch.arange(3), stack.learned)
    torch.testing.assert_close(weight[:, :2].flatten(0, 1), buffers.head_weight[:6], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(bias[:, :2].flatten(), buffers.head_bias[:6], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["logits", "ln_weight", "ln_bias"])
def test_the_gradient_through_the_whole_model_is_that_of_finite_differences(
    tiny_bert: Path, bank: Bank, name: str
) -> None:
    plm = load_plm(str(tiny_bert), dtype=torch.float64)
    stack = _stack(bank, places=2, kind="soft")
    parts = BankParts(*(each.double() for each in BankParts.of(bank, CPU)))
    texts = plm.tokenizer.encode([("w1 w2 w3", None), ("w9", None), ("w4 w5 w6 w7 w8 w9 w10 w11 w12 w13", None)])
    batch = pack(texts, [0, 1, 1])
    assert batch.tiles is not None
    tiles, direction = batch.tiles, _normal(batch.input_ids.shape[1], bank.hidden, seed=4).double()
    learned = Learned(*(each.double() for each in stack.learned))
    values: Tensor = getattr(learned, name).requires_grad_()

    def loss() -> Tensor:
        rows = stack.slot_rows(stack.weights(learned.logits, 0.7), learned, parts)
        return (plm.forward(batch, SlotAdapters(rows, tiles, stack.form)) * direction).sum()

    (gradient,) = torch.autograd.grad(loss(), values)
    assert (gradient.flatten(1) != 0).any(1).all()
    flat = values.data.view(-1)
    with torch.no_grad():
        for place in range(0, flat.numel(), 5):
            before, change = flat[place].item(), 1e-5
            flat[place] = before + change
            above = loss().item()
            flat[place] = before - change
            below = loss().item()
            flat[place] = before
            assert gradient.flatten()[place].item() == pytest.approx((above - below) / (2 * change), rel=1e-4, abs=1e-6)


def test_gradients_reach_the_leaves_and_nothing_frozen(plm: Plm, bank: Bank) -> None:
    stack = _stack(bank)
    before = [each.clone() for each in stack.learned]
    parts = BankParts.of(bank, CPU)
    leaves = stack.leaves(torch.tensor([2, 0]))
    batch = pack(plm.tokenizer.encode([("w1 w2 w3", None), ("w4", None)]), [0, 1])
    assert batch.tiles is not None
    rows = stack.slot_rows(stack.weights(leaves.logits), leaves, parts)
    hidden = plm.forward(batch, SlotAdapters(rows, batch.tiles, stack.form))
    weight, bias = stack.head(torch.tensor([2, 0]), leaves)
    logits = hidden[:2, None] @ weight[:, :2].mT + bias[:, None, :2]
    torch.autograd.backward(logits.logsumexp(-1).sum())
    assert all(each.grad is not None and each.grad.any() for each in leaves)
    assert all(parameter.grad is None for parameter in plm.model.parameters())
    assert all(each.grad is None for each in (*parts, *stack.learned))
    assert all(torch.equal(each, old) for each, old in zip(stack.learned, before, strict=True))


def test_a_label_that_a_narrow_head_lacks_has_no_chance_and_no_gradient(bank: Bank) -> None:
    stack = _stack(bank, classes=4)
    leaves = stack.leaves(torch.arange(3))
    weight, bias = stack.head(torch.arange(3), leaves)
    logits = torch.einsum("qh,qch->qc", _normal(3, bank.hidden), weight) + bias
    assert torch.equal(logits.softmax(1)[:, 2:], torch.zeros(3, 2))
    torch.autograd.backward(torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0])))
    for gradient in (leaves.head_weight.grad, leaves.head_bias.grad):
        assert gradient is not None
        assert gradient.isfinite().all()
        assert gradient[:, :2].any()
        assert not gradient[:, 2:].any()


def test_whoever_begins_finds_nothing_of_who_was_there_before(bank: Bank) -> None:
    used, fresh = _stack(bank), ProfileStack(bank, TuningSettings(), places=3, classes=4, device=CPU)
    wide = LinearHead(_normal(4, bank.hidden, seed=8), _normal(4, seed=9))
    used.begin_head(1, wide, LinearHead(wide.weight + 1, wide.bias + 1))
    others = [each[[0, 2]].clone() for each in used.learned]
    start = LinearHead(_normal(2, bank.hidden, seed=5), _normal(2, seed=6))
    for stack in (used, fresh):
        stack.begin(1, seed=77)
        stack.begin_head(1, LinearHead.zero(2, bank.hidden), start)
    for mine, new in zip(used.learned, fresh.learned, strict=True):
        assert torch.equal(mine[1], new[1])
    heads = [each.head(torch.tensor([1]), each.leaves(torch.tensor([1]))) for each in (used, fresh)]
    assert all(torch.equal(mine, new) for mine, new in zip(*heads, strict=True))
    assert used.profile(1, LABELS, 1.0).version == fresh.profile(1, LABELS, 1.0).version
    assert all(torch.equal(each[[0, 2]], old) for each, old in zip(used.learned, others, strict=True))


def test_the_seed_decides_how_a_profile_starts(bank: Bank) -> None:
    stack = ProfileStack(bank, TuningSettings(), places=3, classes=0, device=CPU)
    for place, seed in enumerate((5, 5, 6)):
        stack.begin(place, seed=seed)
    first, again, other = stack.learned.logits
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std().item() == pytest.approx(0.01, rel=0.3)


def test_what_is_learned_of_a_head_is_how_far_it_is_from_what_it_is_drawn_to(bank: Bank) -> None:
    stack = ProfileStack(bank, TuningSettings(), places=1, classes=2, device=CPU)
    drawn_to = LinearHead(_normal(2, bank.hidden, seed=1), _normal(2, seed=2))
    stack.begin(0, seed=0)
    stack.begin_head(0, drawn_to, drawn_to)
    assert not stack.learned.head_weight.any()
    assert not stack.learned.head_bias.any()
    weight, bias = stack.head(torch.tensor([0]), stack.learned)
    assert torch.equal(weight[0], drawn_to.weight)
    assert torch.equal(bias[0], drawn_to.bias)


def test_a_hard_profile_selects_k_in_every_row(bank: Bank) -> None:
    profile = _stack(bank, k=3).profile(0, LABELS, 1.0)
    assert (profile.hard, profile.k) == (True, 3)
    assert not _stack(bank, kind="soft").profile(0, LABELS, 1.0).hard


@pytest.mark.parametrize(
    ("settings", "labels", "brings", "names"),
    [
        ({}, LABELS, LABELS, None),
        ({"shared_head": "x"}, LABELS, None, "x"),
        ({"shared_head": "x", "own_head": True}, LABELS, LABELS, None),
        ({}, (), None, None),
    ],
    ids=["own", "shared", "own beside shared", "none"],
)
def test_a_profile_has_the_head_that_is_asked_for(
    bank: Bank, settings: dict[str, object], labels: tuple[str, ...], brings: tuple[str, ...] | None, names: str | None
) -> None:
    bank = replace(bank, heads={"x": SharedHead(torch.zeros(2, bank.hidden), torch.zeros(2), LABELS)})
    profile = _stack(bank, **settings).profile(0, labels, 1.0)
    assert (profile.labels, profile.shared_head) == (brings, names)
    assert (profile.head_weight is not None) is (brings is not None)
    profile.check_fits(bank.geometry)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("head_bias", 70_000.0, "makes no profile: head.bias: .*70000.*beyond float16's range"),
        ("ln_weight", torch.nan, "makes no profile: ln_weight: .*nan"),
        ("head_weight", -torch.inf, "makes no profile: head.weight: .*inf"),
    ],
)
def test_numbers_that_no_profile_can_hold_are_told(bank: Bank, name: str, value: float, message: str) -> None:
    stack = _stack(bank)
    getattr(stack.learned, name)[1].view(-1)[1] = value
    with pytest.raises(Unservable, match=message):
        stack.profile(1, LABELS, 1.0)
    stack.profile(0, LABELS, 1.0)
    assert stack.fit_float16([2, 1, 0]) == [True, False, True]


def test_numbers_of_float16s_whole_range_fit_a_profile(bank: Bank) -> None:
    stack = _stack(bank)
    for each in stack.learned[1:]:
        each[1].fill_(65504.0)
        each[2].fill_(-65504.0)
    assert stack.fit_float16([0, 1, 2]) == [True, True, True]
    assert stack.fit_float16([]) == []
    stack.profile(1, LABELS, 1.0)
    stack.profile(2, LABELS, 1.0)


def test_a_head_of_the_bank_goes_to_wherever_the_stack_is(bank: Bank) -> None:
    elsewhere = torch.device("meta")
    stack = ProfileStack(bank, TuningSettings(), places=1, classes=2, device=elsewhere)
    head = LinearHead(_normal(2, bank.hidden), _normal(2))
    stack.begin_head(0, head, head)
    assert stack.learned.head_weight.device == elsewhere
