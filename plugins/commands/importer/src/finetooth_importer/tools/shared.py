"""What several tools name alike, since they hand it on to transformers and peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_importer import tables
from finetooth_importer.account import Account, name_of, number
from finetooth_importer.tools import low_memory, shapes
from finetooth_importer.tools.deepspeed import deepspeed
from finetooth_importer.tools.fsdp import fsdp

TABLES = tables.of("shared")
OPTIMIZERS: Mapping[str, str] = TABLES["optimizers"]
"""Optimizers by the names of transformers and axolotl, as they are called here."""

OTHERWISE: Mapping[str, tuple[str, str]] = TABLES["otherwise"]
"""Those whose update is here with another store of its state: ours, and what differs."""

PLAIN = ("sgd", "flash_sgd", "flash_sgdw", "adafactor", "lomo", "adalomo", "schedule_free_sgd")
WITHOUT_BETAS = (*PLAIN, "schedule_free_adamw")
WITHOUT_EPS = (*PLAIN, "lion", "lion_8bit", "flash_lion", "came")

SCHEDULES: Mapping[str, str] = TABLES["schedules"]
"""Schedules by the names of transformers."""

LIONS = ("lion", "lion_8bit")
"""Optimizers whose own betas transformers replaces by Adam's, given or not."""

PAIRS = ("dpo", "orpo", "simpo", "cpo")
"""Methods that compare two answers to a prompt."""

TURNED_OFF = (*PAIRS, "kto", "rm", "gkd")
"""Methods for which a trainer of TRL, by default, turns off the dropout of what it trains."""

DEVICES = "finetooth cannot divide a model in this way; scale: {devices: N} divides the rows of a step"
HUB = "a run sends nothing to a hub; when you have checked it, ft push RUN --to hf:OWNER/NAME does"


def optimizer(account: Account, key: str, default: str = "adamw") -> None:
    """The optimizer and AdamW's numbers."""
    theirs = str(account.get(key, default))
    if theirs in OPTIMIZERS:
        account.take(key, "optimizer", value=OPTIMIZERS[theirs])
    elif theirs in OTHERWISE:
        account.take(key, "optimizer", value=OTHERWISE[theirs][0], note=OTHERWISE[theirs][1])
    else:
        account.refuse(key, f"no optimizer {theirs!r} here; ft plugins list --kind optimizer shows them", unless=None)
    chosen = OPTIMIZERS.get(theirs) or OTHERWISE.get(theirs, ("",))[0]
    account.take("learning_rate", "optimizer.learning_rate", number)
    account.take("weight_decay", "optimizer.weight_decay", number)
    betas = [number(account.get("adam_beta1", 0.9)), number(account.get("adam_beta2", 0.999))]
    if chosen in ("ademamix", "came"):
        betas.append(number(account.get("adam_beta3", 0.9999)))
    without = chosen in ("", *WITHOUT_BETAS)
    if not without and (chosen in LIONS or any(account.has(f"adam_beta{place}") for place in (1, 2, 3))):
        account.set("optimizer.betas", betas)
    for name in ("adam_beta1", "adam_beta2", "adam_beta3"):
        if without or (name == "adam_beta3" and len(betas) < 3):
            account.passes(name, f"{chosen or theirs} has none of its own")
        else:
            account.covered(name, "optimizer.betas")
    for name in ("adam_epsilon", "adam_eps", "adam_epsilon2"):
        if chosen in WITHOUT_EPS or name == "adam_epsilon2":
            account.passes(name, f"{chosen} has none")
        else:
            account.take(name, "optimizer.eps", number)
    low_memory.arguments(account, chosen)
    if isinstance(account.recipe.get("optimizer"), dict) and chosen:
        account.set("optimizer.name", chosen)
    if not chosen:
        account.recipe.pop("optimizer", None)


def schedule(account: Account, key: str, default: str, warm_up: float = 0.0) -> None:
    """The schedule and its warm-up; theirs may differ from our default.

    Args:
        default: their schedule where none is named.
        warm_up: their share of the run, of at most 100 steps, where none is named.
    """
    theirs = str(account.get(key, default))
    if theirs in SCHEDULES:
        if not account.take(key, "schedule.name", value=SCHEDULES[theirs]) and default != "cosine":
            account.default(key, "schedule.name", SCHEDULES[default])
    else:
        account.refuse(key, f"no schedule {theirs!r} here; ft plugins list --kind schedule shows them", unless=None)
    _warm_up(account, theirs, warm_up)
    shapes.take(account, theirs)
    if isinstance(account.recipe.get("schedule"), dict) and "name" not in account.recipe["schedule"]:
        account.set("schedule.name", SCHEDULES[default])


def _warm_up(account: Account, schedule: str, default: float) -> None:
    """How the rate rises: a number of steps, or below 1 a share of the run."""
    keys = ("warmup_steps", "warmup_ratio")
    if schedule in ("constant", "reduce_lr_on_plateau"):
        for key in keys:
            account.passes(key, f"{schedule} has no warm-up there")
        return
    steps = number(account.get("warmup_steps", 0))
    if isinstance(steps, float) and 0 < steps < 1:
        account.take("warmup_steps", "schedule.warmup_ratio", number)
        account.passes("warmup_ratio", "warmup_steps comes first")
    elif steps:
        account.take("warmup_steps", "schedule.warmup_steps", lambda value: int(number(value)))
        account.passes("warmup_ratio", "warmup_steps comes first")
    elif number(account.get("warmup_ratio", 0)):
        account.passes("warmup_steps", "it is 0")
        account.take("warmup_ratio", "schedule.warmup_ratio", number)
    elif any(map(account.has, keys)) or not default:
        if SCHEDULES.get(schedule) == "cosine":  # ours warms up where nothing is said
            account.set("schedule.warmup_steps", 0)
            if not any(map(account.has, keys)):
                account.default("warmup_steps", "schedule.warmup_steps", 0)
        for key in keys:
            account.covered(key, "schedule.warmup_steps")
    elif bound := account.recipe.get("train", {}).get("max_steps"):
        account.default("warmup_steps", "schedule.warmup_steps", min(int(default * bound), 100))
    else:
        account.default("warmup_ratio", "schedule.warmup_ratio", default, "of at most 100 steps there")


def batch(
    account: Account, key: str, default: int, *others: str, steps: str = "gradient_accumulation_steps", times: int = 1
) -> None:
    """Rows of an optimizer step: what goes through at once, times how often gradients are added up.

    Args:
        others: names that the tool reads as `key` too.
        steps: the key that says how often, and `times` what it is where it was left out.
    """
    each = account.whole(key, account.whole(others[0], default) if others else default)
    often = account.whole(steps, times)
    account.set("train.batch_size", each * often)
    for name in (key, *others, steps):
        if account.has(name) and not str(account.get(name, 1)).isdigit():
            account.refuse(name, "it is not a whole number: set train.batch_size by hand", unless=None)
    note = "rows of an optimizer step on one device; memory decides the size of micro-batches"
    covered = account.covered(key, "train.batch_size", note)
    for other in others:
        covered = account.covered(other, "train.batch_size", note) or covered
    account.covered(steps, "train.batch_size")
    if not covered:
        account.default(key, "train.batch_size", each * often)
    for name in ("eval_batch_size", "per_device_eval_batch_size"):
        account.passes(name, "memory decides the batches of held-out rows too")


def extent(account: Account) -> None:
    """How long and in which portions to train, as transformers' TrainingArguments name it and set it by default."""
    batch(account, "per_device_train_batch_size", 8)
    account.take("num_train_epochs", "train.epochs", number)
    account.default("num_train_epochs", "train.epochs", 3.0)
    if number(account.get("max_steps", -1)) > 0:
        account.take("max_steps", "train.max_steps", int)
    account.passes("max_steps", "no bound")
    account.take("max_grad_norm", "train.max_grad_norm", number)
    account.take("neftune_noise_alpha", "train.embedding_noise", number)
    account.take("seed", "train.seed", int)
    account.default("seed", "train.seed", 42)


def cut(account: Account, how: str = "") -> str:
    """Cut rows that are too long; a pair that is scored is left out. Returns the note on it.

    Args:
        how: `train.excess_length`; empty: as trainers of TRL do, at their end, each answer of a pair by itself.
    """
    method = name_of(account.recipe.get("method"))
    how = "drop" if method == "rm" else how or ("truncate_answers" if method in PAIRS else "truncate")
    account.set("train.excess_length", how)
    return "rows that are too long are left out, since a score of a part says nothing" if how == "drop" else ""


def without_effect(account: Account, notes: Mapping[str, str]) -> None:
    """Keys that change nothing here, with why; an empty note: they are about what is shown."""
    for key, note in notes.items():
        account.passes(key, note or "it changes the output, not the training")


def without_dropout(account: Account, *on: str) -> None:
    """Trainers of TRL set every dropout of the model that they train to 0, an adapter's too, unless told otherwise.

    Args:
        on: methods whose trainers leave it on in this tool.
    """
    method, adapter = name_of(account.recipe.get("method")), account.recipe.get("adapter")
    off = str(account.get("disable_dropout", method in TURNED_OFF and method not in on)).lower() == "true"
    if off and isinstance(adapter, dict) and adapter.get("dropout"):
        note = f"0, since the trainer of {method} turns off dropout, also an adapter's"
        account.lines = [
            replace(line, outcome="otherwise", note=note) if line.setting == "adapter.dropout" else line
            for line in account.lines
        ]
        account.set("adapter.dropout", 0.0)
    account.passes("disable_dropout", "dropout of a model is off; that of an adapter is adapter.dropout")


def precision(account: Account) -> None:
    """bf16, fp16 and their like."""
    for key, name in (
        ("bf16", "bf16"),
        ("bfloat16", "bf16"),
        ("pure_bf16", "bf16"),
        ("fp16", "fp16"),
        ("float16", "fp16"),
    ):
        value = account.get(key)
        if value is True or value in ("true", "full"):
            account.take(key, "train.precision", value=name)
        elif value == "auto":
            account.take(key, "train.precision")
        else:
            account.passes(key, "it is off")
    if account.get("fp8") is True:
        account.take("fp8", "train.precision", value="fp8")
    account.passes("fp8", "it is off")
    account.passes("tf32", "fp32 products stay in fp32; backend.tf32: true rounds them to TF32")


def checkpointing(account: Account, key: str = "gradient_checkpointing") -> None:
    """Whether activations are computed again."""
    value = account.get(key)
    if isinstance(value, str) and value not in ("true", "false", "auto"):
        account.take(key, "train.gradient_checkpointing", value=True, note=f"nothing is moved to {value!r} storage")
    else:
        account.take(key, "train.gradient_checkpointing")
    for name in ("gradient_checkpointing_kwargs", "use_reentrant_gc"):
        account.passes(name, "it does not change the result")


def machines(account: Account, *, config_alone: bool = False) -> None:
    """Translates the settings that ask for several devices or say how processes are started.

    Args:
        config_alone: whether `fsdp_config` divides a model where `fsdp` is left out.
    """
    deepspeed(account)
    fsdp(account, config_alone=config_alone)
    _together(account)
    for key in TABLES["several_devices"]:
        account.refuse(key, DEVICES, unless=1)
    without_effect(account, tables.notes(TABLES["machines"]))
    for key in TABLES["hub"]:
        account.refuse(key, HUB)


def _together(account: Account) -> None:
    """Ranks that compute the same rows, or groups of ranks: options of `fsdp`, and of positions a strategy too."""
    for key, option in TABLES["together"].items():
        sharded = name_of(account.recipe.get("scale", {}).get("strategy")) == "fsdp"
        count = account.whole(key, 1)
        if count < 2 or (option == "replicas" and not sharded):
            continue
        if option == "context" and not sharded:
            account.set("scale.strategy", {"name": "context", "size": count})
        else:
            account.set("scale.strategy.name", "fsdp")
            account.set(f"scale.strategy.{option}", count)
        account.covered(key, "scale.strategy", "set scale.devices to the number of devices")


def quantised(account: Account, bits: Any, *keys: str, form: Sequence[str] = (), double: Sequence[str] = ()) -> None:
    """A base in fewer bits: the quantizers that are here.

    Args:
        bits: 4, 8 or None.
        keys: what asked for it.
        form: keys that say which 4 bits, `nf4` or `fp4`.
        double: keys that say whether the scales of 4 bits are quantised too.
    """
    if bits in (4, 8):
        form_named = next((account.get(key) for key in form if account.has(key)), "nf4")
        name = "int8" if bits == 8 else "fp4" if form_named == "fp4" else "nf4"
        account.set("quantization", name)
        for key in keys:
            if account.get(key) is not False:
                account.covered(key, "quantization", f"needs the quantizer {name}: ft plugins list --kind quantizer")
        if bits == 4:
            for key in form:
                account.covered(key, "quantization")
            for key in double:
                account.take(key, "quantization.double")
    for key in keys:
        account.passes(key, "it is off")
    for key in (*form, *double):
        account.passes(key, "the configuration sets no base in 4 bits")


def low_rank_defaults(account: Account, rank: int, alpha: float, dropout: float) -> None:
    """`lora_r`, `lora_alpha` and `lora_dropout`, and what the tool takes where they are missing."""
    for key, setting, value in (
        ("lora_r", "rank", rank),
        ("lora_alpha", "alpha", alpha),
        ("lora_dropout", "dropout", dropout),
    ):
        account.take(key, f"adapter.{setting}", number)
        account.default(key, f"adapter.{setting}", value)


def low_rank(account: Account, names: Mapping[str, str]) -> None:
    """Options of a LoRA by the tool's names of `rank`, `alpha`, `dropout`, `targets`, `rslora`, `dora`."""
    for option, key in names.items():
        if option == "targets":
            continue
        convert = int if option == "rank" else number
        account.take(key, f"adapter.{option}", convert if option in ("rank", "alpha", "dropout") else None)
