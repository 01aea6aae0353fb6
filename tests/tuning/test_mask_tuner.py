from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xpeft_profiles import read_profile_file, write_profile_file
from xpeft_server.model.bank import Bank, SharedHead
from xpeft_server.model.bank_source import open_bank
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.plm import DEFAULT_PLM, Plm, load_plm
from xpeft_server.model.slots import SlotFill, adapter_form
from xpeft_tuning.dataset import Dataset, Example, Split, read_dataset
from xpeft_tuning.draft import ProfileDraft
from xpeft_tuning.errors import DatasetInvalid, DataTooSmall
from xpeft_tuning.mask_tuner import TuningProgress, tune_profile
from xpeft_tuning.settings import Kind, TuningSettings

MakeDataset = Callable[..., Dataset]


def _served_logits(plm: Plm, bank: Bank, draft: ProfileDraft, texts: list[str]) -> NDArray[np.float32]:
    classifier = Classifier(plm, bank, slots=1, head_rows=1)
    profile = draft.profile()
    own = np.arange(0 if profile.labels is None else 1)
    classifier.fill([SlotFill(0, profile, own)])
    rows = own if profile.shared_head is None else classifier.buffers.shared_head_rows[profile.shared_head]
    encoded = plm.tokenizer.encode([(text, None) for text in texts])
    return np.stack(classifier.logits([ClassifierInput(text, 0, rows) for text in encoded]))


@pytest.fixture
def planted(plm: Plm, bank: Bank) -> tuple[Bank, Dataset]:
    """A bank with a fixed head, and labels that this head gives under masks that nobody is told."""
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in rng.integers(0, 100, 6)) for _ in range(96)]
    weight = torch.from_numpy(20 * rng.normal(size=(1, bank.hidden))).float()
    secret = replace(bank, heads={"fixed": SharedHead(torch.cat([weight, -weight]), torch.zeros(2), ("x", "y"))})
    settings = TuningSettings(k=2, seed=77, shared_head="fixed")
    draft = ProfileDraft(
        secret, adapter_form(secret), settings, labels=("x", "y"), head=None, device=torch.device("cpu")
    )
    logits = _served_logits(plm, secret, draft, texts)
    margin = logits[:, 0] - logits[:, 1]
    middle = float(np.median(margin))
    labels = ["x" if each > middle else "y" for each in margin]
    splits: list[Split] = ["train" if place < 64 else "test" for place in range(96)]
    rows = [Example(text, label, None, split) for text, label, split in zip(texts, labels, splits, strict=True)]
    head = SharedHead(torch.cat([weight, -weight]), torch.tensor([-middle / 2, middle / 2]), ("x", "y"))
    return replace(bank, heads={"fixed": head}), Dataset(tuple(rows), ("x", "y"))


@pytest.mark.parametrize(("kind", "learned"), [("hard", 0.7), ("soft", 0.95)])
def test_masks_alone_learn_what_only_masks_can_learn(
    plm: Plm, planted: tuple[Bank, Dataset], kind: Kind, learned: float
) -> None:
    bank, dataset = planted
    start = TuningSettings(kind=kind, k=2, shared_head="fixed", epochs=1, lr_masks=0, lr_norm=0)
    before = tune_profile(plm, bank, dataset, start)
    after = tune_profile(plm, bank, dataset, replace(start, epochs=40, lr_masks=0.1))
    assert before.held_out is not None
    assert after.held_out is not None
    assert before.train.accuracy < 0.6
    assert after.train.accuracy > learned
    assert after.held_out.accuracy > before.held_out.accuracy + 0.15
    assert after.profile.head_weight is None
    assert np.all(np.asarray(after.profile.ln_weight) == 1)


def test_a_task_is_learned_from_sixty_rows(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    seen: list[TuningProgress] = []
    tuned = tune_profile(plm, bank, make_dataset(75), TuningSettings(epochs=6), seen.append)
    assert tuned.held_out is not None
    assert (tuned.train.rows, tuned.held_out.rows) == (60, 15)
    assert tuned.held_out.accuracy > 0.9 > tuned.majority == pytest.approx(1 / 3)
    assert tuned.profile.labels == ("red", "green", "blue")
    assert (tuned.epoch, tuned.cut) == (6, 0)
    assert [(each.epoch, each.step) for each in seen] == [(e, s) for e in range(1, 7) for s in range(1, 5)]
    assert seen[-1].loss < seen[0].loss
    assert seen[-1].score is not None


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    settings = [TuningSettings(epochs=2, seed=seed) for seed in (5, 5, 6)]
    first, again, other = (tune_profile(plm, bank, make_dataset(40), each) for each in settings)
    assert write_profile_file(first.profile) == write_profile_file(again.profile)
    assert first[1:] == again[1:]
    assert first.profile.version != other.profile.version


def test_the_tuned_profile_survives_its_file_and_fits_its_bank(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    tuned = tune_profile(plm, bank, make_dataset(12), TuningSettings(epochs=1, description="three colours"))
    read = read_profile_file(write_profile_file(tuned.profile))
    read.check_fits(bank.geometry)
    assert read.version == tuned.profile.version
    assert (read.description, read.k) == ("three colours", 4)


def test_steps_in_parts_learn_what_whole_steps_learn(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    whole, parts = (
        tune_profile(plm, bank, make_dataset(12), TuningSettings(kind="soft", epochs=2, batch_tokens=tokens))
        for tokens in (4096, 20)
    )
    assert whole.train.loss == pytest.approx(parts.train.loss, rel=1e-3)


def test_a_bank_without_a_layer_norm_needs_no_affine(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    tuned = tune_profile(plm, replace(bank, layer_norm=False), make_dataset(30), TuningSettings(epochs=2))
    assert tuned.profile.ln_weight is None
    assert tuned.train.accuracy > 0.9


def test_the_best_epoch_is_chosen_on_rows_that_nothing_is_learned_from(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    settings = TuningSettings(epochs=30, lr_head=0.5, lr_masks=5, lr_norm=0.5, stop_on="loss", patience=2)
    tuned = tune_profile(plm, bank, make_dataset(60), settings)
    assert tuned.train.rows == 60 - 12 - 9
    assert tuned.epoch < 28


def test_two_rows_are_tuned_on_and_none_held_out(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    tuned = tune_profile(plm, bank, make_dataset(2, ("a", "b")), TuningSettings(epochs=3))
    assert (tuned.train.accuracy, tuned.train.rows, tuned.held_out) == (1.0, 2, None)


def test_texts_beyond_the_models_length_are_cut_and_counted(plm: Plm, bank: Bank) -> None:
    rows = (Example("w1 " * 100, "a"), Example("w2 " * 100, "b"), Example("w3", "b"))
    assert tune_profile(plm, bank, Dataset(rows, ("a", "b")), TuningSettings(epochs=1)).cut == 2


def test_one_label_is_refused_by_name(plm: Plm, bank: Bank) -> None:
    rows = (Example("w1", "only"), Example("w2", "only"))
    with pytest.raises(DataTooSmall, match=r"the train rows have 1 label \('only'\): tuning needs two at least"):
        tune_profile(plm, bank, Dataset(rows, ("only",)), TuningSettings())


def test_a_label_that_no_train_row_has_is_refused_by_name(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    dataset = replace(make_dataset(9), labels=("red", "green", "blue", "white"))
    with pytest.raises(DataTooSmall, match="label 'white' has no train row"):
        tune_profile(plm, bank, dataset, TuningSettings())


def test_too_few_rows_to_choose_an_epoch_by_are_refused(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    with pytest.raises(DataTooSmall, match="stop_on is 'loss', but no label has rows enough"):
        tune_profile(plm, bank, make_dataset(3), TuningSettings(stop_on="loss"))


def test_a_label_that_a_shared_head_lacks_is_refused_by_name(
    plm: Plm, planted: tuple[Bank, Dataset], make_dataset: MakeDataset
) -> None:
    with pytest.raises(DatasetInvalid, match="label 'red' is not one of shared head 'fixed'"):
        tune_profile(plm, planted[0], make_dataset(9), TuningSettings(shared_head="fixed"))


def test_the_bank_desk_reaches_nine_in_ten_with_minilm(project_root: Path) -> None:
    plm = load_plm(DEFAULT_PLM)
    bank = open_bank("random:N=20,R=48,seed=0,std=0.1", plm.facts)
    dataset = read_dataset(project_root / "examples" / "bank.jsonl")
    tuned = tune_profile(plm, bank, dataset, TuningSettings(epochs=3))
    assert tuned.held_out is not None
    assert tuned.held_out.accuracy >= 0.9
