"""Merging tensor by tensor: to the bit the weights of peft's own merge, in the memory of two shards."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_hooks import ModelTensors, QuantizerBase, UserError
from finetooth_hooks.protocols import Stored
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.artifact import additions
from finetooth_lora.shards import fold_tensors
from finetooth_peftfiles.folding import merged
from finetooth_torchshared.model_tensors import as_stored, write_model_tensors
from finetooth_torchshared.quantised import DequantisingLinear, dequantise, quantise
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM


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


def base_of(folder: Path) -> ModelTensors:
    """A folder's tensors, in fp32."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    files = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            files |= dict.fromkeys(opened.keys(), file.name)

    def read(name: str) -> torch.Tensor:
        with safe_open(folder / files[name], framework="pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        return tensor.float()

    return ModelTensors(model, files, read)


def write(base: Path, adapter: Path, folder: Path, precision: str, quantizer: Any = None) -> None:
    tensors: Any = base_of(base)
    folded = fold_tensors(tensors if quantizer is None else as_stored(tensors, quantizer), adapter)  # type: ignore[arg-type]
    assert folded is not None
    folder.mkdir()
    write_model_tensors(folded, folder, precision)


@pytest.fixture
def case(tiny: Any, tmp_path: Path) -> Any:
    """Makes (a base in several files, folder of an adapter over it)."""

    def make(tied: bool = False, **options: Any) -> tuple[Path, Path]:
        made = tiny(tied=tied)
        base = tmp_path / "base"
        made.model.save_pretrained(base, max_shard_size="20KB")
        model = LoraAdapter(LoraOptions(rank=4, **options)).apply(made.model, made.facts, np.random.default_rng(0))
        generator = torch.Generator().manual_seed(3)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data + 0.05 * torch.randn(parameter.shape, generator=generator)
        LoraAdapter(LoraOptions(rank=4, **options)).export(model, tmp_path / "adapter", made.info)
        assert len(list(base.glob("*.safetensors"))) > 3
        return base, tmp_path / "adapter"

    return make


def written(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def test_large_files_are_written_as_several(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetooth_torchshared import model_tensors

    base, adapter = case()
    write(base, adapter, tmp_path / "out", "fp32")
    monkeypatch.setattr(model_tensors, "LARGEST", 10_000)
    write(base, adapter, tmp_path / "more", "fp32")
    found, wanted = written(tmp_path / "more"), written(tmp_path / "out")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    files = sorted(file.name for file in (tmp_path / "more").glob("*.safetensors"))
    assert len(files) > len(list((tmp_path / "out").glob("*.safetensors")))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "more").state_dict().keys() >= found.keys()


@pytest.mark.parametrize(
    "options",
    [{}, {"dora": True}, {"rslora": True, "tied": True}, {"quantizer": Rows()}],
    ids=lambda given: "-".join(given),
)
def test_the_weights_are_those_of_pefts_merge(case: Any, tmp_path: Path, options: dict[str, Any]) -> None:
    quantizer = options.pop("quantizer", None)
    folder, adapter = case(**options)
    write(folder, adapter, tmp_path / "out", "fp32", quantizer)
    base: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if quantizer is not None:
        base = dequantise(quantise(base, quantizer, "cpu"), torch.float32)
    whole = merged(base, adapter).state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert found.keys() == whole.keys()
    for name, tensor in whole.items():
        assert torch.equal(found[name], tensor), name
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in (tmp_path / "out").glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written(tmp_path / "out").values())


def test_precision_is_rounded_to_once(case: Any, tmp_path: Path) -> None:
    """A sum in float32, then bf16: nearer to the whole sum than the base in bf16 with the addition on top."""
    base, adapter = case()
    for precision in ("fp32", "bf16"):
        write(base, adapter, tmp_path / precision, precision)
    exact, rounded = written(tmp_path / "fp32"), written(tmp_path / "bf16")
    assert all(torch.equal(rounded[name], exact[name].bfloat16()) for name in exact)
    assert json.loads((tmp_path / "bf16" / "config.json").read_text())["dtype"] == "bfloat16"


def test_what_is_no_sum_of_matrices_is_left_to_peft(case: Any) -> None:
    base, adapter = case(targets=["lm_head", "q_proj"], tied=True)
    assert fold_tensors(base_of(base), adapter) is None


@pytest.mark.parametrize(
    "setting",
    [
        {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"alpha_pattern": {"q_proj": 64}},
        {"alora_invocation_tokens": [3, 1]},
    ],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_what_peft_adds_otherwise_is_no_plain_sum(case: Any, setting: dict[str, Any]) -> None:
    """By peft's own pass over the base: with these settings the adapter is not W + scale B A of one scale."""
    from peft import PeftModel

    base, adapter = case()
    plain = fold_tensors(base_of(base), adapter)
    assert plain is not None and additions(adapter) is not None
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **setting}))
    tokens = torch.tensor([[5, 7, 9, 2]])
    with torch.no_grad():
        truth = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(tokens).logits
        model = AutoModelForCausalLM.from_pretrained(base)
        model.load_state_dict({name: plain.read(name) for name in plain.files}, strict=False)
        assert not torch.allclose(model(tokens).logits, truth, atol=1e-4)
    assert fold_tensors(base_of(base), adapter) is None and additions(adapter) is None
    if "alora_invocation_tokens" in setting:
        with pytest.raises(UserError, match="cannot be merged"):
            merged(AutoModelForCausalLM.from_pretrained(base), adapter)
    else:
        with torch.no_grad():
            folded = merged(AutoModelForCausalLM.from_pretrained(base), adapter)(tokens).logits
        torch.testing.assert_close(folded, truth, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("setting", [{"lora_bias": True}, {"layer_replication": [[0, 1], [0, 2]]}])
def test_what_cannot_be_merged_names_the_adapter(case: Any, tmp_path: Path, setting: dict[str, Any]) -> None:
    """A bias of the adapter over a base without biases, and layers that share one weight but not what is added."""
    from peft import LoraConfig, get_peft_model

    base, _ = case()
    config = LoraConfig(r=2, target_modules=["q_proj"], **setting)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "made")
    with pytest.raises(UserError, match=r"made cannot be merged: .*use the adapter with its base, by peft"):
        merged(AutoModelForCausalLM.from_pretrained(base), tmp_path / "made")


def test_another_base_is_refused(case: Any) -> None:
    base, adapter = case()
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({**tensors, name: tensors[name][:-1].contiguous()}, adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="does not fit its base model"):
        fold_tensors(base_of(base), adapter)


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
    parts = fold_tensors(base_of(tmp_path / "base"), tmp_path / "adapter")
    assert parts is not None
    (tmp_path / "out").mkdir()
    torch.randn(1024, 1024) @ torch.randn(1024, 1024)  # what torch takes once
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    write_model_tensors(parts, tmp_path / "out", "fp32")
    assert _peak() - before < 2.3 * most < size / 6
    assert len(list((tmp_path / "out").glob("*.safetensors"))) >= 14
