"""Weights and configs: equal to the transformers model a file was written from, architecture by architecture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetooth_gguf.weights import build_config, build_model, state_dict
from finetooth_hooks.errors import RecipeError
from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.container import Container
from gguf import GGMLQuantizationType, dequantize, quantize
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
}
GLM: dict[str, Any] = {
    **SIZES,
    "head_dim": 24,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0, "partial_rotary_factor": 0.5},
}
MIXTURE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
GEMMA: dict[str, Any] = {
    **SIZES,
    "num_hidden_layers": 7,
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 40.0,
    "final_logit_softcapping": 20.0,
}
GEMMA_WIDE = {key: value for key, value in GEMMA.items() if key != "num_hidden_layers"} | {"query_pre_attn_scalar": 16}
TWO_BASES: dict[str, Any] = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 50000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 7000.0},
    },
}
MODELS: dict[str, tuple[str, Any, Any]] = {
    "llama": ("llama", LlamaForCausalLM, LlamaConfig(**SIZES)),
    "llama-tied": ("llama", LlamaForCausalLM, LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "llama-biased": ("llama", LlamaForCausalLM, LlamaConfig(**SIZES, attention_bias=True)),
    "llama-wide-heads": ("llama", LlamaForCausalLM, LlamaConfig(**SIZES, head_dim=24)),
    "qwen2": ("qwen2", Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "qwen2-tied": ("qwen2", Qwen2ForCausalLM, Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "qwen3": ("qwen3", Qwen3ForCausalLM, Qwen3Config(**SIZES, head_dim=32)),
    "gemma2": ("gemma2", Gemma2ForCausalLM, Gemma2Config(**GEMMA, sliding_window=5)),
    "gemma2-27b": ("gemma2", Gemma2ForCausalLM, Gemma2Config(**GEMMA_WIDE, num_hidden_layers=46, sliding_window=5)),
    "gemma3": ("gemma3", Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA | TWO_BASES, sliding_window=5)),
    "glm4": ("glm4", Glm4ForCausalLM, Glm4Config(**GLM)),
    "glm4-biased": ("glm4", Glm4ForCausalLM, Glm4Config(**GLM, attention_bias=True)),
    "glm4moe": (
        "glm4moe",
        Glm4MoeForCausalLM,
        Glm4MoeConfig(**GLM, **MIXTURE, n_routed_experts=4, routed_scaling_factor=2.5, use_qk_norm=True),
    ),
    "qwen3moe": (
        "qwen3moe",
        Qwen3MoeForCausalLM,
        Qwen3MoeConfig(**SIZES, **MIXTURE, num_experts=4, norm_topk_prob=True),
    ),
    "phi3": ("phi3", Phi3ForCausalLM, Phi3Config(**SIZES, pad_token_id=0)),
    "phi3-tied": ("phi3", Phi3ForCausalLM, Phi3Config(**SIZES, pad_token_id=0, tie_word_embeddings=True)),
}
STATED: dict[str, dict[str, Any]] = {
    "gemma2": {
        "attention.sliding_window": 5,
        "attn_logit_softcapping": 40.0,
        "final_logit_softcapping": 20.0,
    },
    "gemma3": {"attention.sliding_window": 5, "rope.freq_base_swa": 7000.0},
    "glm4": {"rope.dimension_count": 12},
    "glm4moe": {
        "rope.dimension_count": 12,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_feed_forward_length": 32,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "leading_dense_block_count": 1,
        "nextn_predict_layers": 0,
    },
    "qwen3moe": {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32},
}
"""What a file of an architecture states beyond what one of Llama's does."""


def random_model(model_class: Any, config: Any) -> PreTrainedModel:
    """Every parameter random, also the norms and biases that a fresh model has at one and zero."""
    generator = torch.Generator().manual_seed(0)
    model: PreTrainedModel = model_class(config).eval()
    with torch.no_grad():
        biases = [buffer for name, buffer in model.named_buffers() if "correction_bias" in name]
        for parameter in (*model.parameters(), *biases):
            drawn = torch.randn(parameter.shape, generator=generator) * 0.2 + (parameter.ndim == 1)
            parameter.copy_((drawn * 4096).round() / 4096)  # 1 can be added to it, as Gemma's files do, and taken away
    return model


def logits(model: PreTrainedModel, ids: torch.Tensor | None = None) -> torch.Tensor:
    inputs = torch.arange(1, 33).reshape(2, 16) if ids is None else ids
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=inputs).logits)


def load(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    header = container.read(path)
    return build_model(header, build_config(header), dtype)


@pytest.mark.parametrize("name", MODELS)
def test_a_written_model_comes_back_equal(name: str, writer: Callable[..., Path]) -> None:
    architecture, model_class, config = MODELS[name]
    original = random_model(model_class, config)
    loaded = load(writer(architecture, config, original, metadata=STATED.get(architecture)))
    assert type(loaded) is model_class
    assert not loaded.training
    for parameter, values in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[parameter], values), parameter
    assert torch.equal(logits(loaded), logits(original))
    for key in ("hidden_size", "head_dim", "rms_norm_eps", "tie_word_embeddings", "max_position_embeddings"):
        expected = getattr(config, key, None)  # Qwen2's config does not have head_dim unless it is set
        assert expected is None or getattr(loaded.config, key) == expected, key


@pytest.mark.parametrize("stored", [GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0, GGMLQuantizationType.BF16])
def test_quantised_weights_are_what_the_gguf_package_makes_of_them(
    stored: GGMLQuantizationType, writer: Callable[..., Path]
) -> None:
    config = MODELS["qwen2"][2]  # no rows are moved, so quantising the original gives the expected numbers
    original = random_model(Qwen2ForCausalLM, config)
    found = state_dict(container.read(writer("qwen2", config, original, stored)), torch.float32)
    for name, values in original.state_dict().items():
        expected = values.numpy()
        if expected.ndim == 2:
            expected = dequantize(quantize(expected, stored), stored)
        assert np.array_equal(found[name].numpy(), expected), name


def test_rows_of_quantised_projections_are_put_back(writer: Callable[..., Path]) -> None:
    config = MODELS["llama"][2]
    original = random_model(LlamaForCausalLM, config)
    found = state_dict(container.read(writer("llama", config, original, GGMLQuantizationType.Q8_0)), torch.float32)
    for name in ("q_proj", "k_proj"):
        weight = original.state_dict()[f"model.layers.1.self_attn.{name}.weight"]
        error = (found[f"model.layers.1.self_attn.{name}.weight"] - weight).abs().max()
        assert error < 0.01 * weight.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions_are_the_rounded_float32(dtype: torch.dtype, writer: Callable[..., Path]) -> None:
    architecture, model_class, config = MODELS["llama"]
    original = random_model(model_class, config)
    loaded = load(writer(architecture, config, original), dtype)
    assert loaded.dtype == dtype
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, original.state_dict()[name].to(dtype)), name


def test_linear_rotary_scaling_is_kept(writer: Callable[..., Path]) -> None:
    architecture, model_class, config = MODELS["llama"]
    scaled = LlamaConfig(**{**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 4.0}})
    original = random_model(model_class, scaled)
    path = writer(architecture, config, original, metadata={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0})
    assert torch.equal(logits(load(path)), logits(original))


@pytest.mark.parametrize(
    ("metadata", "line"),
    [
        ({"expert_count": 8}, "a mixture of experts"),
        ({"rope.scaling.type": "yarn"}, "a rotary embedding with yarn scaling"),
        ({"rope.dimension_count": 8}, "only 8 of 16 dimensions rotated"),
    ],
)
def test_variants_that_are_not_understood_are_refused(
    metadata: dict[str, Any], line: str, writer: Callable[..., Path]
) -> None:
    architecture, model_class, config = MODELS["qwen2"]
    with pytest.raises(RecipeError, match=line):
        load(writer(architecture, config, random_model(model_class, config), metadata=metadata))


def test_layers_that_predict_further_ahead_are_left_out(writer: Callable[..., Path]) -> None:
    architecture, model_class, config = MODELS["glm4moe"]
    original = random_model(model_class, config)
    stated = STATED["glm4moe"] | {"block_count": 3, "nextn_predict_layers": 1}

    class Ahead:
        def state_dict(self) -> dict[str, torch.Tensor]:
            last = {
                name.replace("layers.1.", "layers.2."): values
                for name, values in original.state_dict().items()
                if "layers.1." in name
            }
            return {**original.state_dict(), **last}

    loaded = load(writer(architecture, config, Ahead(), metadata=stated))
    assert (loaded.config.num_hidden_layers, loaded.config.num_nextn_predict_layers) == (2, 0)
    assert torch.equal(logits(loaded), logits(original))


def test_an_unsupported_architecture_is_named_with_the_supported_ones(writer: Callable[..., Path]) -> None:
    config = MODELS["llama"][2]
    path = writer("mamba", config, None)
    with pytest.raises(RecipeError, match=r"architecture 'mamba', which is not supported \(supported are llama, qwen2"):
        load(path)


def test_a_missing_or_foreign_or_misshapen_tensor_is_named(writer: Callable[..., Path]) -> None:
    _, _, config = MODELS["llama"]
    model = random_model(LlamaForCausalLM, config)
    state = model.state_dict()

    class Changed:
        def __init__(self, **changes: torch.Tensor | None) -> None:
            merged = {**state, **{key.replace("__", "."): value for key, value in changes.items()}}
            self.kept = {name: value for name, value in merged.items() if value is not None}

        def state_dict(self) -> dict[str, torch.Tensor]:
            return self.kept

    lacking = Changed(model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(RecipeError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        load(writer("llama", config, lacking))
    foreign = Changed(model__layers__1__self_attn__q_norm__weight=torch.ones(16))
    with pytest.raises(RecipeError, match=r"holds beyond the model's parameters model\.layers\.1\.self_attn\.q_norm"):
        load(writer("llama", config, foreign))
    misshapen = Changed(model__norm__weight=torch.ones(32))
    with pytest.raises(RecipeError, match=r"in another shape than the model's, .*model\.norm\.weight"):
        load(writer("llama", config, misshapen))


@pytest.mark.slow
def test_smollm2_equals_what_transformers_dequantises(smollm2_path: Path, smollm2_model: PreTrainedModel) -> None:
    peer = AutoModelForCausalLM.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32)
    expected = peer.state_dict()
    found = smollm2_model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_smollm2_saved_and_read_back_gives_equal_logits(smollm2_model: PreTrainedModel, tmp_path: Path) -> None:
    smollm2_model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again), logits(smollm2_model))
    assert "quantization_config" not in (tmp_path / "config.json").read_text()


def test_the_config_is_smollm2s(smollm2: Container) -> None:
    config = build_config(smollm2)
    assert isinstance(config, LlamaConfig)
    # the values of the published config.json
    expected = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 100000.0}


def test_nothing_is_shown_while_a_model_loads(writer: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    architecture, model_class, config = MODELS["llama"]
    path = writer(architecture, config, random_model(model_class, config))
    capfd.readouterr()
    load(path)
    assert capfd.readouterr() == ("", "")
