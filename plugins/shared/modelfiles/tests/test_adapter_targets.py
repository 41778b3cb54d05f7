"""Names and patterns of modules."""

from __future__ import annotations

import pytest
from finetooth_hooks import RecipeError
from finetooth_modelfiles.targets import matching

PATHS = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]


def test_a_name_ends_a_path_and_a_pattern_is_a_whole_one() -> None:
    assert matching("q_proj", PATHS) == PATHS
    assert matching(r"model\.layers\.(0|7)\..*", PATHS) == PATHS[:1]
    assert matching("layers", PATHS) == []


def test_a_name_of_a_wrapper_means_the_linear_module_in_it() -> None:
    """Gemma4ClippableLinear: only if nothing else has the name."""
    tower = ["model.vision_tower.layers.0.k_proj.linear", "model.vision_tower.layers.0.q_proj.linear"]
    assert matching("k_proj", [*PATHS, *tower]) == tower[:1]
    assert matching("q_proj", [*PATHS, *tower]) == PATHS
    assert matching(r"model\.vision_tower\..*[kq]_proj", [*PATHS, *tower]) == tower
    assert matching(r".*q_proj", [*PATHS, *tower]) == [*PATHS, tower[1]]


def test_a_pattern_that_does_not_compile_is_said_to_be_none() -> None:
    with pytest.raises(RecipeError, match=r"nor a regular expression: missing \), unterminated subpattern"):
        matching("model.layers.(0|1", PATHS)
