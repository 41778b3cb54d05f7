"""Which modules carry an adapter: those that peft itself picks by the tool's own settings."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_importer.command import read_tool

LINEAR = [
    f"model.layers.{layer}.{part}_proj"
    for layer in range(12)
    for part in (*(f"self_attn.{one}" for one in "qkvo"), *(f"mlp.{one}" for one in ("gate", "up", "down")))
]
PATHS = [*LINEAR, "lm_head", "model.layers.3.mlp.experts.1.up_proj"]
BASES: dict[str, dict[str, Any]] = {
    "axolotl": {"base_model": "m", "datasets": [{"path": "a.jsonl"}], "adapter": "lora", "lora_r": 8},
    "trl": {"trainer": "sft", "model": "m", "dataset_name": "a.jsonl", "r": 8},
}
NAMES = {
    "axolotl": ("lora_target_modules", "peft_layers_to_transform", "peft_layers_pattern"),
    "trl": ("target_modules", "layers_to_transform", "layers_pattern"),
}


@pytest.mark.parametrize("tool", BASES)
@pytest.mark.parametrize(
    ("modules", "layers", "before"),
    [
        (r"model.layers.(0|1).self_attn.(q|v)_proj", None, None),
        (r".*\.(?:up|down)_proj", None, None),
        (["q_proj", "mlp.down_proj"], None, None),
        (["q_proj", "up_proj"], [1, 10], None),
        (["q_proj", "up_proj"], [1, 3], "layers"),
        (["up_proj"], 3, ["h", "layers"]),
        ("all-linear", [0, 11], "layers"),
    ],
)
def test_a_pattern_keeps_its_layers(tool: str, modules: Any, layers: Any, before: Any) -> None:
    peft = pytest.importorskip("peft")
    from finetooth_modelfiles.targets import matching
    from peft.tuners.tuners_utils import check_target_module_exists

    keys = NAMES[tool]
    given = {**BASES[tool], **dict(zip(keys, (modules, layers, before), strict=True))}
    account = read_tool(given, tool)
    made = account.recipe["adapter"]["targets"]
    named = [path.rpartition(".")[2] for path in LINEAR] if modules == "all-linear" else modules
    config = peft.LoraConfig(target_modules=named, layers_to_transform=layers, layers_pattern=before)
    expected = [path for path in PATHS if check_target_module_exists(config, path)]
    found = PATHS if made == "all-linear" else [path for name in made for path in matching(name, PATHS)]
    assert sorted(set(found)) == sorted(set(expected)) and expected
    assert not [line for line in account if line.key in keys and line.outcome == "not taken"]


def test_parts_of_a_layer_of_unsloths_vision_models() -> None:
    given = {"unsloth": True, "model_name": "m", "dataset_name": "a.jsonl", "r": 8}
    assert read_tool({**given, "finetune_mlp_modules": False}, "unsloth").recipe["adapter"]["targets"] == "attention"
    made = read_tool({**given, "finetune_attention_modules": False}, "unsloth").recipe["adapter"]["targets"]
    assert made == ["gate_proj", "up_proj", "down_proj"]
