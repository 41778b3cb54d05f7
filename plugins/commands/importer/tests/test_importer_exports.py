"""What a tool writes when training has ended becomes `export`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool
from finetooth_importer.script import of_script

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]


def test_what_a_script_saves_is_exported_unless_it_is_idle(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "model, tokenizer = FastLanguageModel.from_pretrained('org/m')\n"
        "model.save_pretrained_gguf('out', tokenizer, quantization_method=['q4_k_m', 'q8_0'])\n"
        "model.save_pretrained_merged('out', tokenizer)\n"
        "if False:\n    model.save_pretrained_gguf('out', tokenizer, quantization_method='f16')\n",
        encoding="utf-8",
    )
    account = read_tool(dict(of_script(script.read_text(encoding="utf-8"), script)), "unsloth", script)
    assert account.recipe["export"] == [
        {"name": "gguf", "stored": "q4_k_m"},
        {"name": "gguf", "stored": "q8_0"},
        "safetensors",
    ]


@pytest.mark.parametrize(
    ("tool", "given", "export"),
    [
        ("mud-puppy", {"mud_puppy": True, "model": "m", "merge_lora": True, "merge_precision": "fp16"},
         [{"name": "safetensors", "precision": "fp16"}]),
        ("mud-puppy", {"mud_puppy": True, "model": "m", "merge_precision": "fp16"}, None),
        ("llamafactory", {"model_name_or_path": "m", "stage": "sft", "export_dir": "out"}, ["safetensors"]),
        ("llamafactory", {"model_name_or_path": "m", "stage": "sft", "export_dir": "o", "export_quantization_bit": 4},
         None),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_model": True, "save_path": "out"}, ["safetensors"]),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_method": "lora"}, None),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_method": "merged_4bit"}, None),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_model": True, "save_gguf": True,
                     "quantization": ["q4_k_m", "q8_0"]},
         [{"name": "gguf", "stored": "q4_k_m"}, {"name": "gguf", "stored": "q8_0"}]),
        ("unsloth", {"unsloth": True, "model_name": "m", "quantization_method": "fast_quantized"},
         [{"name": "gguf", "stored": "q8_0"}]),
        ("unsloth", {"unsloth": True, "model_name": "m", "quantization_method": "iq2_xxs"}, None),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_gguf": True, "save_model": False}, None),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_written_at_the_end_is_exported(
    tool: str, given: dict[str, Any], export: Any, tmp_path: Path, outcomes: Outcomes
) -> None:
    account = read_tool(given, tool, tmp_path / "run.yaml")
    assert account.recipe.get("export") == export
    found = outcomes(account)
    for key in given.keys() & {"save_model", "save_method", "export_dir", "merge_lora", "quantization_method"}:
        assert found[key][1] == ("export" if export else ""), key
    lost = {key for key, (outcome, _) in found.items() if outcome == "not taken"}
    hopeless = {"merged_4bit": "save_method", "iq2_xxs": "quantization_method"}
    wanted = {hopeless[str(one)] for one in given.values() if str(one) in hopeless}
    assert lost == (wanted or lost & {"export_dir", "export_quantization_bit"})
