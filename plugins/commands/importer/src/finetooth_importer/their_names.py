"""What other tools call things: settings of axolotl, TRL, LLaMA-Factory and their like, and the setting that is meant
here; and methods, adapters, optimizers of the field that nothing here brings.

The core reads this module through the entry point group `finetooth.elsewhere`, to say what to write in place of such a
name; nothing is read under these names. A name means the same at the top of a recipe and inside a section.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Meant(NamedTuple):
    """What a name from elsewhere stands for.

    Attributes:
        setting: path of the setting that is meant; empty if there is none.
        advice: what to do, where naming the setting is not enough.
    """

    setting: str
    advice: str = ""


_BATCH = "train.batch_size is all rows of an optimizer step; train.micro_batch_tokens bounds what is computed at once"
_TOKENS = "the tokenizer comes with the model; model.added_tokens and model.special_tokens change it"
_COLUMNS = "give the format its columns, data.format: {name: ..., column: ...}; ft plugins explain NAME lists them"
_GOES_ON = "ft resume RUN continues a run"
_SORTED = "leave it out: rows of a step are laid out by their length anyway"
_EXPORT = "list what to write once training has ended: export: [...]; ft plugins list --kind exporter"
_TRACKERS = "name what shows or records the run in trackers: [...]; ft plugins list --kind tracker"
_HELD_OUT = "set data.eval to a file, or to {fraction: 0.05} of the training rows"
_PACKING = "rows are laid out without padding where the model allows it; see packing in backend"
_CHECKPOINTING = "set train.gradient_checkpointing: true, false or auto"
_TRAIN_ON = "set method.train_on: all (true) or assistant (false)"
_CODE = (
    "it is an option of a loader: once you have read the code, "
    "model: {name: ..., loader: {name: ..., trust_remote_code: true}}"
)
_REVISION = "it is an option of a loader: model: {name: ..., loader: {name: ..., revision: ...}}"

SETTINGS: Mapping[str, Meant] = {
    # the model
    "model_name_or_path": Meant("model"),
    "model_name": Meant("model"),
    "base": Meant("model"),
    "model_id": Meant("model"),
    "pretrained_model_name_or_path": Meant("model"),
    "base_model_config": Meant("model"),
    "checkpoint_path": Meant("model"),
    "adapter_name_or_path": Meant("adapter.resume_from", "it takes a run, or an adapter's folder, and continues it"),
    "lora_model_dir": Meant("adapter.resume_from", "it takes a run, or an adapter's folder, and continues it"),
    "revision": Meant("model.loader.revision", _REVISION),
    "model_revision": Meant("model.loader.revision", _REVISION),
    "revision_of_model": Meant("model.loader.revision", _REVISION),
    "trust_remote_code": Meant("model.loader.trust_remote_code", _CODE),
    "tokenizer": Meant("model.special_tokens", _TOKENS),
    "tokenizer_config": Meant("model.special_tokens", _TOKENS),
    "tokenizer_name": Meant("model.special_tokens", _TOKENS),
    "tokenizer_name_or_path": Meant("model.special_tokens", _TOKENS),
    "special_tokens": Meant("model.special_tokens", "set model.special_tokens, with model: {name: ...}"),
    "eos_token": Meant("model.special_tokens"),
    "pad_token": Meant("model.special_tokens"),
    "tokens": Meant("model.added_tokens", "set model.added_tokens, with model: {name: ...}"),
    "new_special_tokens": Meant("model.added_tokens"),
    "add_special_tokens": Meant("model.added_tokens"),
    "added_tokens_overrides": Meant(
        "model.added_tokens_overrides", "set model.added_tokens_overrides, with model: {name: ...}"
    ),
    "load_in_4bit": Meant("quantization"),
    "load_in_8bit": Meant("quantization"),
    "quantization_bit": Meant("quantization"),
    "quantization_method": Meant("quantization"),
    "bnb_4bit_quant_type": Meant("quantization"),
    "attn_implementation": Meant("backend.attention"),
    "flash_attn": Meant("backend.attention"),
    "flash_attention": Meant("backend.attention"),
    "use_flash_attention_2": Meant("backend.attention"),
    "sdp_attention": Meant("backend.attention"),
    "eager_attention": Meant("backend.attention"),
    "device": Meant("hardware"),
    "gpu": Meant("hardware"),
    "device_map": Meant("hardware"),
    "accelerator": Meant("hardware"),
    "use_cpu": Meant("hardware"),
    # the data
    "dataset": Meant("data.train"),
    "dataset_name": Meant("data.train"),
    "dataset_path": Meant("data.train"),
    "dataset_mixture": Meant("data.train", "list the files under data.train; data.mix says how much of each"),
    "train_dataset": Meant("data.train"),
    "train_data": Meant("data.train"),
    "train_file": Meant("data.train"),
    "train_files": Meant("data.train"),
    "pretraining_dataset": Meant(
        "data.train", "list the files under data.train, and set method to one that learns from plain text"
    ),
    "eval_dataset": Meant("data.eval"),
    "eval_data": Meant("data.eval"),
    "eval_file": Meant("data.eval"),
    "validation_file": Meant("data.eval"),
    "test_file": Meant("data.eval"),
    "test_datasets": Meant("data.eval", "list the files under data.eval"),
    "val_size": Meant("data.eval", _HELD_OUT),
    "test_size": Meant("data.eval", _HELD_OUT),
    "eval_ratio": Meant("data.eval", _HELD_OUT),
    "max_samples": Meant("data.max_rows"),
    "max_train_samples": Meant("data.max_rows"),
    "mix_strategy": Meant("data.mix"),
    "interleave_probs": Meant("data.mix"),
    "dataset_exact_deduplication": Meant("data.deduplicate"),
    "template": Meant("data.renderer"),
    "prompt_template": Meant("data.renderer"),
    "chat_template": Meant("data.renderer", "set data.renderer"),
    "chat_template_jinja": Meant("data.renderer", "set data.renderer to one that takes a template"),
    "chat_template_kwargs": Meant(
        "data.renderer.arguments", "give the renderer its arguments: data.renderer: {name: ..., arguments: {...}}"
    ),
    "default_system": Meant("data.format.system"),
    "default_system_message": Meant("data.format.system"),
    "system_prompt": Meant("data.format.system"),
    "dataset_type": Meant("data.format"),
    "dataset_format": Meant("data.format"),
    "formatting": Meant("data.format"),
    "dataset_text_field": Meant("data.format.column", _COLUMNS),
    "text_column": Meant("data.format.column", _COLUMNS),
    "field_messages": Meant("data.format.column", _COLUMNS),
    "processor_kwargs": Meant("data.processor", "set data.processor: {name: auto, image: {...}}"),
    "image_max_pixels": Meant("data.processor"),
    "preprocessing_num_workers": Meant("data.workers"),
    "dataloader_num_workers": Meant("data.workers"),
    "num_workers": Meant("data.workers"),
    "num_proc": Meant("data.workers"),
    "dataset_prepared_path": Meant(
        "data.cache", "prepared data are kept in the folder that the environment variable FT_CACHE names"
    ),
    "tokenized_path": Meant(
        "data.cache", "prepared data are kept in the folder that the environment variable FT_CACHE names"
    ),
    "overwrite_cache": Meant("data.cache"),
    "buffer_size": Meant("method.shuffle_buffer"),
    "streaming": Meant("method.streaming"),
    "train_on_inputs": Meant("method.train_on", _TRAIN_ON),
    "train_on_prompt": Meant("method.train_on", _TRAIN_ON),
    "assistant_only_loss": Meant("method.train_on", "set method.train_on: assistant (true) or all (false)"),
    "completion_only_loss": Meant("method.train_on", "set method.train_on: assistant (true) or all (false)"),
    "mask_history": Meant("method.train_on", "set method.train_on: last"),
    "roles_to_train": Meant(
        "method.train_on", "set method.train_on, give the format train_roles, or mark messages in the data"
    ),
    # lengths and layout
    "cutoff_len": Meant("train.max_length"),
    "max_seq_length": Meant("train.max_length"),
    "max_seq_len": Meant("train.max_length"),
    "seq_length": Meant("train.max_length"),
    "seq_len": Meant("train.max_length"),
    "sequence_length": Meant("train.max_length"),
    "model_max_length": Meant("train.max_length"),
    "context_length": Meant("train.max_length"),
    "block_size": Meant("train.max_length"),
    "truncation": Meant("train.excess_length"),
    "packing": Meant("backend.packing"),
    "neat_packing": Meant("backend.packing"),
    "sample_packing": Meant("backend.packing", _PACKING),
    "eval_sample_packing": Meant("backend.packing", _PACKING),
    "pad_to_sequence_len": Meant("backend.packing", _PACKING),
    "group_by_length": Meant("", _SORTED),
    # how long, in which portions
    "num_epoch": Meant("train.epochs"),
    "n_epochs": Meant("train.epochs"),
    "max_epochs": Meant("train.epochs"),
    "total_steps": Meant("train.max_steps"),
    "num_train_steps": Meant("train.max_steps"),
    "max_train_steps": Meant("train.max_steps"),
    "num_steps": Meant("train.max_steps"),
    "iterations": Meant("train.max_steps"),
    "iters": Meant("train.max_steps"),
    "train_batch_size": Meant("train.batch_size"),
    "global_batch_size": Meant("train.batch_size"),
    "total_batch_size": Meant("train.batch_size"),
    "micro_batch_size": Meant("train.batch_size", _BATCH),
    "per_device_train_batch_size": Meant("train.batch_size", _BATCH),
    "per_gpu_train_batch_size": Meant("train.batch_size", _BATCH),
    "gradient_accumulation_steps": Meant(
        "train.batch_size",
        "it follows from train.batch_size and train.micro_batch_tokens; set the former to the rows of an optimizer "
        "step",
    ),
    "gradient_accumulation": Meant("train.batch_size", _BATCH),
    "eval_batch_size": Meant("train.micro_batch_tokens", "rows to score are laid out by train.micro_batch_tokens too"),
    "per_device_eval_batch_size": Meant(
        "train.micro_batch_tokens", "rows to score are laid out by train.micro_batch_tokens too"
    ),
    "random_seed": Meant("train.seed"),
    "data_seed": Meant("train.seed"),
    "manual_seed": Meant("train.seed"),
    "shuffle_dataset": Meant("train.shuffle"),
    "shuffle_merged_datasets": Meant("train.shuffle", "set train.shuffle"),
    "bf16": Meant("train.precision", "set train.precision: bf16"),
    "fp16": Meant("train.precision", "set train.precision: fp16"),
    "fp32": Meant("train.precision", "set train.precision: fp32"),
    "pure_bf16": Meant("train.precision", "set train.precision: bf16"),
    "tf32": Meant("backend.tf32", "set backend.tf32: true"),
    "deterministic": Meant("backend.deterministic"),
    "full_determinism": Meant("backend.deterministic", "set backend.deterministic: true"),
    "dtype": Meant("train.precision"),
    "torch_dtype": Meant("train.precision"),
    "mixed_precision": Meant("train.precision"),
    "use_gradient_checkpointing": Meant("train.gradient_checkpointing"),
    "activation_checkpointing": Meant("train.gradient_checkpointing"),
    "enable_activation_checkpointing": Meant("train.gradient_checkpointing"),
    "disable_gradient_checkpointing": Meant("train.gradient_checkpointing", _CHECKPOINTING),
    "gradient_checkpointing_kwargs": Meant("train.gradient_checkpointing", _CHECKPOINTING),
    "gradient_clipping": Meant("train.max_grad_norm"),
    "gradient_clip_val": Meant("train.max_grad_norm"),
    "clip_grad_norm": Meant("train.max_grad_norm"),
    "neftune_noise_alpha": Meant("train.embedding_noise"),
    "neftune_alpha": Meant("train.embedding_noise"),
    "grad_clip": Meant("train.max_grad_norm"),
    # optimizer and schedule
    "lr": Meant("optimizer.learning_rate"),
    "base_lr": Meant("optimizer.learning_rate"),
    "learning_rate": Meant("optimizer.learning_rate"),
    "optim": Meant("optimizer"),
    "optimizer_type": Meant("optimizer"),
    "optim_args": Meant("optimizer", "give the optimizer its options: optimizer: {name: ..., ...}"),
    "weight_decay": Meant("optimizer.weight_decay"),
    "adam_beta1": Meant("optimizer.betas", "set optimizer.betas: [BETA1, BETA2]"),
    "adam_beta2": Meant("optimizer.betas", "set optimizer.betas: [BETA1, BETA2]"),
    "beta1": Meant("optimizer.betas", "set optimizer.betas: [BETA1, BETA2]"),
    "beta2": Meant("optimizer.betas", "set optimizer.betas: [BETA1, BETA2]"),
    "adam_epsilon": Meant("optimizer.eps"),
    "adam_eps": Meant("optimizer.eps"),
    "lr_scheduler_type": Meant("schedule"),
    "lr_scheduler_kwargs": Meant("schedule", "give the schedule its options: schedule: {name: ..., ...}"),
    "lr_scheduler_args": Meant("schedule", "give the schedule its options: schedule: {name: ..., ...}"),
    "scheduler": Meant("schedule"),
    "warmup_steps": Meant("schedule.warmup_steps"),
    "num_warmup_steps": Meant("schedule.warmup_steps"),
    "lr_warmup_steps": Meant("schedule.warmup_steps"),
    "warmup": Meant("schedule.warmup_steps"),
    "warmup_ratio": Meant("schedule.warmup_ratio"),
    "min_lr": Meant("schedule.min_ratio", "set schedule.min_ratio, a share of the full rate"),
    "min_lr_ratio": Meant("schedule.min_ratio"),
    "cosine_min_lr_ratio": Meant("schedule.min_ratio"),
    "lr_scheduler_num_cycles": Meant("schedule.cycles"),
    # the adapter
    "r": Meant("adapter.rank"),
    "rank": Meant("adapter.rank"),
    "lora_r": Meant("adapter.rank"),
    "lora_rank": Meant("adapter.rank"),
    "lora_dim": Meant("adapter.rank"),
    "lora_alpha": Meant("adapter.alpha"),
    "lora_dropout": Meant("adapter.dropout"),
    "target_modules": Meant("adapter.targets"),
    "lora_target": Meant("adapter.targets"),
    "lora_target_modules": Meant("adapter.targets"),
    "lora_target_linear": Meant("adapter.targets", "set adapter.targets: all-linear"),
    "lora_attn_modules": Meant("adapter.targets"),
    "use_rslora": Meant("adapter.rslora"),
    "peft_use_rslora": Meant("adapter.rslora"),
    "use_dora": Meant("adapter.dora"),
    "peft_use_dora": Meant("adapter.dora"),
    "finetuning_type": Meant("adapter"),
    "use_peft": Meant("adapter"),
    "peft_config": Meant("adapter"),
    "peft_type": Meant("adapter"),
    "freeze_trainable_layers": Meant("adapter.layers"),
    "num_layer_trainable": Meant("adapter.layers"),
    "unfrozen_parameters": Meant("adapter.unfrozen_parameters"),
    "freeze_vision_tower": Meant("adapter.freeze_mm_modules"),
    # the method
    "rl": Meant("method", "set method"),
    "stage": Meant("method"),
    "trainer": Meant("method"),
    "trainer_type": Meant("method"),
    "algorithm": Meant("method"),
    "training_type": Meant("method"),
    "beta": Meant("method.beta"),
    "dpo_beta": Meant("method.beta"),
    "pref_beta": Meant("method.beta"),
    "kto_beta": Meant("method.beta"),
    "orpo_alpha": Meant("method.beta"),
    "loss_type": Meant("method.loss"),
    "pref_loss": Meant("method.loss"),
    **dict.fromkeys(
        ("max_tokens", "max_new_tokens", "max_response_length", "response_length"),
        Meant("method.max_completion_length"),
    ),
    "simpo_gamma": Meant("method.gamma"),
    "dpo_label_smoothing": Meant("method.label_smoothing"),
    "kto_chosen_weight": Meant("method.desirable_weight"),
    "kto_desirable_weight": Meant("method.desirable_weight"),
    "kto_rejected_weight": Meant("method.undesirable_weight"),
    "kto_undesirable_weight": Meant("method.undesirable_weight"),
    "ref_model": Meant("method.reference"),
    "sync_ref_model": Meant("method.reference.sync_every"),
    "ref_model_sync_steps": Meant("method.reference.sync_every"),
    "ref_model_mixup_alpha": Meant("method.reference.mix"),
    # measuring, keeping, telling
    "eval_strategy": Meant("evaluate.every"),
    "evaluation_strategy": Meant("evaluate.every"),
    "eval_every": Meant("evaluate.every"),
    "eval_interval": Meant("evaluate.every"),
    "evals_per_epoch": Meant("evaluate.every"),
    "eval_on_start": Meant("evaluate.before"),
    "compute_metrics": Meant("evaluate.evaluators"),
    "metrics": Meant("evaluate.evaluators"),
    "save_strategy": Meant("checkpoint.every"),
    "save_every": Meant("checkpoint.every"),
    "save_interval": Meant("checkpoint.every"),
    "saves_per_epoch": Meant("checkpoint.every"),
    "checkpointing_steps": Meant("checkpoint.every"),
    "save_total_limit": Meant("checkpoint.keep_last"),
    "load_best_model_at_end": Meant("checkpoint.select_on"),
    "metric_for_best_model": Meant("checkpoint.keep_best.metric"),
    "greater_is_better": Meant("checkpoint.keep_best.mode"),
    "resume_from_checkpoint": Meant("", _GOES_ON),
    "auto_resume_from_checkpoints": Meant("", _GOES_ON),
    **dict.fromkeys(
        ("merge_lora", "merge_adapter", "merge_precision", "merge_after_training", "export_dir", "save_method"),
        Meant("export", _EXPORT),
    ),
    "register": Meant(
        "export", "register what was trained: export: [{name: registry, model: ..., channel: candidate}]"
    ),
    "corpus": Meant("data.train"),
    "select_on": Meant("checkpoint.select_on"),
    "customer_data": Meant("data.classification"),
    "report_to": Meant("trackers", _TRACKERS),
    "logger": Meant("trackers", _TRACKERS),
    "logging": Meant("trackers", _TRACKERS),
    "use_tensorboard": Meant("trackers", _TRACKERS),
    "use_wandb": Meant("trackers", _TRACKERS),
    "wandb_project": Meant("trackers", _TRACKERS),
    "logging_dir": Meant("trackers.folder", _TRACKERS),
    "logging_steps": Meant("trackers.every", "give a tracker its option: trackers: [{name: ..., every: 10}]"),
    "log_every": Meant("trackers.every", "give a tracker its option: trackers: [{name: ..., every: 10}]"),
    "run_name": Meant("output"),
    "output_path": Meant("output"),
    "output_folder": Meant("output"),
    "save_dir": Meant("output"),
    "checkpoint_dir": Meant("output"),
}
"""Settings as other tools call them."""

_PAIRS = "it compares answers that it samples two by two; what is here takes given ones, or rewards each by itself"
_TEACHER = "under that name; methods with a teacher are here, see ft plugins list --kind method"

ABSENT: Mapping[str, Mapping[str, str]] = {
    "method": {
        **dict.fromkeys(("online_dpo", "xpo", "nash_md"), _PAIRS),
        "minillm": _TEACHER,
    },
    "adapter": dict.fromkeys(
        ("adalora", "loftq", "loha", "lokr", "longlora", "p_tuning", "prefix_tuning", "prompt_tuning"),
        "what is here adds to linear modules, turns their inputs or scales them",
    ),
    "optimizer": {
        **dict.fromkeys(("lamb", "shampoo", "soap"), "a plugin can bring it"),
    },
    "hardware": dict.fromkeys(("tpu", "mps", "xpu", "npu"), "a plugin can bring the device"),
    "tracker": dict.fromkeys(("comet_ml", "swanlab", "aim"), "a plugin can bring it"),
}  # fmt: skip
"""Names of the field that no package here brings, by kind, and why: they are spelled right."""
