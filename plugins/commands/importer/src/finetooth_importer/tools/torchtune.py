"""torchtune's YAML (version 0.6; defaults as its recipes and the components that they name have them)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from finetooth_importer import packing, tables
from finetooth_importer.account import COMPUTED, Account, flattened, number
from finetooth_importer.tools import rows, shared, watched

TABLES = tables.of("torchtune")
OPTIMIZERS: Mapping[str, str] = TABLES["optimizers"]
DECAY = {"AdamW": 0.01, "PagedAdamW": 0.01, "PagedAdamW8bit": 0.01, "PagedAdamW32bit": 0.01, "AdamW8bit": 0.01}
"""Weight decay of those that were given none; of the others it is 0."""

DATASETS: Mapping[str, tuple[str, Any, bool]] = TABLES["datasets"]
"""Its builders of data sets: hub id, our format, and whether they train prompts as well by default."""

GENERIC: Mapping[str, tuple[Any, bool]] = TABLES["generic"]

NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])

HEADS = {"output_proj": "o_proj"}
MLP = ["gate_proj", "up_proj", "down_proj"]


def looks_like(keys: Mapping[str, Any]) -> bool:
    """Whether a mapping is one of torchtune's: parts with a `_component_`."""
    return any(isinstance(part, Mapping) and "_component_" in part for part in keys.values()) or any(
        str(key).endswith("._component_") for key in keys
    )


def resolved(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys with `${other.key}` put in; what cannot be is as a script computes it."""

    def value_of(value: Any, deep: int = 0) -> Any:
        if isinstance(value, list):
            return [value_of(element, deep) for element in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = re.fullmatch(r"\$\{([\w.]+)\}", value)
        if whole and whole[1] in keys and deep < 8:
            return value_of(keys[whole[1]], deep + 1)
        made = re.sub(r"\$\{([\w.]+)\}", lambda m: str(value_of(keys[m[1]], deep + 1)) if m[1] in keys else m[0], value)
        return COMPUTED if "${" in made or deep >= 8 else made

    return {key: value_of(value) for key, value in keys.items()}


def read(account: Account) -> None:
    """Take the keys of a torchtune configuration, which stand as `optimizer.lr`."""
    component = _called(account, "model._component_")
    if account.has("checkpointer.checkpoint_dir"):
        note = "the model's folder, in Hugging Face's layout"
        account.take("checkpointer.checkpoint_dir", "model.name", str, note=note)
    _method(account)
    _data(account)
    _adapter(account, component)
    account.take("tokenizer.max_seq_len", "train.max_length", int)
    account.default("tokenizer.max_seq_len", "train.max_length", 8192, "torchtune has no limit: longer rows are cut")
    account.set("train.excess_length", "truncate")
    shared.batch(account, "batch_size", 1)
    packing.packed(account, "dataset.packed")
    account.take("epochs", "train.epochs", number)
    account.default("epochs", "train.epochs", 1)
    if account.has("max_steps_per_epoch"):
        times = account.whole("epochs", 1)
        account.take(
            "max_steps_per_epoch",
            "train.max_steps",
            lambda steps: int(steps) * times,
            note="steps of all epochs" if times > 1 else "",
        )
    account.take("num_steps", "train.max_steps", int)
    account.take("seed", "train.seed", int)
    account.take("shuffle", "train.shuffle")
    _optimizer(account)
    _rest(account)
    shared.without_effect(account, NO_EFFECT)
    for key in list(account.given):
        if str(key).startswith(("profiler.", "profiler")):
            account.passes(str(key), "profile: {steps: N} records steps")
        if str(key).startswith(("ref_checkpointer.", "teacher_checkpointer.")):
            account.passes(str(key), "it is read from the model's folder")
        if str(key).startswith(("orchestration.", "inference.", "postprocessing.", "training.")):
            account.refuse(str(key), "see method.sampler and method.prefetch: ft plugins explain grpo")
    account.finish(REFUSED)


def _called(account: Account, key: str) -> str:
    """The last word of a component's path."""
    return str(account.get(key, "")).rpartition(".")[2]


def _method(account: Account) -> None:
    loss = _called(account, "loss._component_")
    if account.has("teacher_model._component_") or account.has("kd_loss._component_"):
        _distilled(account)
    elif "GRPO" in loss or account.has("grpo_samples"):
        account.set("method", "grpo")
        account.take("grpo_samples", "method.num_generations", int)
        account.take("max_generated_tokens", "method.max_completion_length", int)
        account.take("temperature", "method.temperature", number)
        account.take("top_k", "method.top_k", int)
        account.take("ppo_epochs", "method.num_iterations", int)
        account.take("loss.kl_coeff", "method.beta", number)
        account.take("loss.epsilon", "method.epsilon", number)
        account.refuse("reward_functions", "name them in method.rewards: ft plugins list --kind reward")
        account.covered("loss._component_", "method")
    elif loss in ("DPOLoss", "RSOLoss", "IPOLoss", "SimPOLoss"):
        account.take("loss._component_", "method", value="simpo" if loss == "SimPOLoss" else "dpo")
        if loss in ("RSOLoss", "IPOLoss"):
            account.set("method.loss", "hinge" if loss == "RSOLoss" else "ipo")
        for theirs in ("beta", "gamma"):
            account.take(f"loss.{theirs}", f"method.{theirs}", number)
        if number(account.get("loss.label_smoothing", 0)):
            account.set(
                "method.loss", {"name": "sigmoid", "label_smoothing": number(account.get("loss.label_smoothing"))}
            )
            account.covered("loss.label_smoothing", "method.loss.label_smoothing")
        account.passes("loss.label_smoothing", "it is 0")
        account.passes("loss.tau", "method.beta says it")
    elif "text_completion" in _called(account, "dataset._component_"):
        account.set("method", "pretrain")
        account.covered("loss._component_", "method")
    elif loss and not re.search(r"CrossEntropy|CEWith", loss):
        account.set("method", loss)  # never another one in its place
        account.refuse("loss._component_", "ft plugins list --kind method shows the methods, --kind loss their losses")
    else:
        account.set("method", "sft")
        account.passes("loss.ignore_index", "masked tokens never count")
        account.covered("loss._component_", "method")
    account.covered("loss", "method")


def _distilled(account: Account) -> None:
    account.set("method", "distill")
    account.take("teacher_checkpointer.checkpoint_dir", "method.teacher.policy", str)
    divergence = {"ForwardKL": "forward", "ReverseKL": "reverse", "Symmetric": "js"}
    named = _called(account, "kd_loss._component_")
    which = next((ours for theirs, ours in divergence.items() if named.startswith(theirs)), "forward")
    account.take("kd_loss._component_", "method.divergence", value=which)
    share = number(account.get("kd_ratio", 0.5))
    if 0 < share <= 1:
        note = "the cross entropy's weight where distillation has weight 1"
        account.take("kd_ratio", "method.cross_entropy", lambda ratio: round((1 - ratio) / ratio, 6), note=note)
        account.default("kd_ratio", "method.cross_entropy", round((1 - share) / share, 6))
    account.covered("loss._component_", "method.cross_entropy")
    account.take("kd_loss.num_output_chunks", "method.top_k", value=0, note="the whole vocabulary is compared")
    account.set("method.top_k", 0)
    for key in [key for key in account.given if str(key).startswith("teacher_model.")]:
        account.passes(str(key), "the family is known from the model's config")


def _data(account: Account) -> None:
    for part, setting in (("dataset", "data.train"), ("dataset_val", "data.eval")):
        if isinstance(account.get(part), list):
            _several(account, part, setting)
        key = f"{part}._component_"
        if not account.has(key):
            continue
        name = _called(account, key)
        files, split = account.get(f"{part}.data_files"), account.get(f"{part}.split", "train")
        if name in DATASETS:
            path, format_, all_ = DATASETS[name]
        elif name in GENERIC:
            path, (format_, all_) = "", GENERIC[name]
        else:
            account.refuse(key, f"name the rows in {setting}, and their columns in its format")
            continue
        path = str(account.get(f"{part}.source", path))
        paths = (rows.named(path, files) if files else []) or [path]
        format_ = _columns(account, part, format_)
        if account.get(f"{part}.train_on_input", all_) and part == "dataset":
            _train_all(account, part, all_)
        sources = [_source(account, part, file, str(split), format_) for file in paths]
        if files and path not in rows.BUILDERS and not rows.is_local(path):
            sources[0]["data_files"] = rows.listed(files)
        account.take(key, setting, value=sources if len(sources) > 1 else sources[0])
        account.covered(f"{part}.split", setting)
        for inside in (
            "source",
            "data_files",
            "column_map",
            "column",
            "conversation_column",
            "subset",
            "name",
            "split",
        ):
            for subkey in [
                g for g in account.given if g == f"{part}.{inside}" or str(g).startswith(f"{part}.{inside}.")
            ]:
                account.covered(str(subkey), setting)
        account.passes(f"{part}.train_on_input", "only answers train")
        account.take(f"{part}.new_system_prompt", "data.format.system", str)
        account.passes(f"{part}.conversation_style", "the rows' own columns show it")
        account.passes(f"{part}.chat_format", "the renderer of the model's family writes it")
        account.passes(f"{part}.template", "the renderer of the model's family writes it")
        account.refuse(f"{part}.partition", "a slice after the split selects rows: split: train[:10%]")
    account.take("run_val_every_n_steps", "evaluate.every", int)


def _several(account: Account, part: str, setting: str) -> None:
    """A list of data sets, whose rows are one after the other: each has keys of its own, `dataset[0].source`."""
    sources: list[Any] = []
    for place, dataset in enumerate(account.get(part)):
        inside = Account(flattened({part: dataset}))
        inside.recipe = {**account.recipe, "data": {}}
        _data(inside)
        inside.finish()
        made = inside.recipe.pop("data").get(setting.partition(".")[2], [])
        sources += made if isinstance(made, list) else [made]
        account.recipe |= inside.recipe
        for line in inside:
            name = line.key.replace(part, f"{part}[{place}]", 1)
            account.inside(name, line.value, line.outcome, line.setting, line.note)
    account.take(part, setting, value=sources)


def _source(account: Account, part: str, path: str, split: str, format_: Any) -> dict[str, Any]:
    """A source with its split: a file has one, of which a slice is taken."""
    made = rows.source(path, format=format_)
    if made["name"] == "datasets":
        made["split"] = split
        if account.has(f"{part}.subset") or account.has(f"{part}.name"):
            made["config"] = account.get(f"{part}.subset", account.get(f"{part}.name"))
    elif "[" in split:
        made["slice"] = "[" + split.partition("[")[2]
    return made


def _train_all(account: Account, part: str, by_default: bool) -> None:
    if account.recipe.get("method") == "sft" or account.recipe["method"] == {"name": "sft"}:
        account.set("method.name", "sft")
        account.set("method.train_on", "all")
        account.covered(f"{part}.train_on_input", "method.train_on")
        if by_default:
            account.default(f"{part}.train_on_input", "method.train_on", "all")


def _columns(account: Account, part: str, format_: Any) -> Any:
    """The format with the columns that a `column_map` names."""
    names = {
        "input": "prompt",
        "output": "completion",
        "instruction": "instruction",
        "conversations": "column",
        "chosen": "chosen",
        "rejected": "rejected",
        "prompt": "prompt",
    }
    made = dict(format_) if isinstance(format_, Mapping) else {"name": str(format_)}
    for theirs, ours in names.items():
        value = account.get(f"{part}.column_map.{theirs}")
        if value:
            made[theirs if made["name"] == "instruction" else ours] = value
    for named in ("column", "conversation_column"):
        if account.has(f"{part}.{named}"):
            made["column"] = account.get(f"{part}.{named}")
    if account.get(f"{part}.conversation_style") == "sharegpt":
        made["fields"] = {"role": "from", "content": "value"}
    return made if len(made) > 1 else made["name"]


def _adapter(account: Account, component: str) -> None:
    bits = component.startswith("qlora") or account.get("model.quantize_base") is True
    if "lora" in component or account.has("model.lora_rank"):
        account.set("adapter", "lora")
        targets = [HEADS.get(name, name) for name in account.get("model.lora_attn_modules") or ["q_proj", "v_proj"]]
        if account.get("model.apply_lora_to_mlp"):
            targets += MLP
        if account.get("model.apply_lora_to_output"):
            targets.append("lm_head")
        account.covered("model._component_", "adapter", "the family is known from the model's config")
        account.take("model.lora_attn_modules", "adapter.targets", value=targets)
        account.default("model.lora_attn_modules", "adapter.targets", targets)
        account.covered("model.apply_lora_to_mlp", "adapter.targets")
        account.covered("model.apply_lora_to_output", "adapter.targets")
        account.take("model.lora_rank", "adapter.rank", int)
        account.default("model.lora_rank", "adapter.rank", 8)
        account.take("model.lora_alpha", "adapter.alpha", number)
        account.default("model.lora_alpha", "adapter.alpha", 16)
        account.take("model.lora_dropout", "adapter.dropout", number)
        account.take("model.use_dora", "adapter.dora")
        if bits:
            account.set("quantization", "nf4")
            account.inside("model._component_ (qlora)", component, "otherwise", "quantization", "a base in 4 bits")
        account.covered("model.quantize_base", "quantization")
    elif account.has("quantizer._component_"):
        account.set("adapter", "qat")
        account.set("adapter.format", "int4")
        account.covered("model._component_", "adapter", "the family is known from the model's config")
        note = "weights as they will be stored; activations keep their precision"
        account.covered("quantizer._component_", "adapter.format", note)
    else:
        account.set("adapter", "full")
        account.covered("model._component_", "adapter", "the family is known from the model's config")
    account.passes("quantizer.groupsize", "adapter.format: {name: int4, group: 32|64|128} sets the group of a scale")
    for key in ("decoder_trainable", "encoder_trainable", "fusion_trainable"):
        account.passes(f"model.{key}", "an adapter trains the decoder's layers; ft check says which parameters train")
    for key in [key for key in account.given if str(key).startswith("model.")]:
        account.refuse(str(key), "sizes are those of the model's own config")


def _optimizer(account: Account) -> None:
    name = _called(account, "optimizer._component_")
    if name in OPTIMIZERS:
        account.take("optimizer._component_", "optimizer.name", value=OPTIMIZERS[name])
        account.take("optimizer.lr", "optimizer.learning_rate", number)
        account.take("optimizer.weight_decay", "optimizer.weight_decay", number)
        if DECAY.get(name):
            account.default("optimizer.weight_decay", "optimizer.weight_decay", DECAY[name])
        account.take("optimizer.betas", "optimizer.betas")
        account.take("optimizer.eps", "optimizer.eps", number)
        account.take("optimizer.momentum", "optimizer.momentum", number)
    elif name:
        note = f"no optimizer {name} here; ft plugins list --kind optimizer shows them"
        account.refuse("optimizer._component_", note)
    schedule = _called(account, "lr_scheduler._component_")
    words = {"cosine": "cosine", "linear": "linear", "constant": "constant"}
    kind = next((ours for theirs, ours in words.items() if theirs in schedule), "")
    if kind:
        account.take("lr_scheduler._component_", "schedule.name", value=kind)
        account.take("lr_scheduler.num_warmup_steps", "schedule.warmup_steps", int)
        if kind == "cosine":
            account.default("lr_scheduler.num_warmup_steps", "schedule.warmup_steps", 0)
    elif schedule:
        account.refuse("lr_scheduler._component_", "ft plugins list --kind schedule shows them")
    else:
        account.default("lr_scheduler._component_", "schedule", "constant")
    account.passes(
        "lr_scheduler.num_cycles",
        "half a wave, as the schedule has it",
    )
    account.take("clip_grad_norm", "train.max_grad_norm", number)
    account.default("clip_grad_norm", "train.max_grad_norm", 0)


def _rest(account: Account) -> None:
    if account.get("dtype") in ("bf16", "fp16", "fp32"):
        account.take("dtype", "train.precision")
    account.take("enable_activation_checkpointing", "train.gradient_checkpointing")
    account.take("output_dir", "output", str)
    logger = _called(account, "metric_logger._component_")
    tracker = {"WandBLogger": "wandb", "TensorBoardLogger": "tensorboard"}.get(logger)
    if tracker:
        watched.follow(account, tracker)
        account.covered("metric_logger._component_", "trackers")
        watched.tracked(account, tracker, {"metric_logger.project": "project", "metric_logger.entity": "entity"})
    account.passes("metric_logger._component_", "metrics are in metrics.jsonl of the run folder")
    if account.has("save_every_n_steps"):
        account.take("save_every_n_steps", "checkpoint.every", int)
    elif account.has("save_every_n_epochs"):
        account.take("save_every_n_epochs", "checkpoint.every", value="epoch")
    account.passes("name", "the folder identifies a run")
    account.passes("base_model_path", "it is read from the model's folder")
    account.passes("model_dir", "it is read from the model's folder")
    account.take("ref_checkpointer.checkpoint_dir", "method.reference", value={"policy": "auto"})
    if account.get("resume_from_checkpoint") is False:
        account.passes("resume_from_checkpoint", "it is off")
