"""Merging tensor by tensor: the same weights as by peft's own merge, in the memory of two shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import QuantizerBase, UserError
from finetooth_hooks.protocols import Stored
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.shards import sharded
from finetooth_toolbox.peft.folding import merged
from finetooth_toolbox.torch.quantised import DequantisingLinear, dequantise, quantise
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM


class RowsLinear(DequantisingLinear):
    """8 bits by row, rounded to the nearest."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, module: torch.nn.Linear) -> None:
        super().__init__(module.in_features, module.out_features, module.bias)
        weight = module.weight.detach().float()
        self.register_buffer("scales", weight.abs().amax(1, keepdim=True) / 127)
        self.register_buffer("codes", (weight / self.scales).round().to(torch.int8))

    def dequantised(self, dtype: torch.dtype) -> torch.Tensor:
        return (self.codes.float() * self.scales).to(dtype)


class Rows(QuantizerBase):
    stored = Stored("rows", 1.0)

    def takes(self, path: str, shape: tuple[int, int]) -> bool:
        return not path.endswith("down_proj")

    def linear(self, module: Any, *, device: str) -> Any:
        return RowsLinear(module).to(device)


@pytest.fixture
def case(tiny: Any, tmp_path: Path) -> Any:
    """Makes (info of a base in several files, folder of an adapter over it)."""

    def make(tied: bool = False, **options: Any) -> tuple[Any, Path]:
        made = tiny(tied=tied)
        base = tmp_path / "base"
        made.model.save_pretrained(base, max_shard_size="20KB")
        model = LoraAdapter(LoraOptions(rank=4, **options)).apply(made.model, made.facts, np.random.default_rng(0))
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.05 * torch.randn(parameter.shape, generator=generator)
        LoraAdapter(LoraOptions(rank=4, **options)).export(model, tmp_path / "adapter", made.info)
        files = tuple(sorted(base.glob("*.safetensors")))
        assert len(files) > 3
        return SimpleNamespace(files=files, stored=None, published=str(base)), tmp_path / "adapter"

    return make


def written(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.mark.parametrize(
    "options",
    [{}, {"dora": True}, {"rslora": True, "tied": True}, {"quantizer": Rows()}],
    ids=lambda given: "-".join(given),
)
def test_the_weights_are_those_of_pefts_merge(case: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    quantizer = options.pop("quantizer", None)
    info, adapter = case(**options)
    parts = sharded(info, adapter, None if quantizer is None else "fp32", quantizer)
    assert parts is not None
    (tmp_path / "out").mkdir()
    parts.write(tmp_path / "out", "fp32")
    base: Any = AutoModelForCausalLM.from_pretrained(info.published, dtype=torch.float32)
    if quantizer is not None:
        base = dequantise(quantise(base, quantizer, "cpu"), torch.float32)
    whole = merged(base, adapter).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-6, rtol=1e-5)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written(tmp_path / "out").values())


def test_precision_is_rounded_to_once(case: Any, tmp_path: Path) -> None:
    """A sum in float32, then bf16: nearer to the whole sum than the base in bf16 with the addition on top."""
    info, adapter = case()
    for precision in ("fp32", "bf16"):
        (tmp_path / precision).mkdir()
        sharded(info, adapter, None, None).write(tmp_path / precision, precision)  # type: ignore[union-attr]
    exact, rounded = written(tmp_path / "fp32"), written(tmp_path / "bf16")
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_no_sum_of_matrices_is_left_to_peft(case: Any) -> None:
    info, adapter = case(targets=["lm_head", "q_proj"], tied=True)
    assert sharded(info, adapter, None, None) is None
    info.files = ()
    assert sharded(info, adapter, None, None) is None


def test_another_base_is_refused(case: Any) -> None:
    info, adapter = case()
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="does not fit its base model"):
        sharded(info, adapter, None, None)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's peak that can be reset")
def test_no_more_than_two_shards_are_held(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1536, num_hidden_layers=16, num_attention_heads=8,
        num_key_value_heads=8,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(tmp_path / "base", max_shard_size="15MB")
    paths = [name for name, module in model.named_modules() if name.endswith("_proj")]
    shapes = {path: tuple(model.get_submodule(path).weight.shape) for path in paths}
    del model
    tensors = {}
    for path, (outputs, inputs) in shapes.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(4, inputs)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(outputs, 4)
    (tmp_path / "adapter").mkdir()
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(about))
    files = tuple(sorted((tmp_path / "base").glob("*.safetensors")))
    most = max(file.stat().st_size for file in files)
    assert len(files) >= 14 and size > 14 * most * 0.8
    info: Any = SimpleNamespace(files=files, stored=None, published=str(tmp_path / "base"))
    (tmp_path / "out").mkdir()
    parts = sharded(info, tmp_path / "adapter", None, None)
    assert parts is not None
    torch.randn(1024, 1024) @ torch.randn(1024, 1024)  # what torch takes once
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    parts.write(tmp_path / "out", "fp32")
    assert _peak() - before < 2.3 * most < size / 6
    assert len(list((tmp_path / "out").glob("*.safetensors"))) >= 14
