"""What is typed into a form of settings is what a recipe would say."""

from __future__ import annotations

import pytest
from finetooth_board.settings import recipe_of
from finetooth_core.settings.recipe import load
from finetooth_recipes.yaml_text import read_yaml


@pytest.mark.parametrize("typed", ["2e-4", "0.1", "7", "true", "no", "on", "2024-01-02", "[q_proj, 'v']", "{a: 1}"])
def test_a_value_is_read_as_in_a_recipe(typed: str) -> None:
    made = read_yaml(recipe_of({"train.seed": typed}, {}), "form").value
    assert made["train"]["seed"] == read_yaml(typed, "value").value


def test_a_rate_is_a_number() -> None:
    text = recipe_of({"model": "m", "data": "a.jsonl", "optimizer.learning_rate": "2e-4"}, {"optimizer": "adamw"})
    assert load(read_yaml(text, "form").value).as_dict()["optimizer"]["learning_rate"] == 2e-4
