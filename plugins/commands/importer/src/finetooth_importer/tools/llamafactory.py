"""LLaMA-Factory's YAML (version 0.9; transformers' TrainingArguments and its own arguments, with their defaults)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from finetooth_importer import packing, tables
from finetooth_importer.account import Account, number
from finetooth_importer.tools import exports, llamafactory_datasets, low_memory, shared, watched

STAGES: Mapping[str, str] = {"sft": "sft", "pt": "pretrain", "rm": "rm", "dpo": "dpo", "kto": "kto"}
LOSSES: Mapping[str, str] = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo", "kto_pair": "kto_pair"}

TABLES = tables.of("llamafactory")
TEMPLATES: Mapping[str, Any] = TABLES["templates"]
"""Templates by the renderers that write the same markup, with the options under which they do: there answers of earlier
turns keep their reasoning, or their empty think block. The tokens and labels of each were recorded with LLaMA-Factory
0.9.5 itself: a test holds ours against them."""

FORMER_NAMES: Mapping[str, str] = {"gpt": "gpt_oss"}
"""Templates by what they were called before LLaMA-Factory 0.9.5."""

DIFFERENCES: Mapping[str, str] = TABLES["differences"]
"""What renders or trains otherwise there, by the tokens and labels of LLaMA-Factory 0.9.5 and ours."""

NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])
PARALLEL = TABLES["parallel"]


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of LLaMA-Factory's."""
    return "model_name_or_path" in keys and bool({"stage", "finetuning_type", "template", "cutoff_len"} & keys.keys())


def read(account: Account, folder: Path | None = None) -> None:
    """Take the keys of a LLaMA-Factory configuration.

    Args:
        folder: where its `dataset_info.json` is looked for, in addition to `dataset_dir`.
    """
    account.take("model_name_or_path", "model.name")
    if account.get("model_revision", "main") != "main":
        account.set("model.loader.name", "transformers")
        account.take("model_revision", "model.loader.revision", str)
    account.passes("model_revision", "it is the default")
    account.passes("trust_remote_code", "code of a repository runs only with model.loader.trust_remote_code")
    _method(account)
    _tokens(account)
    _data(account, folder)
    _media(account)
    _adapter(account)
    shared.without_dropout(account, "rm")
    note = shared.cut(account, "truncate_turns") if account.get("stage") != "pt" else ""
    account.take("cutoff_len", "train.max_length", int, note=note)
    account.default("cutoff_len", "train.max_length", 2048, note)
    shared.extent(account)
    packing.packed(account, "neat_packing" if account.get("neat_packing") else "packing", "neat_packing", "packing")
    account.passes("data_seed", "one seed decides everything random")
    _optimizer(account)
    shared.schedule(account, "lr_scheduler_type", "linear")
    shared.precision(account)
    if account.get("disable_gradient_checkpointing"):
        account.take("disable_gradient_checkpointing", "train.gradient_checkpointing", value=False)
    account.passes(
        "disable_gradient_checkpointing", "finetooth decides it by memory, unless train.gradient_checkpointing is set"
    )
    shared.checkpointing(account)
    watched.saving(account)
    watched.records(account)
    if account.has("export_dir") and not account.has("export_quantization_bit"):
        where = exports.add(account, "safetensors")
        account.covered("export_dir", "export", f"{where}, after training; there a separate command does it")
    shared.without_effect(account, NO_EFFECT)
    for key in PARALLEL:
        account.refuse(key, shared.DEVICES, unless=1)
    if account.get("mixed_precision") in ("bf16", "fp16"):
        account.take("mixed_precision", "train.precision")
    account.passes("mixed_precision", "it is off")
    shared.machines(account)
    account.finish(REFUSED)


def _method(account: Account) -> None:
    stage = str(account.get("stage", "sft"))
    if stage in STAGES:
        method = STAGES[stage]
        loss = account.get("pref_loss", "sigmoid")
        if stage == "dpo" and loss in ("orpo", "simpo"):
            method = str(loss)
            account.covered("pref_loss", "method")
        account.take("stage", "method", value=method)
        account.default("stage", "method", method)
        if method == "dpo" and loss in LOSSES:
            account.take("pref_loss", "method.loss", value=LOSSES[str(loss)])
            if number(account.get("dpo_label_smoothing", 0)):
                account.set("method.loss.name", LOSSES[str(loss)])
                account.take("dpo_label_smoothing", "method.loss.label_smoothing", number)
            account.passes("dpo_label_smoothing", "it is 0")
        account.passes("pref_loss", f"method {method} has its own")
        account.take("pref_beta", "method.beta", number)
        weight = number(account.get("pref_ftx", 0))
        if method == "dpo" and weight:
            named = account.recipe["method"]
            chosen = named.pop("loss", "sigmoid") if isinstance(named, dict) else "sigmoid"
            account.set("method.losses", [chosen, {"name": "sft", "weight": weight}])
            account.covered("pref_ftx", "method.losses")
        account.refuse("pref_ftx", "only method dpo adds a supervised loss: method.losses", unless=0)
        account.take("ref_model", "method.reference.policy", str)
        account.take("simpo_gamma", "method.gamma", number)
        account.take("kto_chosen_weight", "method.desirable_weight", number)
        account.take("kto_rejected_weight", "method.undesirable_weight", number)
        if stage == "sft" and account.get("use_dft_loss"):
            account.take("use_dft_loss", "method.loss", value="dft")
        if stage in ("sft", "pt") and number(account.get("label_smoothing_factor", 0)):
            account.take("label_smoothing_factor", "method.loss.label_smoothing", number)
            account.set("method.loss.name", "smoothed_cross_entropy")
        account.passes(
            "use_dft_loss", "the tool reads it only in stage sft" if account.get("use_dft_loss") else "it is off"
        )
        smoothed = number(account.get("label_smoothing_factor", 0))
        account.passes("label_smoothing_factor", f"the tool reads none in stage {stage}" if smoothed else "it is 0")
        if stage == "sft" and account.get("train_on_prompt"):
            account.take("train_on_prompt", "method.train_on", value="all")
            account.set("method.train_markup", True)  # there what opens a message trains too
        if stage == "sft" and account.get("mask_history"):
            account.take("mask_history", "method.train_on", value="last")
        account.passes(
            "train_on_prompt", "the tool reads it in stage sft" if account.get("train_on_prompt") else "it is off"
        )
        account.passes("mask_history", f"method {method} trains only answers")
    elif stage == "ppo":
        account.take("stage", "method", value="ppo")
        if account.has("reward_model"):
            judge = {"name": "model", "path": account.get("reward_model")}
            account.take("reward_model", "method.rewards", value=[judge], note="a run of method rm, or its folder")
        account.take("max_new_tokens", "method.max_completion_length", int)
        account.take("ppo_epochs", "method.num_iterations", int)
        account.take("top_p", "method.top_p", number)
        account.take("top_k", "method.top_k", int)
        account.take("temperature", "method.temperature", number)
        account.take("repetition_penalty", "method.repetition_penalty", number)
        account.take("ppo_target", "method.kl_target", number)
        account.take("ppo_whiten_rewards", "method.whiten_rewards")
        for key in ("ppo_buffer_size", "ppo_score_norm", "reward_model_type"):
            account.passes(key, "a batch of rollouts is a step's prompts; see ft plugins explain ppo")
    else:
        account.set("method", stage)  # never another one in its place
        account.refuse("stage", f"no method for {stage!r} here; ft plugins list --kind method shows them")


PIXELS: Mapping[str, tuple[str, Any]] = TABLES["pixels"]
"""Bounds of what is seen: ours, and the default there."""


def _media(account: Account) -> None:
    """How large pictures become; processors of Qwen's kind have such bounds, and where none is said LLaMA-Factory's
    are smaller than theirs."""
    template = str(account.get("template"))
    bounded = re.match(r"qwen.*(vl|omni)", template) or (template[:7] == "qwen3_5" and any(map(account.has, PIXELS)))
    for key, (setting, default) in PIXELS.items():
        if bounded:
            account.take(key, f"data.processor.{setting}", number)
            account.default(key, f"data.processor.{setting}", default)
        account.refuse(key, f"set data.processor.{setting.partition('.')[0]} by the names of the model's own processor")
    if bounded:
        account.set("data.processor.name", "transformers")


def _tokens(account: Account) -> None:
    """Tokens that the vocabulary lacks."""
    added = [
        *({"token": token, "special": False} for token in _names(account.get("add_tokens"))),
        *_names(account.get("add_special_tokens")),
    ]
    if added:
        account.set("model.added_tokens", added)
    for key in ("add_tokens", "add_special_tokens"):
        account.covered(key, "model.added_tokens")
    account.passes("resize_vocab", "model.added_tokens has its embeddings; each is trained")


def _names(value: Any) -> list[str]:
    return (
        [part.strip() for part in value.split(",")] if isinstance(value, str) else [str(part) for part in value or []]
    )


def _data(account: Account, folder: Path | None) -> None:
    listed = llamafactory_datasets.listed(account, folder)
    for key, setting in (("dataset", "data.train"), ("eval_dataset", "data.eval")):
        if not account.has(key):
            continue
        names = _names(account.get(key))
        sources = [llamafactory_datasets.source(account, f"{key}.{name}", name, listed) for name in names]
        unknown = [name for name in names if listed is not None and name not in listed[0]]
        note = ""
        if listed is None:
            note = "a name of dataset_info.json, which is not in this folder: put the rows' own path in its place"
        elif unknown:
            note = f"{', '.join(unknown)} is not in dataset_info.json: put the rows' own path in its place"
        account.take(key, setting, value=sources if len(sources) > 1 else sources[0], note=note)
    account.passes("dataset_dir", "the recipe has the rows' own paths")
    account.take("max_samples", "data.max_rows", int)
    if number(account.get("val_size", 0)):
        share = number(account.get("val_size"))
        if share < 1:
            account.take("val_size", "data.eval", value={"fraction": share})
        else:
            account.refuse("val_size", "held-out rows are a share: data.eval: {fraction: 0.05}, or a file")
    account.passes("val_size", "no rows are held out")
    template = str(account.get("template"))
    template = FORMER_NAMES.get(template, template)
    if template in TEMPLATES:
        note = DIFFERENCES.get(template, "")
        account.take("template", "data.renderer", value=TEMPLATES[template], note=note)
        account.compared = True
    else:
        account.passes("template", "the renderer of the model's family writes it; ft data preview shows it")
    if account.has("default_system"):
        account.take("default_system", "data.format.system")
        account.set("data.format.name", "instruction")
    if template == "gpt_oss":
        account.refuse("enable_thinking", "data.renderer.reasoning_effort: low is the least thinking", unless=True)
    elif account.get("enable_thinking") is False and {"thinking", "keep_reasoning"} & set(TEMPLATES.get(template, ())):
        account.take("enable_thinking", "data.renderer.thinking", value=False)
    account.passes("enable_thinking", "thinking is written where rows have it")
    if account.get("streaming") and account.recipe.get("method") == "pretrain":
        account.take("streaming", "method.streaming")
    account.passes("streaming", "rows are read as they are needed")
    account.refuse("mix_strategy", "data.mix sets the share of each source", unless="concat")
    account.passes("buffer_size", "rows are read as they are needed")
    account.refuse("rope_scaling", "set model.loader.rope_scaling, whose factor is cutoff_len by the model's positions")
    account.refuse("interleave_probs", "data.mix sets the share of each source")


def _adapter(account: Account) -> None:
    kind = str(account.get("finetuning_type", "lora"))
    if kind == "lora":
        account.take("finetuning_type", "adapter", value="lora")
        account.default("finetuning_type", "adapter", "lora")
        rank = account.whole("lora_rank", 8)
        account.take("lora_rank", "adapter.rank", int)
        account.default("lora_rank", "adapter.rank", 8)
        account.take("lora_alpha", "adapter.alpha", number)
        account.default("lora_alpha", "adapter.alpha", 2 * rank)
        account.take("lora_dropout", "adapter.dropout", number)
        targets = account.get("lora_target", "all")
        if targets == "all":
            account.take("lora_target", "adapter.targets", value="all-linear")
        else:
            account.take("lora_target", "adapter.targets", _names)
        account.take("use_rslora", "adapter.rslora")
        account.take("use_dora", "adapter.dora")
        account.take("loraplus_lr_ratio", "adapter.loraplus_ratio", number)
        if account.get("pissa_init"):
            account.take("pissa_init", "adapter.init", value="pissa")
            if account.whole("pissa_iter", 16) > 0:
                account.take("pissa_iter", "adapter.svd_iterations", int)
                account.default("pissa_iter", "adapter.svd_iterations", 16)
    elif kind == "oft":
        account.take("finetuning_type", "adapter", value="oft")
        account.take("oft_block_size", "adapter.block_size", int)
        if account.get("oft_target", "all") == "all":
            account.take("oft_target", "adapter.targets", value="all-linear")
        account.take("oft_target", "adapter.targets", _names)
        account.refuse("oft_rank", "set adapter.block_size: inputs of a block, not the number of blocks", unless=0)
    elif kind == "freeze":
        account.take("finetuning_type", "adapter", value="freeze")
        account.take("freeze_trainable_layers", "adapter.layers", int)
        account.default("freeze_trainable_layers", "adapter.layers", 2)
        account.refuse("freeze_trainable_modules", "name them: adapter.unfrozen_parameters", unless="all")
    elif kind == "full":
        account.take("finetuning_type", "adapter", value="full")
    else:
        account.refuse("finetuning_type", f"no adapter {kind!r} here; ft plugins list --kind adapter shows them")
    if kind == "full" and account.get("freeze_vision_tower", True) and account.has("freeze_vision_tower"):
        account.take("freeze_vision_tower", "adapter.freeze_mm_modules", value=True)
    for key in ("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"):
        account.passes(key, "the image encoder is frozen" if kind == "full" else "an adapter trains decoder layers")
    if kind in ("lora", "oft"):
        account.take("adapter_name_or_path", "adapter.resume_from", _one)
    else:
        account.refuse("adapter_name_or_path", "name that folder as the model: ft merge RUN makes one")
    account.passes("create_new_adapter", "training continues with the adapter that is named")
    account.passes("pissa_convert", "with adapter.init: pissa the artifact is a plain LoRA always")
    for key in ("lora_rank", "lora_alpha", "lora_dropout", "lora_target", "use_rslora", "use_dora"):
        account.passes(key, "the configuration sets no low-rank adapter")
    for key in ("loraplus_lr_ratio", "pissa_init", "pissa_iter", "oft_block_size", "oft_target", "oft_rank"):
        account.passes(key, "it belongs to another adapter")
    bits = account.get("quantization_bit")
    method = account.get("quantization_method", "bnb")
    bnb_bits = bits if method in ("bnb", "bitsandbytes") else None
    shared.quantised(account, bnb_bits, "quantization_bit", form=["quantization_type"], double=["double_quantization"])
    account.passes("quantization_method", "quantization says it")


def _one(value: Any) -> str:
    """The one adapter of a list.

    Raises:
        ValueError: there are several.
    """
    names = _names(value)
    if len(names) != 1:
        raise ValueError("several adapters: merge all but the last one")
    return names[0]


OWN_OPTIMIZERS: Mapping[str, tuple[str, Mapping[str, tuple[str, Any]]]] = TABLES["own_optimizers"]
"""Optimizers that a switch of their own picks, as they are called here, with the options and their defaults there."""


def _optimizer(account: Account) -> None:
    for key, (name, options) in OWN_OPTIMIZERS.items():
        if account.get(key):
            account.take(key, "optimizer.name", value=name)
            for theirs, (ours, default) in options.items():
                convert = partial(low_memory.scale_of, name) if ours == "scale" else number
                note = "the root of theirs" if ours == "scale" and name == "apollo" else ""
                account.take(theirs, f"optimizer.{ours}", convert, note=note)
                if not account.has(theirs):
                    account.set(f"optimizer.{ours}", convert(default))
                    account.inside(theirs, default, "default", f"optimizer.{ours}", note)
            account.take("learning_rate", "optimizer.learning_rate", number)
            account.take("weight_decay", "optimizer.weight_decay", number)
            account.passes("optim", f"{key} comes first")
        account.passes(key, "it is off")
    for key in (
        "galore_layerwise",
        "galore_target",
        "apollo_layerwise",
        "apollo_target",
        "apollo_scale_type",
        "galore_proj_type",
    ):
        account.passes(key, "all matrices inside layers, after the backward pass")
    if account.get("use_badam"):
        if account.get("badam_switch_mode") in ("ascending", "descending", "random"):
            account.take("badam_switch_mode", "optimizer.order")
        account.default("badam_switch_mode", "optimizer.order", "ascending")
        account.refuse("badam_switch_mode", "optimizer.order is ascending, descending or random", unless="fixed")
        if account.get("badam_mode") == "layer":
            account.passes("badam_mode", "blocks are whole layers")
        account.refuse("badam_mode", "blocks are whole layers")
    for key in ("badam_mode", "badam_switch_mode", "badam_switch_interval", "badam_verbose"):
        account.passes(key, "use_badam is off, or it only changes the output")
    account.default("learning_rate", "optimizer.learning_rate", 5e-5)
    if not isinstance(account.recipe.get("optimizer"), dict) or "name" not in account.recipe["optimizer"]:
        shared.optimizer(account, "optim", "adamw_torch")
