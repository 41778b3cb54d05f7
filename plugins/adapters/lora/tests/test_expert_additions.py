"""A LoRA of experts that multiplies by itself, against peft, which adds the product to them for every call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from finetooth_hooks.protocols import Experts, LayerFacts
from finetooth_kit.fake_context import FACTS
from finetooth_kit.families import LATENT
from finetooth_lora.adapter import LoraAdapter, LoraOptions
from finetooth_lora.expert_additions import ExpertAddition
from finetooth_lora.sizes import experts_of
from torch.utils._python_dispatch import TorchDispatchMode

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    "moe_intermediate_size": 24,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4},
    "mixtral": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4},  # transposed, with biases and a gate of its own
    "glm4_moe": {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "olmoe": {"num_experts": 4},
    # chances of softmax, the chosen ones again a whole
    "qwen2_moe": {"num_experts": 4, "norm_topk_prob": True, "shared_expert_intermediate_size": 24},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "moe_intermediate_size": 48},
    # sigmoid, a bias that only chooses, and the best groups of experts
    "deepseek_v3": {
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 1,
        **LATENT,
        "head_dim": LATENT["qk_rope_head_dim"],
    },
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2},  # chances of softmax and a bias that only chooses
    # a norm, and a scale of each expert
    "gemma4_text": {"num_experts": 4, "top_k_experts": 2, "enable_moe_block": True, "hidden_size_per_layer_input": 0},
}
DENSE_FIRST = ("glm4_moe", "deepseek_v3", "ernie4_5_moe")


def made(family: str) -> Any:
    config = transformers.AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, tensor in model.state_dict().items():
            if name.endswith(("e_score_correction_bias", "per_expert_scale")):  # neither changes anything as made
                tensor.uniform_(0.1, 0.6)
    options = LoraOptions(rank=3, targets=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    adapted = LoraAdapter(options).apply(model, replace(FACTS, block=None), np.random.default_rng(0))
    drawn = np.random.default_rng(1)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.from_numpy(drawn.normal(0, 0.1, tuple(parameter.shape)).astype(np.float32)))
    return adapted.eval()


def of(model: Any, rows: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Logits, and the slopes of all that trains."""
    logits = model(rows).logits
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    slopes = torch.autograd.grad(logits.square().sum(), list(trained.values()))
    return logits.detach(), dict(zip(trained, slopes, strict=True))


ROWS = torch.from_numpy(np.random.default_rng(3).integers(0, 61, (2, 9)))


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_slopes_are_those_of_the_sum(family: str) -> None:
    ours, pefts = made(family), made(family)
    assert ours.config._experts_implementation == "finetooth"
    pefts.set_experts_implementation("eager")
    (logits, slopes), (expected, wanted) = of(ours, ROWS), of(pefts, ROWS)
    assert torch.allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert slopes.keys() == wanted.keys() and len(slopes) == (4 if family in DENSE_FIRST else 8)
    for name, slope in slopes.items():
        assert torch.allclose(slope, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max())), name


def test_disabled_it_is_the_base() -> None:
    model = made("qwen3_moe")
    for layer in model.modules():
        if isinstance(layer, ExpertAddition):
            layer.enable_adapters(False)
    base = transformers.AutoModelForCausalLM.from_config(model.config, dtype=torch.float32).eval()
    own = {name.replace("base_layer.", ""): tensor for name, tensor in model.state_dict().items() if "lora" not in name}
    base.load_state_dict(own)
    assert torch.equal(model(ROWS).logits, base(ROWS).logits)


class _Largest(TorchDispatchMode):
    """Sizes of all results that do not lie in the model's own weights."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.numbers: list[int] = []
        self._own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self._own:
                self.numbers.append(tensor.numel())
        return result


def test_no_sum_of_weight_and_addition_is_made_nor_its_gradient() -> None:
    def most(code: str) -> int:
        model = made("qwen3_moe")
        model.set_experts_implementation(code)
        with _Largest(model) as seen:
            of(model, ROWS[:1, :2])
        return max(seen.numbers)

    weight = 4 * 2 * 24 * 32  # of gate and up of all experts
    assert most("grouped_mm") >= weight
    assert most("finetooth") < weight / 4


def test_what_its_additions_read_is_counted() -> None:
    """Of both active experts of each layer with experts, gate and up's common input and that of down."""
    layer = LayerFacts("attention", {}, {}, experts=Experts(4, 2, 24))
    facts = replace(FACTS, hidden_size=32, layers=2, per_layer=(layer, replace(layer, experts=None)))
    names = ["experts.gate_up_proj", "experts.down_proj"]
    options = LoraOptions(rank=3, targets=[], target_parameters=names)
    adapter = LoraAdapter(options, experts=experts_of({"num_experts": 4, "moe_intermediate_size": 24}))
    assert adapter.token_bytes(facts, "bf16") == 2 * 2 * (32 + 24) / 2
    assert LoraAdapter(LoraOptions(rank=3)).token_bytes(facts, "bf16") == 0


def test_the_config_that_is_saved_does_not_name_the_way(tmp_path: Any) -> None:
    made("qwen3_moe").config.save_pretrained(tmp_path)
    assert "experts_implementation" not in (tmp_path / "config.json").read_text()
