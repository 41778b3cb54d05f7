"""Keys of axolotl that change nothing here, and keys that nothing here can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetooth_importer.tools import shared


def each(names: str, note: str) -> dict[str, str]:
    """The same note for each of some names, which stand with spaces between them."""
    return dict.fromkeys(names.split(), note)


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
    **each("dpo_use_liger_kernel dpo_padding_free batch_flattening", "rows are laid out by memory"),
    **each(
        """
        sage_attention large_head_attention flash_attn_d512 sdpa_varlen ring_attn_func heads_k_stride
        chunked_cross_entropy_num_chunks tiled_mlp_num_shards tiled_mlp_use_original_mlp expert_backend
        torch_compile_options moe_grouped_backend moe_dequant_chunk_size moe_bnb_fast deepcompile gc_steps
        gc_collect_steps torch_empty_cache_steps
        """,
        "kernels and loading are chosen for the machine; ft check says which",
    ),
    "pad_to_multiple_of": "padding never changes the result",
    "dataset_keep_in_memory": "rows are read as they are needed",
    "num_dataset_shards_to_save": "prepared data are kept in the folder FT_CACHE",
    "is_preprocess": "prepared data are kept in the folder FT_CACHE",
    "sample_packing_mp_start_method": shared.WORKERS,
    "pretrain_multipack_buffer_size": "windows of train.max_length are what pretrain trains",
    "pretraining_sample_concatenation": "windows of train.max_length are what pretrain trains",
    "auto_find_batch_size": "how many rows go through at once is decided by memory",
    "selective_checkpointing": "memory decides what is computed again",
    "embeddings_skip_upcast": "masters are kept in fp32",
    "fp32_norms": "masters are kept in fp32",
    "fp32_norm_classes": "masters are kept in fp32",
    "device": "hardware: auto takes the best device that is here",
    "max_memory": "memory is planned: ft check",
    "gpu_memory_limit": "memory is planned: ft check",
    "include_tokens_per_second": "metrics.jsonl has it",
    "include_tkps": "metrics.jsonl has it",
    "save_first_step": "",
    "total_supervised_tokens": "",
    "axolotl_config_path": "",
    "hf_mlflow_log_artifacts": "the artifact is in the run folder",
    "is_falcon_derived_model": "the family is known from the model's config",
    "is_qwen_derived_model": "the family is known from the model's config",
    "tokenizer_save_jinja_files": "the tokenizer is that of the model",
    "peft_autocast_adapter_dtype": "an adapter's masters are kept in fp32",
    "peft_ensure_weight_tying": "weights that are one stay one",
    "qlora_sharded_model_loading": "weights are read tensor by tensor",
    "merge_method": "ft merge RUN merges",
    "qgalore_proj_type": "it is of another optimizer",
    "dion_rank_multiple_of": "ranks are rounded up to whole numbers",
    **each("dion_lr dion_momentum dion_rank_fraction", "it is of the optimizer dion"),
}
"""Keys that change nothing here, and why."""

REFUSED: Mapping[str, str] = {
    "relora_cpu_offload": "what is merged is merged on the device",
    "jagged_restart_anneal_steps": "the rate does not fall before a restart; adapter.warm_up says how it rises again",
    "lisa_layers_attribute": "the layers are known from the model's family",
    "fp8_enable_fsdp_float8_all_gather": "weights are gathered in bf16",
    "ebft": "it is of rl: ebft",
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
    "dpo_use_weighting": "no loss weighs pairs by how likely the policy finds them",
    "trainer_cls": "code of the user's own does not run: a plugin brings a method, ft plugins new",
    "normalize_weight_scales": "weights stay as the model has them",
    "dynamic_checkpoint": "checkpoint.every says how often; Ctrl-C saves too",
    "shuffle_before_merging_datasets": "train.shuffle orders the rows of all sources together",
    **each("dataset_shard_num dataset_shard_idx", "a slice behind a path: rows.jsonl[:10%]"),
    **each("do_bench_eval bench_dataset bench_split", "ft plugins list --kind evaluator shows what measures"),
    **each(
        """
        lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model
        """,
        "ft plugins list --kind evaluator shows what measures",
    ),
    **each("use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks", "positions are those of the rows"),
    **each(
        """
        scaling_softmax scaling_softmax_factor scaling_softmax_bias
        """,
        "attention is computed as the model's config says",
    ),
    **each(
        """
        embedding_lr embedding_lr_scale lr_groups loraplus_lr_embedding lr_div_factor
        """,
        "all parameters have one rate, but for adapter.loraplus_ratio",
    ),
    **each("grokfast_alpha grokfast_lamb", "gradients are not filtered"),
    **each("lora_rank_pattern lora_alpha_pattern", "one rank and one alpha for all modules"),
    "peft_layer_replication": "layers stay as the model has them",
    "peft_trainable_token_indices": "adapter.train_tokens names tokens by their spelling",
    "relora_prune_method": "adapter.keep_state says how much of the optimizer's state stays",
    **each("mora use_mora mora_type", "no adapter of that kind; ft plugins list --kind adapter"),
    **each(
        """
        kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_beta kd_normalize_topk kd_online_server_base_url
        kd_online_topk kd_online_server kd_online_timeout kd_temperature_min
        """,
        "method distill learns from a teacher: ft plugins explain distill",
    ),
    **each(
        """
        nemo_gym_enabled nemo_gym_dir nemo_gym_auto_clone nemo_gym_config_paths nemo_gym_head_port
        nemo_gym_server_timeout nemo_gym_verify_timeout nemo_gym_datasets nemo_gym_run_timeout
        nemo_gym_auto_start nemo_gym_model_name nemo_gym_multi_turn nemo_gym_max_turns
        """,
        "set method.environment: {name: nemogym, url: HOST:PORT}, over a server that runs",
    ),
    **each(
        """
        hatchery quantization save_compressed recipe
        """,
        "ft merge RUN --to FORMAT writes fewer bits; other services have no place here",
    ),
    **each(
        """
        use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online
        comet_experiment_config swanlab_api_key swanlab_web_host swanlab_api_host swanlab_lark_webhook_url
        swanlab_lark_secret
        """,
        "no tracker of that name here",
    ),
    **each(
        """
        generation_max_new_tokens generation_top_p generation_top_k generation_prompt_ratio generation_do_sample
        """,
        "ft chat RUN samples answers",
    ),
    **each(
        """
        gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature
        """,
        "ft chat RUN samples answers",
    ),
    **each(
        """
        world_size ddp_broadcast_buffers fsdp_final_state_dict_type ray_run_name resources_per_worker
        expert_parallel_backend expert_parallel_num_rdma_bytes expert_parallel_fallback_on_unsupported
        """,
        shared.DEVICES,
    ),
    **each(
        """
        qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_quant qgalore_proj_bits
        qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj qgalore_queue_size
        """,
        "optimizer: galore or galore_8bit has rank, scale and update_every",
    ),
    **each(
        """
        nonexpert_quantization dsv4_fp8_nonexpert_mode dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel
        dsv4_bf16_all gemma4_fp8_nonexpert gemma4_nf4_nonexpert nvfp4_merge_aware_start_step dense_mixer
        """,
        "weights are stored as quantization says, all linear ones alike",
    ),
    "mean_resizing_embeddings": "embeddings of added tokens begin as the mean of all others",
    "shrink_embeddings": "the vocabulary keeps its size",
    "fix_untrained_tokens": "the vocabulary's embeddings stay as they are",
    "eval_sequence_len": "held-out rows have the bound train.max_length",
    "max_prompt_len": "a prompt is cut only where it does not fit train.max_length",
    "dataloader_drop_last": "the last rows of an epoch make a smaller step",
    "chat_template_kwargs": "data.renderer: {name: jinja, arguments: {...}}",
    "processor_kwargs": "data.processor: {name: transformers, image: {...}}",
    "image_size": "data.processor: {name: transformers, image: {...}}",
    "image_resize_algorithm": "data.processor: {name: transformers, image: {...}}",
    "role_boundaries": "the renderer knows where turns begin",
    "spectrum_top_fraction": "name them: adapter: {name: freeze, unfrozen_parameters: [...]}",
    "spectrum_model_name": "name them: adapter: {name: freeze, unfrozen_parameters: [...]}",
    "hub_revision": shared.HUB,
    "preprocess_iterable": "rows are read as they are needed",
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
"""Notes on settings of a dataset that have no counterpart here."""

COMPARED = frozenset({"llama3", "gemma", "gemma3", "qwen_25"})
"""Templates whose masks were held against the tool's: `tests/parity/axolotl`."""
PLAIN = frozenset(
    {"path", "type", "split", "name", "ds_type", "data_files", "field_messages", "message_property_mappings"}
)
"""Of a source: none of them says which turns train."""


def plain_chat(source: Any) -> bool:
    """Whether rows are conversations, of which the model's own turns train and nothing else is said."""
    return isinstance(source, dict) and source.get("type") == "chat_template" and source.keys() <= PLAIN
