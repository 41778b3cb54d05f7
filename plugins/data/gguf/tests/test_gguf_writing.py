"""Files that are written: names by the gguf package's own mapping, numbers by what is read back, refusals by name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_gguf import writing
from finetooth_gguf.weights import build_config, build_model
from finetooth_hooks import RecipeError
from finetooth_modelfiles.gguf import container
from finetooth_modelfiles.gguf.architectures import parameter_names
from gguf import GGUFReader, dequantize, get_tensor_name_map
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA = {"head_dim": 24, "query_pre_attn_scalar": 24, "sliding_window": 5}
LLAMA31 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 64}  # fmt: skip
MIXTURE: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama 3.1": ("llama", {"rope_parameters": LLAMA31}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "mistral": ("llama", {"head_dim": 24, "sliding_window": None}),
    "gemma": ("gemma", {"head_dim": 24}),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0}),
    "gemma3_text": ("gemma3", GEMMA),
    "phi3": ("phi3", {"sliding_window": 100}),
    "glm4": ("glm4", {"head_dim": 24, "attention_bias": True}),
    "glm4_moe": ("glm4moe", {**MIXTURE, "n_routed_experts": 3, "head_dim": 24, "attention_bias": True,
                             "use_qk_norm": True, "routed_scaling_factor": 1.5, "num_nextn_predict_layers": 1}),
    "qwen3_moe": ("qwen3moe", {**MIXTURE, "num_experts": 3, "norm_topk_prob": True}),
    "mixtral": ("llama", {"num_local_experts": 3}),
    "arcee": ("arcee", {}),
    "seed_oss": ("seed_oss", {"head_dim": 24}),
    "smollm3": ("smollm3", {}),
    "granite": ("granite", {"attention_multiplier": 0.4, "embedding_multiplier": 3, "residual_multiplier": 0.5,
                            "logits_scaling": 2.0}),
    "olmo2": ("olmo2", {}),
    "olmoe": ("olmoe", {"num_experts": 3, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "ernie4_5": ("ernie4_5", {"head_dim": 24}),
    "ernie4_5_moe": ("ernie4_5-moe", {"moe_num_experts": 3, "moe_k": 2, "moe_intermediate_size": 32}),
    "hunyuan_v1_dense": ("hunyuan-dense", {"head_dim": 24}),
    "hunyuan_v1_moe": ("hunyuan-moe", {"num_experts": 3, "moe_topk": 2, "head_dim": 24}),
    "cohere": ("command-r", {"layer_norm_eps": 1e-3, "logit_scale": 0.5}),
    "cohere2": ("cohere2", {"sliding_window": 8, "layer_norm_eps": 1e-3, "logit_scale": 0.5}),
}  # fmt: skip
MIXED_LAYERS = ["conv", "full_attention", "conv", "conv", "full_attention", "conv", "conv"]
NARROW: dict[str, Any] = {
    **MIXTURE, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 24, "v_head_dim": 16,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "num_key_value_heads": 4,
    "routed_scaling_factor": 1.5, "q_lora_rank": 24,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32,
        "beta_slow": 1, "mscale": 0.7, "mscale_all_dim": 0.7}  # fmt: skip
MAMBA: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 2}
GRANITE = {**MAMBA, "layer_types": [kind.replace("conv", "linear_attention") for kind in MIXED_LAYERS],
           "position_embedding_type": "nope", "shared_intermediate_size": 48, "num_experts_per_tok": 2,
           "embedding_multiplier": 3, "residual_multiplier": 0.5, "logits_scaling": 2.0}  # fmt: skip
FALCON = {**MAMBA, "mamba_d_ssm": 128, "head_dim": 16, "embedding_multiplier": 1.5, "lm_head_multiplier": 0.7,
          "key_multiplier": 1.3, "attention_in_multiplier": 0.9, "attention_out_multiplier": 1.2,
          "ssm_in_multiplier": 1.1, "ssm_out_multiplier": 0.8, "mlp_multipliers": [0.9, 1.2],
          "ssm_multipliers": [1.1, 0.9, 1.2, 0.8, 1.3]}  # fmt: skip
MODELS |= {
    "lfm2": ("lfm2", {"layer_types": MIXED_LAYERS, "block_multiple_of": 32}),
    "lfm2_moe": ("lfm2moe", {**MIXTURE, "layer_types": MIXED_LAYERS, "num_experts": 3, "num_dense_layers": 1}),
    "deepseek_v2": ("deepseek2", {**NARROW, "rope_parameters": YARN}),
    "deepseek_v3": ("deepseek2", {**NARROW, "n_group": 2, "rope_parameters": YARN}),
    "granitemoehybrid": ("granitehybrid", {**GRANITE, "num_local_experts": 3}),
    "granitemoehybrid dense": ("granitehybrid", {**GRANITE, "num_local_experts": 0}),
    "falcon_h1": ("falcon-h1", FALCON),
    "apertus": ("apertus", {}),
    "qwen3_next": (
        "qwen3next",
        {
            **MIXTURE,
            "num_experts": 3,
            "shared_expert_intermediate_size": 48,
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
}
SPELLING = writing.Spelling(
    tuple(f"t{n}" for n in range(96)), (1,) * 96, (), {"bos": 1, "eos": 2, "padding": 0}, False, None
)


def config_of(kind: str, **changes: Any) -> dict[str, Any]:
    return dict(AutoConfig.for_model(kind.split()[0], **SIZES | MODELS[kind][1] | changes).to_dict())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with random weights, and the file that is written of it."""

    def write(kind: str) -> tuple[Any, Path]:
        folder = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind.split()[0], **SIZES | MODELS[kind][1]))
            biases = [buffer for name, buffer in model.named_buffers() if name.endswith(("n_bias", "t_bias"))]
            for parameter in (*model.parameters(), *biases):
                torch.nn.init.normal_(parameter, std=0.3)
        model.eval().save_pretrained(folder)
        writing.write(folder, SPELLING, "gpt-2", folder / "model.gguf", "f32", kind)
        return model, folder / "model.gguf"

    return write


@pytest.mark.parametrize("kind", MODELS)
def test_a_written_file_computes_what_transformers_does(kind: str, written: Any) -> None:
    model, path = written(kind)
    file = container.read(path)
    loaded: Any = build_model(file, build_config(file), torch.float32)
    ids = torch.arange(1, 49).reshape(2, 24)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_tensors_are_called_as_the_gguf_package_maps_them(kind: str, written: Any) -> None:
    _, path = written(kind)
    label = MODELS[kind][0]
    architecture = next(known for known, name in MODEL_ARCH_NAMES.items() if name == label)
    assert isinstance(architecture, MODEL_ARCH)
    names = get_tensor_name_map(architecture, SIZES["num_hidden_layers"])
    saved = load_file(path.parent / "model.safetensors")
    parameters = {re.sub(r"(experts)\.\d+\.", r"\1.", name) for name in saved}
    parameters = {name for given in parameters for name in as_its_converter_says(given)}
    expected = {names.get_name(name, (".weight", ".bias")) or name for name in parameters}
    expected |= {"rope_freqs.weight"} if kind in ("llama 3.1", "apertus") else set()
    if "dense" in kind:  # a feed-forward part that other models share
        expected = {name.replace("_shexp", "") for name in expected}
    assert {tensor.name for tensor in GGUFReader(path).tensors} == expected


def as_its_converter_says(parameter: str) -> list[str]:
    """Names by which llama.cpp's converter looks a parameter up in that mapping; or those of the tensors."""
    halves = {"block_sparse_moe.input_linear": "ffn_PART_exps", "shared_mlp.input_linear": "ffn_PART_shexp"}
    for fused, tensor in halves.items():
        if fused in parameter:
            block = parameter.split(".")[2]
            return [f"blk.{block}.{tensor.replace('PART', part)}.weight" for part in ("gate", "up")]
    if "in_proj_qkvz" in parameter:
        return [f"blk.{parameter.split('.')[2]}.{part}.weight" for part in ("attn_qkv", "attn_gate")]
    if "act_fn" in parameter:
        return []
    changed = {"correction_bias": "correction.bias", "expert_bias": "expert_bias.bias", "dt_bias": "dt_proj.bias"}
    for own, other in changed.items():
        parameter = parameter.replace(own, other)
    if "kv_b_proj" in parameter:
        return [parameter.replace("kv_b_proj", f"{part}_b_proj") for part in "kv"]
    return [parameter.removeprefix("model.") if "feed_forward.experts" in parameter else parameter]


def test_gemma_states_what_llama_cpp_reads(written: Any) -> None:
    fields = GGUFReader(written("gemma2")[1]).fields
    stated = {"attention.sliding_window": 5, "attn_logit_softcapping": 40.0, "final_logit_softcapping": 20.0,
              "attention.key_length": 24}  # fmt: skip
    assert {key: fields[f"gemma2.{key}"].contents() for key in stated} == stated
    fields = GGUFReader(written("gemma3_text")[1]).fields
    stated = {"attention.sliding_window": 5, "rope.freq_base": 1000000.0, "rope.freq_base_swa": 10000.0}
    assert {key: fields[f"gemma3.{key}"].contents() for key in stated} == stated
    assert "gemma3.final_logit_softcapping" not in fields


def test_gemmas_norms_have_one_added(written: Any) -> None:
    model, path = written("gemma3_text")
    (norm,) = (tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "blk.0.attn_q_norm.weight")
    torch.testing.assert_close(
        torch.from_numpy(norm.copy()), model.model.layers[0].self_attn.q_norm.weight.detach() + 1
    )


def test_glm_states_how_much_of_a_head_turns(written: Any) -> None:
    assert GGUFReader(written("glm4")[1]).fields["glm4.rope.dimension_count"].contents() == 12


def test_glms_mixture_states_its_experts_and_no_layer_ahead(written: Any, tmp_path: Path) -> None:
    model, path = written("glm4_moe")
    file = GGUFReader(path)
    stated = {"expert_count": 3, "expert_used_count": 2, "expert_shared_count": 1, "expert_feed_forward_length": 32,
              "expert_weights_scale": 1.5, "expert_weights_norm": True, "expert_gating_func": 2,
              "leading_dense_block_count": 1, "block_count": 7}  # fmt: skip
    assert {key: file.fields[f"glm4moe.{key}"].contents() for key in stated} == stated
    assert "glm4moe.nextn_predict_layers" not in file.fields
    (up,) = (tensor.data for tensor in file.tensors if tensor.name == "blk.1.ffn_up_exps.weight")
    assert torch.equal(torch.from_numpy(up.copy()), model.model.layers[1].mlp.experts.gate_up_proj.detach()[:, 32:])
    state = load_file(path.parent / "model.safetensors") | {
        "model.layers.7.eh_proj.weight": torch.ones(64, 128)
    }  # as a base's folder may have them
    (path.parent / "config.json").rename(tmp_path / "config.json")
    save_file(state, tmp_path / "model.safetensors")
    writing.write(tmp_path, SPELLING, "glm4", tmp_path / "model.gguf", "f32", "glm")
    assert len(GGUFReader(tmp_path / "model.gguf").tensors) == len(file.tensors)


@pytest.mark.parametrize("stored", ["q8_0", "q4_0"])
def test_stacks_of_experts_are_stored_in_blocks_and_their_router_is_not(stored: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model("qwen3_moe", **SIZES | MODELS["qwen3_moe"][1])
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    writing.write(tmp_path, SPELLING, "gpt-2", tmp_path / "model.gguf", stored, "moe")
    tensors = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "model.gguf").tensors}
    router, stack = tensors["blk.0.ffn_gate_inp.weight"], tensors["blk.0.ffn_down_exps.weight"]
    assert (router.tensor_type.name, stack.tensor_type.name) == ("F32", stored.upper())
    numbers = torch.from_numpy(dequantize(stack.data, stack.tensor_type).reshape(3, 64, 32))
    wanted = model.model.layers[0].mlp.experts.down_proj.detach()
    torch.testing.assert_close(numbers, wanted, atol=float(wanted.abs().max()) / 7, rtol=0.0)


def test_frequencies_are_divided_by_what_transformers_divides_them(written: Any) -> None:
    model, path = written("llama 3.1")
    (factors,) = (tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "rope_freqs.weight")
    plain = 1.0 / 5e5 ** (torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(plain / torch.from_numpy(factors.copy()), model.model.rotary_emb.inv_freq)
    assert {1.0, 8.0} < set(factors.tolist())  # one between, too


def test_settings_that_differ_by_layer_or_stand_in_weights_are_stated(written: Any) -> None:
    fields = GGUFReader(written("lfm2")[1]).fields
    assert fields["lfm2.attention.head_count_kv"].contents() == [0, 2, 0, 0, 2, 0, 0]
    assert fields["lfm2.feed_forward_length"].contents() == 64  # two thirds of 96
    fields = GGUFReader(written("deepseek_v3")[1]).fields
    stated = {"attention.head_count_kv": 1, "attention.key_length": 24, "attention.value_length": 16,
              "attention.key_length_mla": 32, "attention.value_length_mla": 16, "rope.dimension_count": 8,
              "rope.scaling.type": "yarn", "expert_gating_func": 2}  # fmt: skip
    assert {key: fields[f"deepseek2.{key}"].contents() for key in stated} == stated
    assert fields["deepseek2.rope.scaling.yarn_log_multiplier"].contents() == pytest.approx(0.07)
    model, path = written("falcon_h1")
    (keys,) = (tensor.data for tensor in GGUFReader(path).tensors if tensor.name == "blk.1.attn_k.weight")
    wanted = model.model.layers[1].self_attn.k_proj.weight.detach() * 1.3 * 0.9
    torch.testing.assert_close(torch.from_numpy(keys.copy()), wanted)
    model, path = written("apertus")
    alphas = GGUFReader(path).fields["xielu.alpha_n"].contents()
    assert alphas == [layer.mlp.act_fn.alpha_n.item() for layer in model.model.layers]


def test_a_part_of_a_parameter_that_is_missing_is_named(written: Any, tmp_path: Path) -> None:
    path = written("deepseek_v3")[1]
    file = container.read(path)
    lost = {name: entry for name, entry in file.tensors.items() if name != "blk.2.attn_v_b.weight"}
    with pytest.raises(RecipeError, match=r"lacks blk\.2\.attn_v_b\.weight"):
        parameter_names(replace(file, tensors=lost))


def test_phi_states_no_more_context_than_its_window(written: Any) -> None:
    assert GGUFReader(written("phi3")[1]).fields["phi3.context_length"].contents() == 100


@pytest.mark.parametrize(
    ("kind", "changes", "line"),
    [
        ("mistral", {"sliding_window": 64}, "its sliding_window is 64 and its context 128: llama.cpp has no window"),
        ("mistral", {"sliding_window": 128}, ""),
        ("gemma2", {"query_pre_attn_scalar": 16}, "its query_pre_attn_scalar is 16, and llama.cpp computes with 24"),
        ("gemma2", {"num_hidden_layers": 46, "query_pre_attn_scalar": 16}, ""),
        ("gemma2", {"final_logit_softcapping": None}, "no final_logit_softcapping, and llama.cpp computes with 30.0"),
        ("gemma2", {"tie_word_embeddings": False}, "its tie_word_embeddings is False"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, r"its layer_types is \['full_attention'"),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "its attn_logit_softcapping is 30.0"),
        ("gemma3_text", {"hidden_activation": "silu"}, "its hidden_activation is silu"),
        ("gemma3_text", {}, ""),
        ("llama", {"rope_parameters": LLAMA31}, ""),
        ("llama", {"rope_parameters": {**LLAMA31, "low_freq_factor": 2.0}}, "its rotary embedding has .*2.0.*can be"),
        ("qwen2", {"rope_parameters": LLAMA31}, "rotary embedding is of type llama3, which cannot be written"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "rotary embedding is of type longrope"),
        ("phi3", {"rope_parameters": None, "rope_scaling": {"type": "su"}}, "rotary embedding is of type su"),
        ("phi3", {"rope_parameters": {"partial_rotary_factor": 0.75}}, "rotates 0.75 of each head"),
        (
            "llama",
            {"model_type": "mamba"},
            r"type mamba cannot be .*only .*gemma2, gemma3_text, glm4, glm4_moe, granite",
        ),
        ("qwen3_moe", {"norm_topk_prob": False}, "its norm_topk_prob is False, and llama.cpp computes with True"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, r"its mlp_only_layers is \[0\], and llama.cpp computes with \[\]"),
        ("smollm3", {"no_rope_layers": [1] * 7}, r"no_rope_layers is .* computes with \[1, 1, 1, 0, 1, 1, 1\]"),
        ("glm4_moe", {"n_group": 2}, "its n_group is 2, and llama.cpp computes with 1"),
        ("mixtral", {"sliding_window": 64}, "llama.cpp has no window for models of type mixtral"),
        ("deepseek_v3", {"n_group": 1}, ""),
        ("deepseek_v3", {"rope_parameters": {**YARN, "mscale": 1.0}}, "no mscale equal to its mscale_all_dim"),
        ("deepseek_v3", {"rope_parameters": {**YARN, "beta_fast": 16}}, r"has \{'beta_fast': 16\}, and llama.cpp"),
        ("deepseek_v3", {"q_lora_rank": None}, "its q_lora_rank is None, and llama.cpp computes with a number"),
        ("deepseek_v3", {"q_lora_rank": None, "num_hidden_layers": 27}, ""),
        ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "its topk_method is group_limited_greedy"),
        ("lfm2", {"conv_bias": True}, "its conv_bias is True"),
        ("granitemoehybrid", {"position_embedding_type": "rope"}, "its position_embedding_type is rope"),
        ("granitemoehybrid", {"time_step_limit": [0.1, 1.0]}, "its time_step_limit is .*computes with .0.0, inf"),
        ("falcon_h1", {"mamba_rms_norm": True}, "its mamba_rms_norm is True"),
        (
            "qwen3_next",
            {"linear_value_head_dim": 32},
            "its linear_value_head_dim is 32, and llama.cpp computes with 16",
        ),
        ("qwen3_next", {"layer_types": ["full_attention"] * 7}, "its layer_types is"),
        ("falcon_h1", {"tie_word_embeddings": True}, "its tie_word_embeddings is True"),
        ("llama", {"mlp_bias": True}, "its feed-forward layers have biases, which cannot be written"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(kind: str, changes: dict[str, Any], line: str) -> None:
    config = config_of(kind, num_hidden_layers=changes.get("num_hidden_layers", 7))
    said = writing.refusal(config | changes, "f32")
    assert re.search(line, said) if line else not said, said
