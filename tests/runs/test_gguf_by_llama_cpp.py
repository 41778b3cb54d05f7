"""GGUF files of each kind of model that is written, read by llama.cpp itself: its probabilities are transformers'.

Skipped where it is not: `make readers-test` makes an environment for it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": None,
}
GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
MIXTURE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
CONVOLUTIONS = ["conv", "full_attention", "conv", "conv", "full_attention"]
NARROW: dict[str, Any] = {
    **MIXTURE, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 24, "v_head_dim": 16, "n_group": 1,
    "topk_group": 1, "n_routed_experts": 4, "first_k_dense_replace": 1, "num_key_value_heads": 4, "q_lora_rank": 24,
    "routed_scaling_factor": 1.5,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 32,
        "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 0.7}  # fmt: skip
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2}
GRANITE = {
    **MAMBA, "layer_types": [kind.replace("conv", "linear_attention") for kind in CONVOLUTIONS],
    "position_embedding_type": "nope", "shared_intermediate_size": 48, "num_experts_per_tok": 2,
    "attention_multiplier": 0.4, "embedding_multiplier": 3, "residual_multiplier": 0.5, "logits_scaling": 2.0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama 3.1": {"rope_parameters": {
        "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }},
    "gemma": {"head_dim": 16},
    "gemma2": {**GEMMA, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0},
    "gemma3_text": GEMMA,
    "qwen2": {},
    "qwen3": {"head_dim": 24},
    "cohere": {"logit_scale": 0.5},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {**MIXTURE, "num_experts": 4, "norm_topk_prob": True},
    "glm4": {"head_dim": 24, "attention_bias": True},
    "glm4_moe": {**MIXTURE, "n_routed_experts": 4, "head_dim": 24, "attention_bias": True, "use_qk_norm": True,
                 "routed_scaling_factor": 1.5},
    "arcee": {},
    "seed_oss": {"head_dim": 16},
    "smollm3": {},
    "granite": {"attention_multiplier": 0.4, "embedding_multiplier": 3, "residual_multiplier": 0.5,
                "logits_scaling": 2.0},
    "olmo2": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    "ernie4_5": {"head_dim": 16},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"num_experts": 4, "moe_topk": 2, "head_dim": 16},
    "cohere2": {"sliding_window": 8, "logit_scale": 0.5},
    "apertus": {},
    "qwen3_next": {
        **MIXTURE, "num_experts": 4, "shared_expert_intermediate_size": 48, "head_dim": 32, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    },
    "lfm2": {"layer_types": CONVOLUTIONS, "block_multiple_of": 32},
    "lfm2_moe": {**MIXTURE, "layer_types": CONVOLUTIONS, "num_experts": 4, "num_dense_layers": 1},
    "deepseek_v2": {**NARROW, "rope_parameters": YARN},
    "deepseek_v3": {**NARROW, "n_group": 2},
    "deepseek_v3 yarn": {**NARROW, "n_group": 2, "rope_parameters": YARN},
    "deepseek_v3 lite": {**NARROW, "q_lora_rank": None, "num_hidden_layers": 27},
    "granitemoehybrid": {**GRANITE, "num_local_experts": 4},
    "granitemoehybrid dense": {**GRANITE, "num_local_experts": 0},
    "falcon_h1": {
        **MAMBA, "mamba_d_ssm": 128, "head_dim": 16, "embedding_multiplier": 1.5, "lm_head_multiplier": 0.7,
        "key_multiplier": 1.3, "attention_in_multiplier": 0.9, "attention_out_multiplier": 1.2,
        "ssm_in_multiplier": 1.1, "ssm_out_multiplier": 0.8, "mlp_multipliers": [0.9, 1.2],
        "ssm_multipliers": [1.1, 0.9, 1.2, 0.8, 1.3],
    },
}  # fmt: skip
PROMPTS = [list(range(start, start + count)) for start, count in ((20, 1), (30, 5), (50, 12), (80, 25))]
ASKED = {"temperature": 0, "n_predict": 1, "n_probs": 20, "ignore_eos": True}


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_what_transformers_does(
    kind: str, tiny_llama: Path, ask_llama_cpp: Any, tmp_path: Path
) -> None:
    from finetooth_gguf import writing
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind.split()[0], vocab_size=len(tokenizer), **SIZES | KINDS[kind])
        model = AutoModelForCausalLM.from_config(config).eval()
        biases = [(name, buffer) for name, buffer in model.named_buffers() if "correction_bias" in name]
        for name, parameter in (*model.named_parameters(), *biases):
            torch.nn.init.normal_(parameter, float("norm" in name), 0.2)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert not writing.refusal(json.loads((tmp_path / "config.json").read_text()), "f32")
    spelling = writing.spelling_of(tmp_path, len(tokenizer))
    writing.write(tmp_path, spelling, "smollm", tmp_path / "model.gguf", "f32", kind)
    answers = ask_llama_cpp(tmp_path / "model.gguf", [("/completion", {"prompt": p, **ASKED}) for p in PROMPTS])
    compared = 0
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        with torch.no_grad():
            wanted = torch.log_softmax(model(torch.tensor([prompt])).logits[0, -1], -1)
        for likely in answer.get("completion_probabilities", [{"top_logprobs": []}])[0]["top_logprobs"]:
            assert likely["logprob"] == pytest.approx(wanted[likely["id"]].item(), abs=0.05)  # it rounds on the way
            compared += 1
    assert compared >= 40  # none where the token is part of a character
