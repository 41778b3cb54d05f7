"""TRL's trainers: a YAML for its command line, a command, or a script whose `SFTConfig(...)` is read and never run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetooth_importer import packing, tables
from finetooth_importer.account import Account, number
from finetooth_importer.first_row import first_row
from finetooth_importer.script_changes import CHANGES
from finetooth_importer.script_rows import HARMLESS, SPLIT
from finetooth_importer.tools import rollouts, rows, shared, targets, watched

TABLES = tables.of("trl")
METHODS: Mapping[str, str] = TABLES["methods"]
RATES: Mapping[str, float] = {"sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "rm": 1e-4, "orpo": 1e-6, "cpo": 1e-6,
                             "grpo": 1e-6, "rloo": 1e-6, "gkd": 2e-5}  # fmt: skip
"""Learning rates that the trainers' configurations have in place of transformers' 5e-5."""
ONLINE = ("grpo", "rloo")
METHOD = "trainer"
"""The key under which the reader of commands and scripts says which trainer it is."""

ARGUMENTS, PLAIN = "arguments", "TrainingArguments"
"""The key under which the reader of scripts says that a trainer got transformers' own arguments, whose defaults hold
then; and their class."""

PEFT = "peft_config"
"""The key under which the reader of scripts says that there is a LoraConfig, whatever it was given."""

NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])


LOADING = ("dtype", "torch_dtype", "attn_implementation", "device_map", "use_cache", "low_cpu_mem_usage",
           "trust_remote_code", "use_safetensors",
           "token", "cache_dir", "local_files_only")  # fmt: skip
"""Arguments of a model's loading that change nothing here."""

COMPARED = ("sft", "dpo", "kto")
"""Methods whose first loss over rows of each kind is TRL's, which a test holds; the rows have to be seen."""

CONVERSATIONS = (
    "TRL trains every token of a conversation, and of a prompt with a completion only the completion; the line break "
    "that a template writes after the last answer trains there, but not here"
)
UNSEEN = (
    "; the rows were not seen: for texts named prompt and completion set method.train_on: assistant and data.format: "
    "{name: prompt_completion, style: raw}; for one column of text, method: pretrain"
)
TEXTS = (
    "pretrain trains whole texts in windows of train.max_length, so train.batch_size counts windows instead of texts, "
    "each text's first token is predicted too, and method.separator ends texts where TRL uses the tokenizer's own end"
)


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of TRL's."""
    return METHOD in keys or ("model_name_or_path" in keys and "dataset_name" in keys)


def read(account: Account, folder: Path | None = None) -> None:
    """Take the keys of a TRL configuration; `trainer` says which.

    Args:
        folder: where a file with its rows is looked for: what TRL does with them depends on their columns.
    """
    kind = str(account.get(METHOD, "sft"))
    method = METHODS.get(kind)
    if method is None:
        account.set("method", kind)  # never another one in its place
        account.refuse(METHOD, f"no method for the trainer {kind!r} here; ft plugins list --kind method shows them")
    else:
        account.take(METHOD, "method", value=method)
        account.default(METHOD, "method", method)
    account.take("model_name_or_path", "model.name")
    _model(account)
    account.take("model", "model.name")
    account.passes("trust_remote_code", "code of a repository runs only with model.loader.trust_remote_code")
    if account.has("model_revision"):
        account.set("model.loader.name", "transformers")
        account.take("model_revision", "model.loader.revision", str)
    _data(account)
    account.take("max_length", "train.max_length", int)
    account.take("max_seq_length", "train.max_length", int)
    if not account.has("max_seq_length"):
        account.default("max_length", "train.max_length", 1024)
    shared.cut(account)
    account.refuse("truncation_mode", "rows that are too long are cut at their end", unless="keep_start")
    shared.extent(account)
    packing.packed(account, "packing", "packing_strategy")
    plain = account.passes(ARGUMENTS, "its missing values are transformers' defaults")
    rates = {} if plain else RATES
    account.default("learning_rate", "optimizer.learning_rate", rates.get(method or "", 5e-5))
    shared.optimizer(account, "optim", "adamw_torch")
    shared.schedule(account, "lr_scheduler_type", "linear")
    shared.precision(account)
    shared.checkpointing(account)
    if not plain:
        account.default("gradient_checkpointing", "train.gradient_checkpointing", True)
    watched.saving(account)
    watched.records(account)
    _adapter(account)
    shared.without_dropout(account)
    if method in ONLINE:
        rollouts.read(account, method)
        rollouts.prompts(account, account, "", "per_device_train_batch_size")
        if "format" not in account.recipe.get("data", {}):
            account.set("data.format", "task")  # of a row it asks the prompt alone, whatever else is there
    elif method == "gkd":
        _taught(account)
    else:
        for key in ("beta", "desirable_weight", "undesirable_weight"):
            account.take(key, f"method.{key}", number)
        if method in ("dpo", "kto"):
            rollouts.reference(account, "")
            account.passes("precompute_ref_log_probs", "the reference's log-probabilities are the same, early or late")
    _loss(account, method or "")
    row = _mapped(account).get("row") or first_row(account.get("dataset_name"), folder)
    account.compared = bool(row) and method in COMPARED
    if method == "sft":
        _trained(account, row)
    account.refuse("bias", "a low-rank adapter trains no biases of the model", unless="none")
    account.passes("assistant_only_loss", "it is off")
    account.covered("completion_only_loss", "method.train_on")
    shared.without_effect(account, NO_EFFECT)
    shared.machines(account)
    account.finish({**REFUSED, **CHANGES})


def _model(account: Account) -> None:
    """What a script or a command passes on to the loading of its model."""
    given = account.get("model_init_kwargs")
    others = sorted(set(given) - {"revision", *LOADING}) if isinstance(given, Mapping) else ["all of it"]
    if isinstance(given, Mapping) and given.get("revision") and not account.has("model_revision"):
        account.set("model.loader", {"name": "transformers", "revision": str(given["revision"])})
    if others:
        account.refuse("model_init_kwargs", f"see model.loader and quantization; not taken: {', '.join(others)}")
    account.covered("model_init_kwargs", "model.loader")


def _taught(account: Account) -> None:
    """The teacher of generalized distillation, and what is learned from it."""
    account.take("teacher_model", "method.teacher")
    account.take("teacher_model_name_or_path", "method.teacher")
    account.refuse("teacher_model_init_kwargs", "a teacher is read as its folder says it; see method.teacher")
    for key in ("lmbda", "beta", "temperature"):
        account.take(key, f"method.{key}", number)
    account.take("max_new_tokens", "method.max_completion_length", int)
    account.take(
        "seq_kd", "method.seq_kd", note="the teacher answers once, when the run begins, and rows are only prompts"
    )
    account.default("top_k", "method.top_k", 0, "whole distributions are compared")


def _trained(account: Account, row: Mapping[str, Any]) -> None:
    """What trains, and in which markup: TRL decides it by the columns of the rows.

    Args:
        row: the first one; empty if it is not known.
    """
    field = str(account.get("dataset_text_field", "text"))
    prompt, completion = row.get("prompt"), row.get("completion")
    plain = isinstance(prompt, str) and isinstance(completion, str)
    if plain:
        account.inside(
            "dataset_name",
            "prompt and completion",
            "default",
            "data.format",
            "texts are read there without chat markup, and the end-of-text token closes them",
        )
        if "format" not in account.recipe.get("data", {}):
            account.set("data.format", {"name": "prompt_completion", "style": "raw"})
    elif isinstance(row.get(field), str) and "messages" not in row:
        account.inside("dataset_name", field, "otherwise", "method", TEXTS)
        account.set("method.name", "pretrain")
        account.passes("completion_only_loss", "whole texts train in both")
        account.passes("assistant_only_loss", "whole texts train in both")
        return
    only_completion = account.get("completion_only_loss")
    if account.get("assistant_only_loss"):
        account.take("assistant_only_loss", "method.train_on", value="assistant")
    elif only_completion is False:
        account.take("completion_only_loss", "method.train_on", value="all")
    elif plain or (only_completion and not row):  # such a setting is made for rows of prompt and completion
        account.set("method.train_on", "assistant")
    else:
        account.set("method.train_on", "all")
        account.set("method.train_markup", True)
        note = CONVERSATIONS if row else CONVERSATIONS + UNSEEN
        account.default("assistant_only_loss", "method.train_on", "all", note)


def _loss(account: Account, method: str) -> None:
    """The loss of supervised and of preference trainers."""
    loss = account.get("loss_type")
    if method == "dpo" and isinstance(loss, list) and len(loss) > 1:
        weights = [*map(number, account.get("loss_weights") or []), *([1.0] * len(loss))]
        made = [{"name": str(name), "weight": weights[place]} for place, name in enumerate(loss)]
        account.take("loss_type", "method.losses", value=made)
        account.covered("loss_weights", "method.losses")
    elif method == "dpo" and loss:
        account.take("loss_type", "method.loss.name", lambda v: v[0] if isinstance(v, list) else v)
    elif method == "sft" and loss in ("dft", "nll", "chunked_nll"):
        account.take("loss_type", "method.loss", value="dft" if loss == "dft" else "cross_entropy")
    elif method == "cpo" and loss == "simpo":
        account.take("loss_type", "method.name", value="simpo")
        account.take("simpo_gamma", "method.gamma", number)
        account.default("beta", "method.beta", 0.1)
    elif method == "kto" and loss in ("kto", "apo_zero_unpaired"):
        account.take("loss_type", "method.loss")
    account.refuse("loss_type", "see the losses of the method: ft plugins list --kind loss", unless="nll")
    if method == "sft" and number(account.get("label_smoothing_factor", 0)):
        account.take("label_smoothing_factor", "method.loss.label_smoothing", number)
        account.set("method.loss.name", "smoothed_cross_entropy")
    account.passes("label_smoothing_factor", "the loss of this trainer does not read it, or it is 0")
    if method == "dpo" and number(account.get("label_smoothing", 0)):
        account.take("label_smoothing", "method.loss.label_smoothing", number)
        account.set("method.loss.name", _picked(account.recipe["method"].get("loss")))
    elif method == "cpo":
        account.take("label_smoothing", "method.label_smoothing", number)
        account.take("cpo_alpha", "method.sft_weight", number)
        account.default("cpo_alpha", "method.sft_weight", 1.0)
        account.passes("simpo_gamma", "only the loss simpo has it")
    elif method == "rm":
        account.take("center_rewards_coefficient", "method.center_rewards_coefficient", number)
    account.passes("label_smoothing", "the loss of this trainer does not read it, or it is 0")


def _picked(pick: Any) -> str:
    return str(pick.get("name", "sigmoid")) if isinstance(pick, dict) else str(pick or "sigmoid")


def _data(account: Account) -> None:
    split, config = account.get("dataset_train_split", "train"), account.get("dataset_config")
    name = account.get("dataset_name")
    source = _source(account, name, split, config)
    account.take("dataset_name", "data.train", value=source)
    account.covered("data_files", "data.train")
    if isinstance(name, list) and "[" in str(split):
        account.refuse("dataset_train_split", "it is a slice over several files: slice each, FILE[:100]")
    account.covered("dataset_train_split", "data.train.split")
    account.covered("dataset_config", "data.train.config")
    _on_the_way(account)
    if account.has("dataset_test_split") and account.get("eval_strategy", "no") != "no" and name is not None:
        account.take(
            "dataset_test_split",
            "data.eval",
            value=_source(account, name, account.get("dataset_test_split"), config),
        )
    account.passes("dataset_test_split", "no rows are measured while training")
    field = account.get("dataset_text_field")
    if field not in (None, "text"):
        account.take("dataset_text_field", "data.format", value={"name": "text", "column": field})
    account.passes("dataset_text_field", "it is the default")
    if account.get("dataset_streaming") and isinstance(name, str) and "." not in name.rpartition("/")[2]:
        note = "training begins with the first row with method pretrain and its streaming; sft reads all rows first"
        account.covered("dataset_streaming", "data.train.streaming", note)
        train = account.recipe["data"]["train"]
        if not isinstance(train, dict):
            account.set("data.train", {"name": "datasets", "path": name})
        account.set("data.train.streaming", True)
    account.passes("dataset_streaming", "rows are read as they are needed")
    if account.has("chat_template_path"):
        account.take(
            "chat_template_path",
            "data.renderer",
            value={"name": "jinja", "template": account.get("chat_template_path")},
        )


def _mapped(account: Account) -> Mapping[str, Any]:
    """What the function of a script's `map` was seen to do."""
    made = account.get("train_dataset.map")
    return made if isinstance(made, Mapping) else {}


def _on_the_way(account: Account) -> None:
    """What a script does with its rows between loading and training."""
    if "format" in _mapped(account):
        note = "this format does the same as its function"
        account.take("train_dataset.map", "data.format", value=_mapped(account)["format"], note=note)
    account.refuse("train_dataset.map", "code does not run: write the rows as it returns them, or name their columns "
                   "in data.format")  # fmt: skip
    if account.has("train_dataset.shuffle") and account.has("train_dataset.select"):
        account.refuse("train_dataset.shuffle", "the first rows differ here: write the rows that it selects")
    for name in HARMLESS:
        account.passes(f"train_dataset.{name}", "columns that are not read change nothing; train.shuffle orders rows")
    part = str(account.get("train_dataset.select", ""))
    if part.startswith("[") and isinstance(account.recipe.get("data", {}).get("train"), str):
        account.take("train_dataset.select", "data.train", value=account.recipe["data"]["train"] + part)
    elif part.startswith("[") and isinstance(account.recipe.get("data", {}).get("train"), dict):
        account.take("train_dataset.select", "data.train.slice", value=part)
    size = (account.get(SPLIT) or {}).get("test_size", 0.25)
    if account.has(SPLIT) and isinstance(size, float):
        note = "a share of the rows, but not the same rows"
        account.take(SPLIT, "data.eval", value={"fraction": size}, note=note)
    account.refuse(SPLIT, "held-out rows are a share: data.eval: {fraction: 0.05}, or a file")
    if account.has("eval_dataset"):
        name, split = account.get("eval_dataset"), account.get("dataset_test_split", "train")
        account.take("eval_dataset", "data.eval", value=_source(account, name, split, account.get("dataset_config")))
        account.covered("dataset_test_split", "data.eval")
    for key in [key for key in account.given if str(key).startswith("train_dataset")]:
        account.refuse(str(key), "write the rows that it gives: ft data convert, or a script of your own")


def _source(account: Account, name: Any, split: Any, config: Any) -> Any:
    """A dataset, with its split where that is not the one that is read anyway; a file has one, of which a slice is."""
    if not isinstance(name, str):
        return name
    files = {"data_files": rows.listed(account.get("data_files"))} if account.has("data_files") else {}
    if not files and rows.is_local(name) and re.fullmatch(r"train(\[.*\])?", str(split)):
        return name + str(split).removeprefix("train")
    if split == "train" and not config and not files:
        return name
    return {"name": "datasets", "path": name, "split": split, **({"config": config} if config else {}), **files}


def _adapter(account: Account) -> None:
    low = {"rank": ("lora_r", "r"), "alpha": ("lora_alpha",), "dropout": ("lora_dropout",)}
    named = (*(key for keys in low.values() for key in keys), "lora_target_modules", "target_modules")
    if account.get("use_peft") or account.has(PEFT) or any(map(account.has, named)):
        account.set("adapter", "lora")
        account.covered(PEFT, "adapter")
        targets.defaults(account, "unsloth" if account.has("unsloth") else "trl" if account.get("use_peft") else "peft")
        for option, keys in low.items():
            for key in keys:
                account.take(key, f"adapter.{option}", number)
        targets.take(account, "lora_target_modules", "target_modules")
        for key in ("use_rslora", "use_dora"):
            account.take(key, f"adapter.{key.removeprefix('use_')}")
        start = account.get("init_lora_weights")
        if isinstance(start, str) and start.startswith("pissa_niter_"):
            account.take("init_lora_weights", "adapter.svd_iterations", value=int(start.removeprefix("pissa_niter_")))
            account.set("adapter.init", "pissa")
        elif start in ("pissa", "olora"):
            account.take("init_lora_weights", "adapter.init")
        account.refuse("init_lora_weights", "set adapter.init: see ft plugins explain lora", unless=True)
        for key in ("target_parameters", "lora_target_parameters"):
            account.take(key, "adapter.target_parameters")
    else:
        account.set("adapter", "full")
    bits = 4 if account.get("load_in_4bit") else 8 if account.get("load_in_8bit") else None
    double = ("use_bnb_nested_quant", "bnb_4bit_use_double_quant")
    shared.quantised(account, bits, "load_in_4bit", "load_in_8bit", form=("bnb_4bit_quant_type",), double=double)
    account.passes("bnb_4bit_compute_dtype", "train.precision says it")
