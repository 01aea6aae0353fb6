from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from xpeft_profiles import Profile, read_profile_file, write_profile_file
from xpeft_server.model.banks.bank import Bank, SharedHead
from xpeft_server.model.banks.source import open_bank
from xpeft_server.model.classifier import Classifier, ClassifierInput
from xpeft_server.model.plm import DEFAULT_PLM, Plm, load_plm
from xpeft_server.model.slots import SlotFill
from xpeft_tuning.dataset import Dataset, Example, Split, read_dataset
from xpeft_tuning.errors import DatasetInvalid, DataTooSmall, TuningSettingsInvalid
from xpeft_tuning.evaluation import Score
from xpeft_tuning.linear_head import LinearHead
from xpeft_tuning.mask_tuner import TuningProgress, tune_profile, tune_profiles
from xpeft_tuning.profile_stack import ProfileStack
from xpeft_tuning.settings import Kind, TuningSettings

MakeDataset = Callable[..., Dataset]
FEW: dict[str, Any] = {"epochs": 2, "head_penalty": 1.0}
STILL: dict[str, Any] = {"lr_masks": 0.0, "lr_norm": 0.0, "lr_head": 0.0}


def _accuracy(score: Score | None) -> float:
    assert score is not None
    assert score.accuracy is not None
    return score.accuracy


def _served_logits(plm: Plm, bank: Bank, profile: Profile, texts: list[str]) -> NDArray[np.float32]:
    labels = 0 if profile.labels is None else len(profile.labels)
    classifier = Classifier(plm, bank, slots=1, head_rows=labels)
    own = np.arange(labels)
    classifier.fill([SlotFill(0, profile, own)])
    rows = own if profile.shared_head is None else classifier.buffers.shared_head_rows[profile.shared_head]
    encoded = plm.tokenizer.encode([(text, None) for text in texts])
    return np.stack(classifier.logits([ClassifierInput(text, 0, rows) for text in encoded]))


def _random_texts(count: int, rng: np.random.Generator) -> list[str]:
    return [" ".join(f"w{word}" for word in rng.integers(0, 100, 6)) for _ in range(count)]


def _split(texts: list[str], labels: list[str] | list[float], train: int) -> tuple[Example, ...]:
    """The first rows to learn from, the others to measure on."""
    splits: list[Split] = ["train" if place < train else "test" for place in range(len(texts))]
    return tuple(Example(text, label, None, split) for text, label, split in zip(texts, labels, splits, strict=True))


@pytest.fixture
def planted(plm: Plm, bank: Bank) -> tuple[Bank, Dataset]:
    """A bank with a fixed head, and labels that this head gives under masks that nobody is told."""
    rng = np.random.default_rng(0)
    texts = _random_texts(96, rng)
    weight = torch.from_numpy(20 * rng.normal(size=(1, bank.hidden))).float()
    head = LinearHead(torch.cat([weight, -weight]), torch.zeros(2))
    secret = replace(bank, heads={"fixed": SharedHead(*head, ("x", "y"))})
    settings = TuningSettings(k=2, shared_head="fixed")
    stack = ProfileStack(secret, settings, places=1, classes=2, device=torch.device("cpu"))
    stack.begin(0, seed=77)
    stack.begin_head(0, head, head)
    logits = _served_logits(plm, secret, stack.profile(0, ("x", "y"), 1.0), texts)
    margin = logits[:, 0] - logits[:, 1]
    middle = float(np.median(margin))
    rows = _split(texts, ["x" if each > middle else "y" for each in margin], train=64)
    fixed = SharedHead(head.weight, torch.tensor([-middle / 2, middle / 2]), ("x", "y"))
    return replace(bank, heads={"fixed": fixed}), Dataset(rows, ("x", "y"))


@pytest.mark.parametrize(("kind", "learned"), [("hard", 0.7), ("soft", 0.95)])
def test_masks_alone_learn_what_only_masks_can_learn(
    plm: Plm, planted: tuple[Bank, Dataset], kind: Kind, learned: float
) -> None:
    bank, dataset = planted
    k = 2 if kind == "hard" else None
    start = TuningSettings(kind=kind, k=k, shared_head="fixed", epochs=1, lr_masks=0, lr_norm=0)
    before = tune_profile(plm, bank, dataset, start)
    after = tune_profile(plm, bank, dataset, replace(start, epochs=40, lr_masks=0.1))
    assert before.held_out is not None
    assert after.held_out is not None
    assert _accuracy(before.train) < 0.6
    assert _accuracy(after.train) > learned
    assert _accuracy(after.held_out) > _accuracy(before.held_out) + 0.15
    assert after.profile.head_weight is None
    assert np.all(np.asarray(after.profile.ln_weight) == 1)


def test_a_task_is_learned_from_sixty_rows(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    seen: list[TuningProgress] = []
    tuned = tune_profile(plm, bank, make_dataset(75), TuningSettings(epochs=6), seen.append)
    assert tuned.held_out is not None
    assert (tuned.train.rows, tuned.held_out.rows) == (60, 15)
    assert tuned.majority == pytest.approx(1 / 3)
    assert _accuracy(tuned.held_out) > 0.9
    assert tuned.profile.labels == ("red", "green", "blue")
    assert (tuned.epoch, tuned.cut) == (6, 0)
    assert [(each.epoch, each.step) for each in seen] == [(e, s) for e in range(1, 7) for s in range(1, 5)]
    assert seen[-1].loss < seen[3].loss  # of whole epochs, the last and the first
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


def test_over_a_model_in_bfloat16_a_task_is_learned_too(tiny_bert: Path, bank: Bank, make_dataset: MakeDataset) -> None:
    plm = load_plm(str(tiny_bert), dtype=torch.bfloat16)
    tuned = tune_profile(plm, bank, make_dataset(75), TuningSettings(epochs=3))
    assert _accuracy(tuned.held_out) > 0.9


def test_a_bank_without_a_layer_norm_needs_no_affine(plm: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    tuned = tune_profile(plm, replace(bank, layer_norm=False), make_dataset(30), TuningSettings(epochs=2))
    assert tuned.profile.ln_weight is None
    assert _accuracy(tuned.train) > 0.9


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


def test_balanced_weights_find_more_of_a_rare_label(plm: Plm, bank: Bank) -> None:
    """Nine rows of one label to one of the other, and most words are both's."""
    rng = np.random.default_rng(0)
    rows = []
    for place in range(200):
        words = 8 * (place % 10 == 0) + rng.integers(0, 24, 6)
        rows.append(Example(" ".join(f"w{word}" for word in words), "rare" if place % 10 == 0 else "often"))
    dataset = Dataset(tuple(rows), ("often", "rare"))
    rare = [row.text for row in rows if row.label == "rare"]
    recall = {}
    for weights in (None, "balanced"):
        settings = TuningSettings(
            epochs=4,
            batch_rows=40,
            held_out=0.0,
            head_penalty=1.0,
            class_weights=weights,  # type: ignore[arg-type]
        )
        tuned = tune_profile(plm, bank, dataset, settings)
        recall[weights] = (_served_logits(plm, bank, tuned.profile, rare).argmax(1) == 1).mean()
    assert recall[None] < 0.4
    assert recall["balanced"] > recall[None] + 0.3


def test_noise_is_decided_by_the_seed_and_changes_what_is_learned(
    plm: Plm, bank: Bank, make_dataset: MakeDataset
) -> None:
    kinds = [{}, {"gumbel": 1.0}, {"gumbel": 1.0}, {"gumbel": 1.0, "seed": 1}]
    plain, noisy, again, other = (
        tune_profile(plm, bank, make_dataset(20), TuningSettings(**FEW, **kind)).profile.version for kind in kinds
    )
    assert noisy == again
    assert len({plain, noisy, other}) == 3


def test_completions_are_learned(decoder: Plm) -> None:
    """What follows is decided by the prompt's first word, which the bare model knows nothing of."""
    bank = open_bank("random:N=8,R=8,seed=1,std=0.5", decoder.facts)
    rows = [Example(f"w{place % 4} w{50 + place % 7}", f"w{10 + place % 4}") for place in range(40)]
    dataset = Dataset(tuple(rows), (), completions=True)
    seen: list[TuningProgress] = []
    start = tune_profile(decoder, bank, dataset, TuningSettings(epochs=1, **STILL))
    tuned = tune_profile(decoder, bank, dataset, TuningSettings(epochs=8), seen.append)
    assert start.held_out is not None
    assert tuned.held_out is not None
    assert tuned.bare is not None
    assert (tuned.train.rows, tuned.held_out.rows, tuned.bare.rows) == (32, 8, 8)
    assert tuned.held_out.loss < start.held_out.loss - 0.5
    assert tuned.held_out.loss < tuned.bare.loss - 0.5
    assert seen[-1].loss < seen[1].loss - 0.5  # of whole epochs, the last and the first
    assert (tuned.profile.labels, tuned.profile.shared_head, tuned.profile.head_weight) == (None, None, None)
    assert (tuned.train.accuracy, tuned.majority, tuned.head_alone) == (None, None, None)


def test_what_completions_cannot_have_is_refused(plm: Plm, decoder: Plm, bank: Bank, make_dataset: MakeDataset) -> None:
    completions = Dataset((Example("w1", "w2"),), (), completions=True)
    with pytest.raises(DatasetInvalid, match=r"the rows have completions, and .* has no language-model head"):
        tune_profile(plm, bank, completions, TuningSettings())
    own = open_bank("random:N=8,R=8,seed=1,std=0.3", decoder.facts)
    with pytest.raises(TuningSettingsInvalid, match="stop_on is 'accuracy', but the task is to complete"):
        tune_profile(decoder, own, completions, TuningSettings(stop_on="accuracy"))
    shared = replace(own, heads={"x": SharedHead(torch.zeros(2, own.hidden), torch.zeros(2), ("a", "b"))})
    with pytest.raises(TuningSettingsInvalid, match="shared_head is 'x', but the rows have completions"):
        tune_profile(decoder, shared, completions, TuningSettings(shared_head="x"))


def test_what_the_bank_cannot_do_is_refused_before_anything_starts(plm: Plm, bank: Bank) -> None:
    with pytest.raises(TuningSettingsInvalid, match="k is 9"):
        next(tune_profiles(plm, bank, [], TuningSettings(k=9), places=1, classes=2))


def test_the_bank_desk_reaches_nine_in_ten_with_minilm(project_root: Path) -> None:
    plm = load_plm(DEFAULT_PLM)
    bank = open_bank("random:N=20,R=48,seed=0,std=0.1", plm.facts)
    dataset = read_dataset(project_root / "examples" / "bank.jsonl")
    tuned = tune_profile(plm, bank, dataset, TuningSettings(epochs=3))
    assert _accuracy(tuned.held_out) >= 0.9
