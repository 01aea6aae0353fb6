from __future__ import annotations

from dataclasses import replace

from xpeft_tuning.dataset import Dataset, Example
from xpeft_tuning.recipe import Recipe
from xpeft_tuning.settings import TuningSettings

RECIPE = Recipe("sha256:1", "sha256:2", "float32", TuningSettings())
ROWS = (Example("a", "good"), Example("b", "bad"))
DATASET = Dataset(ROWS, ("good", "bad"))


def test_the_same_rows_under_the_same_recipe_have_the_same_digest() -> None:
    same = Recipe("sha256:1", "sha256:2", "float32", TuningSettings())
    assert same.digest(Dataset(tuple(ROWS), ("good", "bad"), ignored=("'user'",))) == RECIPE.digest(DATASET)
    assert RECIPE.digest(DATASET).startswith("sha256:")


def test_whatever_changes_a_profile_changes_its_digest() -> None:
    recipes = [
        RECIPE,
        replace(RECIPE, plm="sha256:3"),
        replace(RECIPE, bank="sha256:3"),
        replace(RECIPE, dtype="bfloat16"),
        replace(RECIPE, settings=TuningSettings(seed=1)),
        replace(RECIPE, settings=TuningSettings(shared_head="x", own_head=True)),
    ]
    datasets = [
        Dataset(ROWS, ("bad", "good")),
        Dataset(ROWS[::-1], ("good", "bad")),
        Dataset(ROWS[:1], ("good", "bad")),
        Dataset((Example("a", "good", text_pair="c"), ROWS[1]), ("good", "bad")),
        Dataset((Example("a", "good", split="train"), ROWS[1]), ("good", "bad")),
        Dataset((Example("a", 1.0), Example("b", 2.0)), ("value",)),
    ]
    digests = [recipe.digest(DATASET) for recipe in recipes] + [RECIPE.digest(each) for each in datasets]
    assert len(set(digests)) == len(recipes) + len(datasets)
