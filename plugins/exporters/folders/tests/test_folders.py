"""What is refused before anything is written; what is written is held to transformers and peft in `tests/runs`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_folders import vllm_lora, whole
from finetooth_hooks import UserError
from safetensors.torch import save_file

CONTEXT: Any = None
PLAIN = {"peft_type": "LORA", "r": 12, "bias": "none", "base_model_name_or_path": "org/base"}
NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def adapter(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **config: Any) -> Any:
    (folder / "adapter_config.json").write_text(json.dumps({**PLAIN, **config}), encoding="utf-8")
    made = tensors or {NAME.format(side): torch.ones(2, 2) for side in "AB"}
    save_file(made, folder / "adapter_model.safetensors")
    return SimpleNamespace(run=Path("runs/mine"), artifact=folder, adapter=True)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"use_dora": True}, "no adapter with DoRA"),
        ({"bias": "all"}, "trained biases"),
        ({"r": 1024}, "ranks up to 512, this is 1024"),
        ({"peft_type": "OFT"}, "LoRA only, this is OFT"),
        ({"modules_to_save": ["lm_head"]}, "modules that are saved whole"),
    ],
)
def test_vllm_is_not_given_what_it_refuses(tmp_path: Path, config: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        vllm_lora.VllmLoraExporter().check(adapter(tmp_path, **config))


def test_the_rank_is_one_that_vllm_takes(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    exporter, source = vllm_lora.VllmLoraExporter(), adapter(tmp_path / "in")
    exporter.check(source)
    told = exporter.export(source, tmp_path / "out")
    assert told.use == "vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules mine={folder}"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    for tensor, problem in (
        ("lm_head.weight", "not a low-rank addition"), ("model.embed_tokens.lora_embedding_A", "no addition to embed"),
    ):  # fmt: skip
        odd = adapter(tmp_path / "in", {f"base_model.model.{tensor}": torch.ones(2, 2)})
        with pytest.raises(UserError, match=problem):
            exporter.export(odd, tmp_path / "out")


def test_numbers_that_are_not_finite_are_not_exported(tmp_path: Path) -> None:
    def weights(precision: str, *, folder: Path) -> Path:
        save_file({"lm_head.weight": torch.full((2, 2), 1e6).to(torch.float16)}, folder / "model.safetensors")
        return folder

    source: Any = SimpleNamespace(weights=weights)
    with pytest.raises(UserError, match="weight has numbers that are not finite in fp16"):
        whole.build_safetensors(whole.WholeOptions(precision="fp16")).export(source, tmp_path)
