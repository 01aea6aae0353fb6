from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from xpeft_profiles import Profile
from xpeft_server.model.banks.bank import Bank
from xpeft_server.model.banks.file import read_bank_file, write_bank_file
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.plm import Plm
from xpeft_server.model.slots import SlotFill
from xpeft_tuning.bank_training.mixture import MixtureTrainer, _divergence
from xpeft_tuning.bank_training.outcome import BankProgress
from xpeft_tuning.bank_training.settings import BankTrainingSettings
from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.errors import DatasetInvalid, DataTooSmall, TuningSettingsInvalid
from xpeft_tuning.evaluation import score_logits

MakeDataset = Callable[..., Dataset]
Small = Callable[..., BankTrainingSettings]


def with_splits(dataset: Dataset, train: int) -> Dataset:
    """The first rows teach, the others measure."""
    rows = enumerate(dataset.examples)
    return replace(dataset, examples=tuple(replace(row, split="train" if n < train else "test") for n, row in rows))


def numbers(rows: int) -> Dataset:
    """Of two kinds of words; the label is the share of one of them."""
    rng = np.random.default_rng(7)
    examples = []
    for _ in range(rows):
        kinds = rng.random(6) < rng.random()
        words = np.where(kinds, rng.integers(0, 5, 6), rng.integers(50, 55, 6))
        examples.append(Example(" ".join(f"w{word}" for word in words), float(kinds.mean())))
    return Dataset(tuple(examples), ("share",))


def served(plm: Plm, bank: Bank, mask: NDArray[Any], texts: list[str]) -> Tensor:
    """Logits ``[Q, C]`` of the server for a profile with this mask ``[N]`` everywhere, over the shared head."""
    masks = np.tile(mask, (bank.blocks, 1))
    profile = Profile(bank=bank.fingerprint, mask_a=masks, mask_b=masks, shared_head="shared")
    classifier = Classifier(plm, bank, slots=1, head_rows=0)
    classifier.fill([SlotFill(0, profile, np.arange(0))])
    rows = classifier.buffers.shared_head_rows["shared"]
    encoded = plm.tokenizer.encode([(text, None) for text in texts])
    return torch.from_numpy(np.stack(classifier.logits([ClassifierInput(text, 0, rows) for text in encoded])))


def averaged(bank: Bank) -> Bank:
    """Its one adapter is the mean of all."""
    means = {name: tensor.mean(dim=1, keepdim=True) for name, tensor in bank.adapter_tensors().items()}
    return replace(bank, **means)


@pytest.mark.parametrize("changes", [{}, {"biases": True, "activation": "gelu"}, {"layer_norm": False}])
def test_merging_by_averaging_is_the_uniform_mask(
    plm: Plm, make_dataset: MakeDataset, small: Small, changes: dict[str, Any]
) -> None:
    dataset = with_splits(make_dataset(60), 45)
    trained = MixtureTrainer(plm, dataset, small(epochs=2, batch_rows=9, **changes)).train()
    texts = [row.text for row in dataset.examples[45:]]
    merged = served(plm, averaged(trained.bank), np.ones(1, bool), texts)
    uniform = served(plm, trained.bank, np.full(4, 0.25, np.float16), texts)
    every = served(plm, trained.bank, np.ones(4, bool), texts)
    one = served(plm, trained.bank, np.array([True, False, False, False]), texts)
    torch.testing.assert_close(uniform, merged)
    torch.testing.assert_close(every, merged)
    assert not torch.allclose(one, merged, rtol=0.01)
    assert trained.held_out is not None
    targets = torch.tensor([dataset.labels.index(str(row.label)) for row in dataset.examples[45:]])
    measured = score_logits(merged, targets)
    assert trained.held_out.accuracy == measured.accuracy
    assert trained.held_out.loss == pytest.approx(measured.loss, rel=1e-5)


def test_a_task_is_learned_and_every_step_is_told(plm: Plm, make_dataset: MakeDataset, small: Small) -> None:
    seen: list[BankProgress] = []
    trainer = MixtureTrainer(plm, with_splits(make_dataset(75), 60), small(epochs=8, batch_rows=16))
    trained = trainer.train(seen.append)
    assert trained.held_out is not None
    assert (trained.held_out.accuracy or 0) > 0.9
    assert (trained.rows, trained.held_out.rows, trained.skipped, trained.cut) == (60, 15, 0, 0)
    assert [(each.epoch, each.step) for each in seen] == [(e, s) for e in range(1, 9) for s in range(1, 5)]
    assert {(each.epochs, each.steps) for each in seen} == {(8, 4)}
    assert seen[-1].loss < seen[0].loss == pytest.approx(np.log(3), rel=1e-6)
    assert [each.score is None for each in seen] == [True] * 4 + [False] * 28
    assert trained.bank.heads["shared"].labels == ("red", "green", "blue")


def test_numbers_are_learned_too(plm: Plm, small: Small) -> None:
    dataset = with_splits(numbers(80), 60)
    trained = MixtureTrainer(plm, dataset, small(epochs=12, batch_rows=16)).train()
    assert trained.held_out is not None
    assert trained.held_out.accuracy is None
    assert (trained.held_out.correlation or 0) > 0.9
    assert trained.bank.heads["shared"].labels == ("share",)


def _choices(trainer: MixtureTrainer, draws: int) -> NDArray[np.int64]:
    """``[draws, L, 2]``: which adapters' down and up parts were drawn, told by their values."""
    bank, settings = trainer._bank, trainer._settings
    with torch.no_grad():
        for part in (bank._down, bank._up):
            part.copy_(torch.arange(settings.adapters)[None, :, None].expand_as(part))
    split = bank.form.split
    slots = torch.stack([trainer._drawn().detach() for _ in range(draws)])
    assert torch.equal(slots[:, :, :split].amin(dim=2), slots[:, :, :split].amax(dim=2))
    return torch.stack([slots[:, :, 0], slots[:, :, split]], dim=2).long().numpy()


def test_adapters_are_drawn_uniformly_and_independently_for_every_block_down_and_up(
    plm: Plm, make_dataset: MakeDataset, small: Small
) -> None:
    count, draws = 3, 8100
    trainer = MixtureTrainer(plm, make_dataset(6), small(adapters=count, seed=1))
    drawn = _choices(trainer, draws).reshape(draws, -1)
    assert drawn.shape[1] == 2 * plm.facts.blocks == 4
    joint = np.ravel_multi_index(tuple(drawn.T), (count,) * 4)
    seen = np.bincount(joint, minlength=count**4)
    expected = draws / count**4
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    assert 45 < chi_square < 125  # 80 degrees of freedom: 0.1 % lie below 46.5, 0.1 % above 124.8
    following = np.bincount(joint[1:] * count**4 + joint[:-1], minlength=count**8)
    assert following.max() < 12  # of 1.2 expected: the next draw knows nothing of the last


def test_every_step_draws_twice_and_takes_each_row_once_an_epoch(
    plm: Plm, make_dataset: MakeDataset, small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = MixtureTrainer(plm, make_dataset(22), small(epochs=3, batch_rows=8))
    slots: list[Tensor] = []
    rows: list[NDArray[np.int64]] = []
    drawn, step = trainer._drawn, trainer._step
    monkeypatch.setattr(trainer, "_drawn", lambda: slots.append(drawn()) or slots[-1])
    monkeypatch.setattr(trainer, "_step", lambda some: rows.append(some) or step(some))
    trainer.train()
    assert len(slots) == 2 * len(rows) == 2 * 9
    epochs = [np.concatenate(rows[start : start + 3]).tolist() for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(22)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(len(some) in (7, 8) for some in rows)
    firsts, seconds = slots[::2], slots[1::2]
    assert any(not torch.equal(a, b) for a, b in zip(firsts, seconds, strict=True))


@pytest.mark.parametrize("changes", [{}, {"biases": True}, {"share_up": True}])
@pytest.mark.parametrize("consistency", [0.0, 1.5])
@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_a_step_is_what_plain_autograd_says(
    plm: Plm, make_dataset: MakeDataset, small: Small, one_adapter: Any, changes: Any, consistency: float, kind: str
) -> None:
    dataset = make_dataset(7) if kind == "labels" else numbers(7)
    settings = small(adapters=3, consistency=consistency, seed=5, **changes)
    trainer = MixtureTrainer(plm, dataset, settings)
    _scramble(trainer)
    loss = trainer._step(np.arange(7))

    bank = trainer._bank
    down, up, weight, bias = (each.detach().clone().requires_grad_() for each in _parameters(trainer))
    random, blocks = np.random.Generator(np.random.PCG64(5)), torch.arange(2)
    passes = []
    for _ in range(2):
        places = [torch.from_numpy(random.integers(3, size=2)) for _ in range(2)]
        rows = [down[blocks, places[0]], up[blocks, 0 * places[1] if settings.share_up else places[1]]]
        adapter = _one_adapter(one_adapter, rows, bank.form.hidden, bank.form.width)
        pooled = torch.stack([adapter.pooled(plm, text) for text in trainer._train.texts])
        passes.append(pooled @ weight.T + bias)
    first, second = passes
    if kind == "labels":
        targets = torch.tensor([dataset.labels.index(str(row.label)) for row in dataset.examples])
        plain = functional.cross_entropy(first, targets)
        p, q = first.softmax(dim=1), second.softmax(dim=1)
        apart = ((p * (p / q).log()).sum(dim=1) + (q * (q / p).log()).sum(dim=1)) / 2
    else:
        targets = torch.tensor([float(row.label) for row in dataset.examples])
        plain = (first[:, 0] - targets).square().mean() / 2
        apart = (first - second)[:, 0].square() / 2
    (plain + consistency * apart.mean()).backward()
    assert loss == pytest.approx(plain.item(), rel=1e-5)
    for name, wanted, parameter in zip("ABwb", (down, up, weight, bias), _parameters(trainer), strict=True):
        assert wanted.grad is not None
        assert wanted.grad.any(), name
        torch.testing.assert_close(parameter.grad, wanted.grad, rtol=1e-4, atol=1e-5 * wanted.grad.abs().max().item())


def _parameters(trainer: MixtureTrainer) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bank = trainer._bank
    return bank._down, bank._up, bank.head_weight, bank.head_bias


def _scramble(trainer: MixtureTrainer) -> None:
    """Every parameter away from zero, where a head that is none would stop all gradients."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for each in _parameters(trainer):
            each.copy_(0.3 * torch.randn(each.shape, generator=generator))


def _one_adapter(make: Any, rows: list[Tensor], hidden: int, width: int) -> Any:
    """From one row ``[L, …]`` of each part, with zeros where it has no bias and the identity for an affine."""
    wide = hidden * width
    down, up = (each[:, :wide] for each in rows)
    biases = [
        each[:, wide:] if each.shape[1] > wide else torch.zeros(len(each), size)
        for each, size in zip(rows, (width, hidden), strict=True)
    ]
    ones = torch.ones(len(down), width)
    return make(down.view(-1, hidden, width), biases[0], up.view(-1, width, hidden), biases[1], ones, 0 * ones)


def test_steps_in_parts_have_the_gradients_of_whole_steps(plm: Plm, make_dataset: MakeDataset, small: Small) -> None:
    gradients = []
    for tokens in (8192, 48, 1):
        trainer = MixtureTrainer(plm, make_dataset(9), small(batch_tokens=tokens))
        _scramble(trainer)
        trainer._step(np.arange(9))
        gradients.append([each.grad for each in _parameters(trainer)])
    for part in gradients[1:]:
        for one, whole in zip(part, gradients[0], strict=True):
            assert one is not None
            assert whole is not None
            torch.testing.assert_close(one, whole, rtol=1e-4, atol=1e-5 * whole.abs().max().item())


def test_the_divergence_is_the_symmetric_one_of_kullback_and_leibler() -> None:
    first, second = torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([[0.6, 0.4], [0.5, 0.5]])
    wanted = (0.9 * np.log(0.9 / 0.6) + 0.1 * np.log(0.1 / 0.4) + 0.6 * np.log(0.6 / 0.9) + 0.4 * np.log(0.4 / 0.1)) / 2
    found = _divergence(first.log() + 3, second.log() - 1)  # logits are log-probabilities but for a constant
    assert found.tolist() == [pytest.approx(wanted, rel=1e-6), pytest.approx(0, abs=1e-7)]
    assert _divergence(torch.tensor([[3.0]]), torch.tensor([[1.0]])).tolist() == [2.0]


def test_adapters_that_share_an_up_projection_have_the_same_and_differ_in_down(
    plm: Plm, make_dataset: MakeDataset, small: Small
) -> None:
    settings = small(epochs=2, share_up=True, biases=True)
    before = MixtureTrainer(plm, make_dataset(30), settings)._bank.bank("").up.clone()
    bank = MixtureTrainer(plm, make_dataset(30), settings).train().bank
    assert bank.up_bias is not None
    for tensor in (bank.up, bank.up_bias):
        assert torch.equal(tensor, tensor[:, :1].expand_as(tensor))
    assert not torch.equal(bank.up, before)
    assert all(not torch.equal(bank.down[:, 0], bank.down[:, n]) for n in range(1, 4))


def test_biases_are_learned_where_adapters_have_them(plm: Plm, make_dataset: MakeDataset, small: Small) -> None:
    bank = MixtureTrainer(plm, make_dataset(30), small(epochs=2, biases=True)).train().bank
    assert bank.down_bias is not None
    assert bank.up_bias is not None
    assert bank.down_bias.flatten(1).any(dim=1).all()
    assert bank.up_bias.flatten(1).any(dim=1).all()


@pytest.mark.usefixtures("frozen")
def test_the_same_seed_gives_the_same_file_another_seed_another_and_the_model_stays_as_it_is(
    plm: Plm, make_dataset: MakeDataset, small: Small, tmp_path: Path
) -> None:
    files = []
    for number, seed in enumerate((3, 3, 4)):
        file = tmp_path / str(number)
        write_bank_file(MixtureTrainer(plm, with_splits(make_dataset(30), 24), small(seed=seed)).train().bank, file)
        files.append(file.read_bytes())
    assert files[0] == files[1] != files[2]


def test_dropout_makes_another_bank_and_the_same_for_the_same_seed(
    plm: Plm, make_dataset: MakeDataset, small: Small
) -> None:
    dataset, state = with_splits(make_dataset(30), 24), torch.get_rng_state()
    first, again, without = (
        MixtureTrainer(plm, dataset, small(dropout=share)).train().bank.down for share in (0.5, 0.5, 0.0)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, without)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_bank_survives_its_file_and_says_where_it_comes_from_without_texts_and_paths(
    plm: Plm, make_dataset: MakeDataset, small: Small, tmp_path: Path
) -> None:
    settings = small(biases=True, activation="gelu", head="colours")
    trained = MixtureTrainer(plm, with_splits(make_dataset(30), 24), settings).train()
    write_bank_file(trained.bank, tmp_path / "bank")
    bank = open_bank(str(tmp_path / "bank"), plm.facts)
    assert bank.fingerprint == trained.bank.fingerprint
    assert bank.provenance == trained.bank.provenance == read_bank_file(tmp_path / "bank").provenance
    told = json.loads(bank.provenance)
    assert trained.held_out is not None
    assert told["method"] == "mixture"
    assert told["model_type"] == "bert"
    assert told["settings"]["seed"] == 0
    assert told["settings"]["activation"] == "gelu"
    assert told["held_out"]["accuracy"] == trained.held_out.accuracy
    assert told["data"].keys() == {"rows", "rows_sha256"}
    assert told["data"]["rows"] == 24
    assert len(bytes.fromhex(told["data"]["rows_sha256"])) == 32
    _tells_nothing_of(bank.provenance, (plm.name, str(tmp_path), *(row.text for row in make_dataset(30).examples)))


def _tells_nothing_of(provenance: str, secrets: tuple[str, ...]) -> None:
    assert not any(secret in provenance for secret in secrets)
    assert "/" not in provenance


def test_without_held_out_rows_there_is_no_score(plm: Plm, make_dataset: MakeDataset, small: Small) -> None:
    trained = MixtureTrainer(plm, make_dataset(9), small(epochs=1)).train()
    assert trained.held_out is None
    assert json.loads(trained.bank.provenance)["held_out"] is None


def test_a_loss_that_is_no_number_ends_the_training_and_names_the_step(
    plm: Plm, make_dataset: MakeDataset, small: Small
) -> None:
    seen: list[BankProgress] = []
    trainer = MixtureTrainer(plm, make_dataset(30), small(lr_bank=1e38, batch_rows=10, epochs=5))
    with pytest.raises(TuningSettingsInvalid) as refused:
        trainer.train(seen.append)
    end = seen[-1].step + 1 + 3 * (seen[-1].epoch - 1)
    epoch, step = divmod(end - 1, 3)
    assert str(refused.value).startswith(f"lr_bank is 1e+38, and the loss of step {step + 1} in epoch {epoch + 1} is ")
    assert str(refused.value).endswith(": try a lower one (--lr-bank)")


def test_what_cannot_be_learned_is_refused_before_anything_else(
    plm: Plm, make_dataset: MakeDataset, small: Small
) -> None:
    with pytest.raises(DataTooSmall, match="there are no train rows"):
        MixtureTrainer(plm, with_splits(make_dataset(9), 0), small())
    with pytest.raises(DatasetInvalid, match="the rows have completions"):
        MixtureTrainer(plm, Dataset((Example("w1", "w2"),), (), completions=True), small())
