"""Mixtures of experts whose experts are one weight: planned, trained over in few bits, merged and read back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import torch
from finetooth_hooks import Datum

Recipe = dict[str, Any]


@pytest.fixture(scope="module")
def mixture(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of four experts, whose files name each matrix of each expert."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("mixture") / "model"
    shutil.copytree(tiny_llama, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = Qwen3MoeConfig(
        vocab_size=4096, hidden_size=64, intermediate_size=96, moe_intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16, num_experts=4, num_experts_per_tok=2,
        max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Qwen3MoeForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def asked(recipe: Callable[..., Recipe], mixture: Path) -> Callable[..., Recipe]:
    def make(quantization: Any, **sections: Any) -> Recipe:
        tasks = {"name": "tasks", "task": "family"}
        data = {
            "train": {**tasks, "count": 16, "seed": 5},
            "eval": {**tasks, "split": "eval", "count": 4, "seed": 1},
            "renderer": "chatml",
        }
        adapter = {
            "name": "lora", "rank": 4, "targets": "attention",
            "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        }  # fmt: skip
        train = {"epochs": 1, "batch_size": 8, "precision": "fp32"}
        given = {"data": data, "train": train, "adapter": adapter, "evaluate": {"evaluators": ["loss"]}, **sections}
        return recipe(model=str(mixture), quantization=quantization, **given)

    return make


BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
TORCHAO = pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
GPTQ = {"name": "gptq", "group": 32, "rows": 8}
FORMS = [
    "int8", "int4", "mxfp4", GPTQ, pytest.param("nf4", marks=BITSANDBYTES),
    *(pytest.param(name, marks=[BITSANDBYTES, pytest.mark.slow]) for name in ("fp4", "bnb_int8")),
    *(
        pytest.param(name, marks=[TORCHAO, pytest.mark.slow])
        for name in ("torchao_int8", "torchao_int4", "torchao_fp8", "mxfp8", "nvfp4")
    ),
]  # fmt: skip


def held(model: Any) -> int:
    """Bytes of the base's parameters and buffers."""
    tensors = [tensor for name, tensor in model.named_parameters() if "lora_" not in name]
    tensors += [tensor for name, tensor in model.named_buffers() if "inv_freq" not in name]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_is_planned_is_what_is_held(asked: Callable[..., Recipe], form: Any) -> None:
    session = finetooth.session(asked(form))
    planned = session.plan.memory.parts["weights"]
    adapter = sum(p.numel() * 4 for p in session.engine._parts.network.model.parameters() if p.requires_grad)
    assert planned - adapter == pytest.approx(held(session.engine._parts.network.model), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS[1:], ids=str)
def test_a_lora_on_experts_is_merged_into_what_it_was_trained_over(
    asked: Callable[..., Recipe], recipe: Callable[..., Recipe], ft: Callable[..., Any], tmp_path: Path, form: Any
) -> None:
    session = finetooth.session(asked(form))
    session.run()
    datum = Datum.from_tokens(list(range(20, 60)))
    wanted = session.engine.logprobs([datum])[0]
    code, out, err = ft("merge", tmp_path / "run")
    assert code == 0 and ("tensor by tensor" in out) == (form != GPTQ), out + err
    whole = recipe(model=str(tmp_path / "run/merged"), output=str(tmp_path / "next"), train={"precision": "fp32"})
    found = finetooth.session(whole).engine.logprobs([datum])[0]
    np.testing.assert_allclose(found, wanted, atol=2e-4)


def test_experts_that_are_skipped_stay_as_they_are(asked: Callable[..., Recipe], mixture: Path) -> None:
    """Their plan counts them whole, and no other module is spared."""
    from safetensors.torch import load_file

    session = finetooth.session(asked({"name": "int8", "skip": ["experts.down_proj"]}))
    model = session.engine._parts.network.model
    adapter = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert session.plan.memory.parts["weights"] - adapter == pytest.approx(held(model), rel=0.01)
    files = load_file(mixture / "model.safetensors")
    plain = {
        name: tensor for name, tensor in model.named_parameters() if tensor.dim() == 3 and not tensor.requires_grad
    }
    assert plain and all("down_proj" in name or "lora" in name for name in plain)
    for layer in range(2):
        wanted = torch.stack([files[f"model.layers.{layer}.mlp.experts.{n}.down_proj.weight"] for n in range(4)])
        assert any(torch.equal(wanted, tensor) for tensor in plain.values())
    session.run()
