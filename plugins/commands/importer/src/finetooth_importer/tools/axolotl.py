"""axolotl's YAML (its configuration reference of version 0.13; defaults as its schema has them)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from finetooth_importer import packing
from finetooth_importer.account import Account, name_of, number
from finetooth_importer.tools import axolotl_datasets, rollouts, shared, targets, watched
from finetooth_importer.tools.axolotl_keys import ATTENTION, NO_EFFECT, PACKING, REFUSED, TABLES

METHODS: Mapping[str, str] = TABLES["methods"]
EBFT = TABLES["ebft"]
"""Keys of the block `ebft` that are called and mean the same here."""


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of axolotl's."""
    return "base_model" in keys and bool(
        {"datasets", "pretraining_dataset", "sequence_len", "micro_batch_size", "test_datasets"} & keys.keys()
    )


def read(account: Account) -> None:
    """Take the keys of an axolotl configuration."""
    _model(account)
    _method(account)
    axolotl_datasets.read(account, name_of(account.recipe.get("method")))
    _adapter(account)
    shared.without_dropout(account, "rm")
    account.take("sequence_len", "train.max_length", int)
    account.default("sequence_len", "train.max_length", 512)
    account.take("excess_length_strategy", "train.excess_length")
    if name_of(account.recipe.get("method")) != "grpo":
        shared.batch(account, "micro_batch_size", 1, "batch_size")
    packing.packed(account, "sample_packing", *PACKING)
    account.take("num_epochs", "train.epochs", number)
    if number(account.get("max_steps", -1)) > 0:
        account.take("max_steps", "train.max_steps", int)
    account.passes("max_steps", "no bound")
    shared.optimizer(account, "optimizer")
    shared.schedule(account, "lr_scheduler", "cosine", warm_up=0.03)
    account.take("cosine_min_lr_ratio", "schedule.min_ratio", number)
    if account.has("cosine_min_lr_ratio"):
        account.set("schedule.name", "cosine_with_min")
    account.refuse("cosine_constant_lr_ratio", "the schedule wsd has a plateau", unless=0)
    account.refuse("eta_min", "set schedule.min_ratio, a share of the full learning rate")
    account.take("max_grad_norm", "train.max_grad_norm", number)
    account.take("neftune_noise_alpha", "train.embedding_noise", number)
    account.take("noisy_embedding_alpha", "train.embedding_noise", number)
    account.take("seed", "train.seed", int)
    account.default("seed", "train.seed", 42)
    account.take("shuffle_merged_datasets", "train.shuffle")
    shared.precision(account)
    shared.checkpointing(account)
    _saving(account)
    watched.records(account)
    _trackers(account)
    _answers(account)
    if account.get("curriculum_sampling"):
        account.take("curriculum_sampling", "train.shuffle", value=False)
    account.passes("curriculum_sampling", "it is off")
    account.take("profiler_steps", "profile.steps", int)
    account.take("profiler_steps_start", "profile.start", int)
    if account.get("float32"):
        account.take("float32", "train.precision", value="fp32")
    arguments = account.get("chat_template_kwargs")
    if isinstance(arguments, dict) and "renderer" not in account.recipe.get("data", {}):
        account.take("chat_template_kwargs", "data.renderer", value={"name": "jinja", "arguments": arguments})
    pixels = account.get("processor_kwargs")
    if isinstance(pixels, Mapping) and set(pixels) <= {"min_pixels", "max_pixels"}:
        account.take("processor_kwargs", "data.processor", value={"name": "transformers", "image": dict(pixels)})
    if account.get("eval_sequence_len") == account.get("sequence_len"):
        account.passes("eval_sequence_len", "the same maximum length applies to held-out rows")
    if name_of(account.recipe.get("optimizer")) == "dion":
        for key, option in (("dion_lr", "learning_rate"), ("dion_momentum", "momentum"),
                            ("dion_rank_fraction", "rank_ratio")):  # fmt: skip
            account.take(key, f"optimizer.{option}", number)
        account.set("optimizer.name", "dion")
    for key in ATTENTION:
        account.passes(key, "the plan picks the fastest on the machine; set backend.attention for another")
    for key in [key for key in account.given if re.match(r"liger_|lora_(mlp|qkv|o|embedding)_kernel", str(key))]:
        account.passes(str(key), "the plan picks kernels for the machine; ft check shows them")
    plugins = [str(plugin) for plugin in account.get("plugins") or []]
    if all(re.search(r"liger|cut_cross_entropy|kernels|spectrum", plugin, re.IGNORECASE) for plugin in plugins):
        account.passes("plugins", "the plan picks kernels for the machine")
    account.refuse("plugins", "plugins of axolotl do not run here; ft plugins new begins one of your own")
    where = {"disk": "disk"}.get(str(account.get("activation_offloading")), "host")
    if account.get("activation_offloading"):
        account.take("activation_offloading", "backend.activations", value=where)
    if account.get("layer_offloading"):
        account.take("layer_offloading", "backend.layers", value="host")
    if "backend" in account.recipe:
        account.set("backend.name", "torch")
    for key in ("activation_offloading", "layer_offloading"):
        account.passes(key, "it is off")
    shared.without_effect(account, NO_EFFECT)
    shared.machines(account, config_alone=True)
    account.finish(REFUSED)


def _trackers(account: Account) -> None:
    """Take the keys of trackers."""
    for name in ("tensorboard", "mlflow", "trackio"):
        if account.get(f"use_{name}"):
            watched.follow(account, name)
            account.covered(f"use_{name}", "trackers")
        account.passes(f"use_{name}", "it is off")
    if account.get("use_wandb") is not False:
        watched.tracked(
            account,
            "wandb",
            {
                "wandb_project": "project",
                "wandb_entity": "entity",
                "wandb_name": "run_name",
                "wandb_run_name": "run_name",
                "wandb_run_id": "run_id",
            },
        )
        if account.get("wandb_mode") in ("offline", "online"):
            watched.tracked(account, "wandb", {"wandb_mode": "mode"})
        if account.get("wandb_log_model") in ("end", "checkpoint", True, "true"):
            watched.follow(account, "wandb", log_model=True)
            checkpoints = account.get("wandb_log_model") == "checkpoint"
            account.covered("wandb_log_model", "trackers", "only the artifact, at the end" if checkpoints else "")
        if account.get("wandb_watch", "false") not in (False, "false"):
            account.refuse("wandb_watch", "train/grad_norm is sent, but no histograms of weights")
        for key in ("wandb_log_model", "wandb_watch"):
            account.passes(key, "it is off")
    for key in TABLES["wandb"]:
        account.passes(key, "the configuration sets no tracker wandb")
    names = {"trackio_project_name": "project", "trackio_run_name": "run_name", "trackio_space_id": "space"}
    watched.tracked(account, "trackio", names)
    names = {"mlflow_tracking_uri": "uri", "mlflow_experiment_name": "experiment", "mlflow_run_name": "run_name"}
    watched.tracked(account, "mlflow", names)


SCALINGS = ("linear", "dynamic", "yarn", "llama3")
"""Kinds of scaled positions that are a setting here too."""


def _answers(account: Account) -> None:
    """Answers that trackers show, of the `trl` block, which is read before trackers are known."""
    block = account.get("trl")
    names = [name for name in map(name_of, account.recipe.get("trackers", ())) if name in watched.TRACKERS]
    if not names or not isinstance(block, Mapping) or not block.get("log_completions"):
        return
    shown = {"samples": int(count)} if (count := number(block.get("num_completions_to_print") or 0)) > 0 else {}
    watched.follow(account, *names, samples_every=max(1, account.whole("logging_steps", 1)), **shown)
    account.lines = [
        replace(line, outcome="otherwise", setting="trackers", note=watched.SHOWN)
        if line.key in ("trl.log_completions", "trl.num_completions_to_print")
        else line
        for line in account.lines
    ]


def _positions(account: Account) -> None:
    """Scaled positions, if nothing else of the model's config is overridden."""
    overrides = account.get("overrides_of_model_config")
    scaling = overrides.get("rope_scaling") if isinstance(overrides, dict) and len(overrides) == 1 else None
    if not isinstance(scaling, dict) or (kind := scaling.get("rope_type", scaling.get("type"))) not in SCALINGS:
        return
    own = {name: value for name, value in scaling.items() if name not in ("type", "original_max_position_embeddings")}
    account.set("model.loader.name", "transformers")
    account.take(
        "overrides_of_model_config", "model.loader.rope_scaling", value={**own, "rope_type": kind},
        note="of the model's own positions; dynamic by the length of each row, not of the longest in a batch",
    )  # fmt: skip


def _model(account: Account) -> None:
    account.take("base_model", "model.name")
    revision = account.get("revision_of_model")
    if revision is not None or account.get("trust_remote_code"):
        account.set("model.loader.name", "transformers")
    account.take("revision_of_model", "model.loader.revision", str)
    if account.get("trust_remote_code"):
        account.take(
            "trust_remote_code", "model.loader.trust_remote_code", note="read the code first: it runs on this machine"
        )
    account.passes("trust_remote_code", "it is off")
    if account.get("model_quantization_config_kwargs") == {"dequantize": True}:
        account.set("model.loader.name", "transformers")
        account.take("model_quantization_config_kwargs", "model.loader.dequantize", value=True)
        account.covered("model_quantization_config", "model.loader.dequantize")
    _positions(account)
    for key in ("base_model_config", "tokenizer_config"):
        same = account.get(key) == account.get("base_model")
        if same:
            account.passes(key, "it is the model's")
        account.refuse(key, "config and tokenizer come with the model")
    tokens = account.get("special_tokens") or account.get("tokens")
    if isinstance(tokens, dict):
        for name, spelling in tokens.items():
            if name in ("bos_token", "eos_token", "pad_token", "unk_token") and isinstance(spelling, str):
                account.set(f"model.special_tokens.{name}", spelling)
    account.covered("special_tokens", "model.special_tokens")
    if isinstance(account.get("tokens"), list):
        account.take("tokens", "model.added_tokens", note="tokens that the vocabulary lacks; each is trained")
    account.covered("tokens", "model.special_tokens")
    account.take("added_tokens_overrides", "model.added_tokens_overrides", lambda v: {str(k): s for k, s in v.items()})


def _method(account: Account) -> None:
    rl = account.get("rl")
    if account.get("reward_model"):
        account.take("reward_model", "method", value="rm")
    elif account.get("process_reward_model"):
        account.take("process_reward_model", "method", value="prm")
    elif account.has("pretraining_dataset"):
        account.set("method", "pretrain")
    elif rl == "reward_trainer":
        account.take("rl", "method", value="rm", note="as reward_model: true")
    elif rl in METHODS:
        strided = rl == "ebft" and (account.get("ebft") or {}).get("mode") == "strided"
        account.take("rl", "method", value="ebft_strided" if strided else METHODS[str(rl)])
        if rl == "gdpo":
            account.set("method.multi_objective_aggregation", "normalize_then_sum")
    elif rl is not None:
        account.set("method", str(rl))  # never another method in its place
        account.refuse("rl", f"no method {rl!r} is installed; ft plugins list --kind method shows them")
    else:
        account.set("method", "sft")
    _preference(account, name_of(account.recipe.get("method")))
    account.passes("num_labels", "a reward model has one score")
    account.take("center_rewards_coefficient", "method.center_rewards_coefficient", number)
    if name_of(account.recipe.get("method")) in ("grpo", "ebft"):
        _online(account, account.get("trl") or {}, name_of(account.recipe.get("method")))
    elif name_of(account.recipe.get("method")) == "ebft_strided":
        _ebft(account, None)
    elif isinstance(account.get("trl"), dict) and "beta" in account.get("trl"):
        account.take(
            "trl",
            "method.beta",
            value=number(account.get("trl")["beta"]),
            note="the tool reads only beta of this block",
        )
    account.passes("trl", "the method has no such block")
    if account.get("train_on_inputs") and name_of(account.recipe.get("method")) == "sft":
        account.take("train_on_inputs", "method.train_on", value="all")
    account.passes("train_on_inputs", "only answers train")


def _preference(account: Account, method: str) -> None:
    """Losses of preference training, with TRL's defaults of them."""
    for key in ("rl_beta", "dpo_beta", "orpo_alpha"):
        account.take(key, "method.beta", number)
    account.take("kto_desirable_weight", "method.desirable_weight", number)
    account.take("kto_undesirable_weight", "method.undesirable_weight", number)
    losses = account.get("dpo_loss_type", ["ipo"] if account.get("rl") == "ipo" else [])
    losses = [losses] if isinstance(losses, str) else list(losses)
    weights = [*map(number, account.get("dpo_loss_weights") or []), *([1.0] * len(losses))]
    smoothing = number(account.get("dpo_label_smoothing", 0))
    more = {"label_smoothing": smoothing} if smoothing else {}
    if method == "dpo" and len(losses) > 1:
        made = [{"name": str(name), "weight": weights[place], **more} for place, name in enumerate(losses)]
        account.set("method.losses", made)
    elif method == "dpo" and (losses or more):
        account.set("method.loss", {"name": str(losses[0]) if losses else "sigmoid", **more})
    for key in ("dpo_loss_type", "dpo_loss_weights", "dpo_label_smoothing"):
        if method == "dpo":
            account.covered(key, "method.losses" if len(losses) > 1 else "method.loss")
        account.passes(key, "it belongs to rl: dpo")
    if account.get("precompute_ref_log_probs") and method in ("dpo", "kto"):
        account.take("precompute_ref_log_probs", "method.reference.policy", value="precomputed")
    account.passes("precompute_ref_log_probs", "it is off, or the method has no reference")
    if method == "simpo":
        account.default("rl_beta", "method.beta", 0.1)
        account.take("simpo_gamma", "method.gamma", number)
        account.take("cpo_alpha", "method.sft_weight", number)
        account.default("cpo_alpha", "method.sft_weight", 1.0)
    for key in ("simpo_gamma", "cpo_alpha"):
        account.passes(key, "it belongs to rl: simpo")


def _ebft(account: Account, scaled: Any) -> None:
    """The `ebft` block: each of its keys has a line of its own, `ebft.KEY`.

    Args:
        scaled: `trl.scale_rewards`.
    """
    block = account.get("ebft") or {}
    inside = Account({f"ebft.{key}": value for key, value in block.items()})
    inside.recipe = account.recipe
    if scaled and "advantage_estimator" not in block:
        account.set("method.advantage_estimator", "group_norm")
    inside.take("ebft.advantage_estimator", "method.advantage_estimator", lambda v: "group_norm" if v == "grpo" else v)
    strided = name_of(account.recipe["method"]) == "ebft_strided"
    for key in (*EBFT, *TABLES["ebft_strided" if strided else "ebft_structured"]):
        inside.take(f"ebft.{key}", f"method.{key}", number)
    if strided:
        inside.default("ebft.temperature", "method.temperature", 0.6)
    inside.take("ebft.n_samples_per_prompt", "method.num_generations", int)
    inside.covered("ebft.mode", "method")
    for key in (*TABLES["ebft_structured"], *TABLES["ebft_strided"]):
        inside.passes(f"ebft.{key}", "it belongs to the other mode")
    inside.finish()
    account.continued(inside, {})
    account.covered("ebft", "method")


def _online(account: Account, block: Mapping[str, Any], method: str) -> None:
    """The `trl` block: each of its keys has a line of its own, `trl.KEY`."""
    if method == "ebft":
        _ebft(account, block.get("scale_rewards"))
    inside = Account({f"trl.{key}": value for key, value in block.items()})
    inside.recipe = account.recipe
    rollouts.read(inside, method, "trl.")
    shared.batch(account, "micro_batch_size", 1, "batch_size")
    rollouts.prompts(account, inside, "trl.", "micro_batch_size")
    inside.finish()
    account.continued(inside, {})
    left = any(line.outcome == "not taken" for line in inside)
    account.covered("trl", "method", "not all of it: see its keys" if left else "")


def _adapter(account: Account) -> None:
    adapter = account.get("adapter")
    if adapter in ("lora", "qlora"):
        account.take("adapter", "adapter", value="lora")
        shared.low_rank(
            account,
            {
                "rank": "lora_r",
                "alpha": "lora_alpha",
                "dropout": "lora_dropout",
                "rslora": "peft_use_rslora",
                "dora": "peft_use_dora",
            },
        )
        targets.defaults(account, "peft")
        if account.get("lora_target_linear"):
            account.take("lora_target_linear", "adapter.targets", value="all-linear")
            account.passes("lora_target_modules", "lora_target_linear selects all of them")
        targets.take(account, "lora_target_modules", layers="peft_layers_to_transform", pattern="peft_layers_pattern")
        account.refuse("lora_target_modules", "name the modules: adapter.targets: [q_proj, v_proj]")
        account.passes("lora_target_linear", "lora_target_modules says which")
        _low_rank_more(account)
    else:
        if adapter is not None:
            account.refuse("adapter", f"no adapter {adapter!r} here; ft plugins list --kind adapter shows them")
        elif account.has("unfrozen_parameters"):
            account.set("adapter", "freeze")
            account.take("unfrozen_parameters", "adapter.unfrozen_parameters")
        elif account.has("lisa_n_layers"):
            account.set("adapter", "lisa")
            account.take("lisa_n_layers", "adapter.layers", int)
            account.take("lisa_step_interval", "adapter.every", int)
        elif account.get("qat"):
            account.set("adapter", "qat")
        else:
            account.set("adapter", "full")
        for key in LOW_RANK:
            account.passes(key, "the configuration sets no adapter")
    qat = account.get("qat")
    if isinstance(qat, dict) and name_of(account.recipe.get("adapter")) == "qat":
        words = {"int4": "int4", "int8": "int8", "mxfp4": "mxfp4", "torch.int4": "int4", "torch.int8": "int8"}
        weights = str(qat.get("weight_dtype", "int8")).lower()
        if weights in words:
            group = qat.get("group_size")
            made = {"name": words[weights], "group": group} if group in (32, 64, 128) else words[weights]
            account.take("qat", "adapter.format", value=made, note="activations keep their precision")
    account.refuse("qat", "set adapter: {name: qat, format: int4|int8|mxfp4}, without another adapter")
    if account.get("freeze_mm_modules"):
        if name_of(account.recipe.get("adapter")) == "full":
            account.take("freeze_mm_modules", "adapter.freeze_mm_modules")
        account.passes("freeze_mm_modules", "an adapter does not train the image encoder")
    account.passes("unfrozen_parameters", "the adapter decides what trains")
    four = account.get("load_in_4bit", adapter == "qlora")
    bits = 4 if four else 8 if account.get("load_in_8bit") and adapter else None
    shared.quantised(account, bits, "load_in_4bit", "load_in_8bit")
    inside = account.get("bnb_config_kwargs")
    if bits == 4 and isinstance(inside, Mapping) and set(inside) <= {NESTED, "bnb_4bit_quant_type"}:
        account.set("quantization.name", inside.get("bnb_4bit_quant_type", "nf4"))
        account.set("quantization.double", bool(inside.get(NESTED, True)))
        account.covered("bnb_config_kwargs", "quantization")
    if bits and not account.has("load_in_4bit") and not account.has("load_in_8bit"):
        account.inside("adapter", adapter, "otherwise", "quantization", "a base in 4 bits")


NESTED = "bnb_4bit_use_double_quant"
LOW_RANK = TABLES["low_rank"]
"""Keys that only an adapter asks for."""


def _low_rank_more(account: Account) -> None:
    """How a low-rank adapter begins, continues and is merged between steps."""
    peft = account.get("peft")
    if isinstance(peft, dict) and set(peft) <= {"init_lora_weights", "loftq_config"}:
        start = str(peft.get("init_lora_weights", ""))
        if start.startswith("pissa_niter_"):
            account.take("peft", "adapter.svd_iterations", value=int(start.removeprefix("pissa_niter_")))
            account.set("adapter.init", "pissa")
        elif start in ("pissa", "olora", "loftq", "eva"):
            account.take("peft", "adapter.init", value=start)
    start = account.get("peft_init_lora_weights")
    if start in ("pissa", "olora", "loftq", "eva"):
        account.take("peft_init_lora_weights", "adapter.init")
    account.refuse("peft_init_lora_weights", "set adapter.init: see ft plugins explain lora", unless=True)
    account.refuse("peft", "set adapter.init: see ft plugins explain lora")
    account.take("lora_target_parameters", "adapter.target_parameters")
    account.take("loraplus_lr_ratio", "adapter.loraplus_ratio", number)
    account.take("lora_model_dir", "adapter.resume_from", str)
    if account.get("relora"):
        account.set("adapter.name", "relora")
        account.covered("relora", "adapter")
        account.take("jagged_restart_steps", "adapter.every", int)
        account.take("relora_steps", "adapter.every", int)
        account.take("jagged_restart_warmup_steps", "adapter.warm_up", int)
        account.take(
            "relora_prune_ratio",
            "adapter.keep_state",
            lambda share: round(1 - float(share), 6),
            note="the kept share of the optimizer's state",
        )
    for key in ("relora", "relora_steps", "relora_prune_ratio", "jagged_restart_steps"):
        account.passes(key, "it is off")
    account.passes("jagged_restart_warmup_steps", "it is off")
    for key in ("lisa_n_layers", "lisa_step_interval"):
        account.refuse(key, "LISA trains whole layers: adapter: {name: lisa, layers: N, every: N}", unless=0)


def _saving(account: Account) -> None:
    for key, setting in (("saves_per_epoch", "checkpoint.every"), ("evals_per_epoch", "evaluate.every")):
        if number(account.get(key, 0)):
            account.take(key, setting, lambda count: watched.epochs(1 / number(count)))
        account.passes(key, "only at the end")
    evaluates = any(map(account.has, ("evals_per_epoch", "eval_steps", "eval_strategy", "evaluation_strategy")))
    if account.recipe.get("data", {}).get("eval") and not evaluates:
        account.default("eval_strategy", "evaluate.every", "epoch")
    watched.saving(account)
    account.passes("eval_batch_size", "memory decides the batches of held-out rows too")
