"""Keys of axolotl that change nothing here, and keys that nothing here can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_importer.tools import shared

ATTENTION = (
    "attn_implementation",
    "flash_attention",
    "sdp_attention",
    "xformers_attention",
    "flex_attention",
    "eager_attention",
    "s2_attention",
    "flash_attn_cross_entropy",
    "flash_attn_rms_norm",
    "flash_attn_fuse_mlp",
    "flash_attn_fuse_qkv",
)
"""Keys that say what computes attention."""

NO_EFFECT: Mapping[str, str] = {
    "dataset_prepared_path": "prepared data are kept in the folder FT_CACHE",
    "strict": "unknown keys are always refused",
    "skip_prepare_dataset": "images are read when they are needed",
    "tokenizer_type": "the tokenizer is that of the model",
    "tokenizer_use_fast": "the tokenizer is that of the model",
    "tokenizer_legacy": "the tokenizer is that of the model",
    "tokenizer_use_mistral_common": "the family's renderer writes Mistral's markup",
    "processor_type": "the processor is that of the model",
    "model_type": "the family is known from the model's config",
    "base_model_ignore_patterns": "only safetensors are read",
    "is_llama_derived_model": "the family is known from the model's config",
    "is_mistral_derived_model": "the family is known from the model's config",
    "special_tokens": "",
    "eot_tokens": "the renderer knows what ends a turn, and trains it",
    "pad_to_sequence_len": "padding never changes the result",
    "max_packed_sequence_len": "sequence_len is the bound",
    "eval_sample_packing": "held-out rows are laid out as training rows are",
    "pretrain_multipack_attn": "documents never see each other",
    "total_num_tokens": "it is counted",
    "use_kernels": "kernels are chosen for the machine",
    "cut_cross_entropy": "logits of all positions are never held at once",
    "chunked_cross_entropy": "logits of all positions are never held at once",
    "tiled_mlp": "kernels are chosen for the machine",
    "fused_attn_kernel": "kernels are chosen for the machine",
    "experts_implementation": "kernels are chosen for the machine",
    "gemma4_hybrid_attn_impl": "attention is chosen by kind of layer",
    "flex_attn_compile_kwargs": "kernels are chosen for the machine",
    "flash_optimum": "kernels are chosen for the machine",
    "debug": "ft --debug shows where an error comes from",
    "wandb_watch": "",
    "wandb_log_model": "",
    "wandb_run_id": "",
    "use_wandb": "",
    "lora_on_cpu": "what is merged is merged tensor by tensor",
    "merge_lora": "it is of axolotl merge-lora; here ft merge RUN does it, or export: [safetensors]",
    "lora_fan_in_fan_out": "it is known from the module",
    "full_finetune": "it is what no adapter means",
    "hf_use_auth_token": "the hub's token is read from the environment",
    "eval_table_size": "samples are shown by ft chat RUN",
    "eval_max_new_tokens": "samples are shown by ft chat RUN",
    "test_value": "it is of the tool's own tests",
    "vllm": "answers are sampled by the engine itself",
    "reinit_weights": "",
    "llama4_linearized_experts": "experts are computed as the model's config says",
    "use_scattermoe": "kernels are chosen for the machine",
    "use_sonicmoe": "kernels are chosen for the machine",
    "use_dsv4_kernels": "kernels are chosen for the machine",
    "use_glm_dsa_kernels": "kernels are chosen for the machine",
    "dsv4_fp4_grouped_mode": "kernels are chosen for the machine",
    "gptq_disable_exllama": "kernels are chosen for the machine",
    "expert_parallel_num_nvl_bytes": "it is of several devices",
    "expert_parallel_token_capacity": "it is of several devices",
    "save_strategy": "",
    "hub_strategy": "",
}
"""Keys that change nothing here, and why."""

REFUSED: Mapping[str, str] = {
    "relora_cpu_offload": "what is merged is merged on the device",
    "jagged_restart_anneal_steps": "the rate does not fall before a restart; adapter.warm_up says how it rises again",
    "lisa_layers_attribute": "the layers are known from the model's family",
    "fp8": "training in fp8 is not here",
    "fp8_enable_fsdp_float8_all_gather": "training in fp8 is not here",
    "ebft": "no method ebft here",
    "diffusion": "no diffusion models here",
    "llmcompressor": "no pruning here",
    "gptq": "name the folder with quantised weights as the model",
    "gptq_groupsize": "name the folder with quantised weights as the model",
    "gptq_model_v1": "name the folder with quantised weights as the model",
    "quantize_moe_experts": "experts that are held as one weight are not quantised here",
    "activation_offloading": "activations stay on the device; train.gradient_checkpointing: true saves their memory",
    "layer_offloading": "layers stay on the device",
    "loss_watchdog_threshold": "a loss that is not finite stops the run; a plugin can stop it for another reason",
    "loss_watchdog_patience": "a loss that is not finite stops the run; a plugin can stop it for another reason",
    "use_eaft": "no loss eaft here; method.loss: dft and focal weight tokens by their probability too",
    "eaft_alpha": "no loss eaft here; method.loss: dft and focal weight tokens by their probability too",
    "eaft_k": "no loss eaft here; method.loss: dft and focal weight tokens by their probability too",
    "model_config": "the model's config is read as it is",
    "overrides_of_model_config": "the model's config is read as it is",
    "cls_model_config": "the model's config is read as it is",
    "model_quantization_config": "what a folder's own config says is read; see docs/guides/quantised-bases.md",
    "model_quantization_config_kwargs": "what a folder's own config says is read",
    "nvfp4_merge_aware": "ft merge RUN --to FORMAT measures what it wrote",
    "use_onebitllms": "no models of one bit here",
    "resize_token_embeddings_to_32x": "the vocabulary keeps its size",
    "use_swanlab": "no tracker of that name here",
    "swanlab_project": "no tracker of that name here",
    "swanlab_experiment_name": "no tracker of that name here",
    "swanlab_description": "no tracker of that name here",
    "swanlab_mode": "no tracker of that name here",
    "swanlab_log_completions": "no tracker of that name here",
    "swanlab_completion_log_interval": "no tracker of that name here",
    "swanlab_completion_max_buffer": "no tracker of that name here",
    "swanlab_workspace": "no tracker of that name here",
    "swanlab_log_model": "no tracker of that name here",
    "use_otel_metrics": "no tracker of that name here",
    "otel_metrics_host": "no tracker of that name here",
    "otel_metrics_port": "no tracker of that name here",
    "min_sample_len": "short rows train as others do",
    "lr_quadratic_warmup": "the warm-up is a straight line",
    "do_causal_lm_eval": "ft plugins list --kind evaluator shows what measures",
    "eval_causal_lm_metrics": "ft plugins list --kind evaluator shows what measures",
    "tensor_parallel_size": shared.DEVICES,
    "bnb_config_kwargs": "give the quantizer its options: quantization: {name: ..., ...}",
    "lora_modules_to_save": "a low-rank adapter trains no whole modules but the embeddings of added tokens",
}
"""Keys that nothing here can do, and what to do."""

PACKING = (
    "sample_packing_eff_est",
    "sample_packing_seq_len_multiplier",
    "sample_packing_group_size",
    "sample_packing_bin_size",
    "sample_packing_sequentially",
    "multipack_real_batches",
    "streaming_multipack_buffer_size",
)
"""How `sample_packing` fills its packs."""

UNTAKEN = {"drop_system_message": "system messages are read, too: take them out of the rows"}
"""What becomes of settings of a dataset that have no like here."""

COMPARED = frozenset({"llama3", "gemma", "gemma3", "qwen_25"})
"""Templates whose masks were held against the tool's: `tests/parity/axolotl`."""
PLAIN = frozenset(
    {"path", "type", "split", "name", "ds_type", "data_files", "field_messages", "message_property_mappings"}
)
"""Of a source: none of them says which turns train."""


def plain_chat(source: Any) -> bool:
    """Whether rows are conversations, of which the model's own turns train and nothing else is said."""
    return isinstance(source, dict) and source.get("type") == "chat_template" and source.keys() <= PLAIN
