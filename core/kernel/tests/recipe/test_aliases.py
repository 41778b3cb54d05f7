"""Names that other tools give to our settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetooth_core.settings.recipe import Recipe, load
from finetooth_hooks import RecipeError
from finetooth_importer.their_names import SETTINGS
from finetooth_recipes.aliases import ALIASES


def test_every_alias_is_a_setting_and_no_name_of_ours() -> None:
    for path in ALIASES.values():
        section = Recipe.model_fields[path[0]].annotation
        assert len(path) == 1 or path[1] in getattr(section, "model_fields", ())
    assert not (set(ALIASES) | set(SETTINGS)) & set(Recipe.model_fields) and not set(ALIASES) & set(SETTINGS)


def test_a_recipe_of_theirs_is_read_as_ours() -> None:
    theirs = {
        "base_model": "tiny", "sequence_len": 64, "excess_length_strategy": "truncate", "num_epochs": 3,
        "output_dir": "runs/x", "val_set_size": 0.05, "dataset_num_proc": 2, "eval_steps": 10, "save_steps": 20,
        "lr_scheduler": "linear", "data": {"train": "a.jsonl"}, "train": {"seed": 1},
    }  # fmt: skip
    ours: dict[str, Any] = {
        "model": "tiny", "output": "runs/x", "schedule": "linear", "evaluate": {"every": 10},
        "checkpoint": {"every": 20}, "data": {"train": "a.jsonl", "eval": {"fraction": 0.05}, "workers": 2},
        "train": {"seed": 1, "max_length": 64, "excess_length": "truncate", "epochs": 3},
    }  # fmt: skip
    found = load(theirs)
    assert found.as_dict() == ours and found.model_dump() == load(ours).model_dump()
    assert "sequence_len was read as train.max_length" in found.notes
    assert len(found.notes) == len(theirs) - 2 and load(ours).notes == ()


def test_options_of_a_strategy_may_have_the_names_of_a_flat_recipe() -> None:
    found = load(
        {"model": "tiny", "scale": {"strategy": {"name": "diloco"}}, "diloco_inner_steps": 50}, ["diloco_outer_lr=1"]
    )
    assert found.scale.strategy == {"name": "diloco", "inner_steps": 50, "outer_lr": 1}


def test_an_override_may_have_their_name() -> None:
    assert load({"model": "tiny"}, ["sequence_len=64"]).train.max_length == 64


@pytest.mark.parametrize("given", [{"train": {"epochs": 1, "seed": 4}}, {"num_epochs": 1, "train": {"seed": 4}}])
@pytest.mark.parametrize("name", ["train.epochs", "num_epochs", "num_train_epochs"])
def test_an_override_replaces_the_setting_under_whatever_name_the_recipe_has_it(
    given: dict[str, Any], name: str
) -> None:
    found = load({"model": "tiny", **given}, [f"{name}=3"])
    assert (found.train.epochs, found.train.seed) == (3, 4)
    assert load({"base_model": "tiny"}, ["model=other"]).as_dict() == {"model": "other"}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"sequence_len": 8, "train": {"max_length": 9}},
            "sequence_len: train.max_length is given too (keep train.max_l",
        ),
        (
            {"num_epochs": 1, "num_train_epochs": 1},
            "num_train_epochs: num_epochs is given too, and both are train.epochs",
        ),
        ({"base_model": "x"}, "base_model: model is given too (keep model)"),
        (
            {"val_set_size": 0.1, "data": {"eval": "a.jsonl"}},
            "val_set_size: the recipe also sets data.eval, and not to a mapping",
        ),
        (
            {"val_set_size": 0.1, "data": {"eval": {"name": "x"}}},
            "val_set_size: data.eval is given too (keep one of them)",
        ),
        ({"val_set_size": 500}, "val_set_size: a number of rows cannot be held out, only a fraction of them, got the"),
        (
            {"sequence_len": "64"},
            "train.max_length: expected a whole number, got the text '64', written as sequence_len",
        ),
        (
            {"excess_length_strategy": "cut"},
            "train.excess_length: expected one of drop, truncate, truncate_answers, truncate_turns, split, raise, got",
        ),
        (
            {"micro_batch_size": 2},
            "micro_batch_size: unknown setting (train.batch_size is all rows of an optimizer step",
        ),
        ({"rl": "dpo"}, "rl: unknown setting (set method)"),
        ({"sequence_length": 2}, "sequence_length: unknown setting (did you mean train.max_length?)"),
        ({"wobble": 2}, "wobble: unknown setting (known: "),
    ],
)
def test_what_is_not_clear_is_refused(given: dict[str, Any], line: str) -> None:
    with pytest.raises(RecipeError) as told:
        load({"model": "tiny", **given})
    assert str(told.value).startswith(line)


def test_no_held_out_rows_are_none() -> None:
    assert load({"model": "tiny", "val_set_size": 0}).data.eval is None


def test_a_mistake_is_where_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("base_model: tiny\nsequence_len: 1\ntest_datasets: []\n")
    with pytest.raises(RecipeError) as told:
        load(path)
    lines = str(told.value).splitlines()
    assert lines[0].startswith(f"train.max_length: must be at least 2, got 1, written as sequence_len, at {path}:2")
    assert lines[1] == f"test_datasets: unknown setting, at {path}:3 (list the files under data.eval)"
