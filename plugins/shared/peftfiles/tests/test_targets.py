"""Names of targets mean the modules that peft would wrap for them."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks.errors import RecipeError
from finetooth_modelfiles.targets import matching, resolve
from finetooth_peftfiles.layers import chosen, is_linear
from torch import nn

PATHS = [f"model.layers.{n}.{block}" for n in range(3) for block in ("attn.q_proj", "attn.v_proj", "mlp.up_proj")]
FACTS: Any = SimpleNamespace(
    linear_targets=("q_proj", "v_proj", "up_proj"), attention_targets=("q_proj", "v_proj"), layer_path="model.layers",
    towers=(),
)  # fmt: skip


@pytest.mark.parametrize("target", ["q_proj", "attn.q_proj", r"model\.layers\.[01]\.attn\.(q|v)_proj", "up_proj"])
def test_a_target_matches_what_peft_matches(target: str) -> None:
    """peft takes a list of names by the end of a path and a string as a pattern for the whole path."""
    by_end = [path for path in PATHS if path == target or path.endswith(f".{target}")]
    assert matching(target, PATHS) == (by_end or [path for path in PATHS if re.fullmatch(target, path)])


def test_attention_leaves_the_mlp_out() -> None:
    assert resolve("attention", FACTS, PATHS).modules == tuple(path for path in PATHS if ".attn." in path)


def test_a_name_of_what_cannot_carry_one_is_not_spelled() -> None:
    """Experts that are stored as one weight may have the name of linear modules, and peft takes any module by name."""
    others = ["model.layers.2.mlp.experts.up_proj", "model.layers.2.mlp.experts"]
    targets = resolve("all-linear", FACTS, PATHS, others)
    assert targets.modules == tuple(PATHS) and isinstance(targets.spelling, str)
    assert [path for path in [*PATHS, *others] if re.fullmatch(targets.spelling, path)] == PATHS
    assert resolve("attention", FACTS, PATHS, others).spelling == ("q_proj", "v_proj")


def test_a_misspelt_target_names_the_nearest_module() -> None:
    with pytest.raises(RecipeError, match="q_proj"):
        resolve(["q_porj"], FACTS, PATHS)


def test_a_module_that_the_model_never_calls_is_refused() -> None:
    """A kernel of Mamba takes the weight of `out_proj`, and that of Qwen3.5 the convolution's: an adapter on the module
    would train without any effect."""

    class Mamba(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log = self.D = nn.Parameter(torch.ones(2))
            self.in_proj, self.out_proj = nn.Linear(2, 2), nn.Linear(2, 2)

    assert chosen(["in_proj"], nn.Sequential(Mamba()), FACTS, is_linear).modules == ("0.in_proj",)
    with pytest.raises(RecipeError, match=r"adapter\.targets: .* weight of 0\.out_proj, .* no effect \(set"):
        chosen(["in_proj", "out_proj"], nn.Sequential(Mamba()), FACTS, is_linear)
    layer = Mamba()
    layer.conv1d = nn.Conv1d(2, 2, 2)
    del layer.D, layer.out_proj
    with pytest.raises(RecipeError, match=r"weight of 0\.conv1d, .* no effect"):
        chosen(["conv1d"], nn.Sequential(layer), FACTS, lambda module: isinstance(module, nn.Conv1d))
    for name in ("conv1d", "conv"):
        with pytest.raises(RecipeError, match=rf"'{name}' matches no linear module .* do not call the module"):
            resolve([name], FACTS, PATHS)
