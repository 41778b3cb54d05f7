"""Options of online methods, as TRL's GRPOConfig and RLOOConfig name them; axolotl's `trl` block has the same names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from finetooth_importer import tables
from finetooth_importer.account import Account, number

TABLES = tables.of("rollouts")
OPTIONS: Sequence[str] = TABLES["options"]
"""Options that are called and mean the same here."""

NO_EFFECT: Mapping[str, str] = tables.notes(TABLES["no_effect"])

GUIDED = ("vllm_guided_decoding_regex", "vllm_structured_outputs_regex")
"""A regular expression that answers are held to; the second is the newer name."""

JUDGES: Mapping[str, Any] = TABLES["judges"]
"""Rewards that come with TRL, by what is like them here."""

REFUSED: Mapping[str, str] = tables.notes(TABLES["refused"])

DOTTED = re.compile(r"(\w+\.)+\w+")

SYNC_STEPS = 512
"""TRL's default of `ref_model_sync_steps`; that of `ref_model_mixup_alpha` is ours of `mix`, 0.6."""

NEW_WEIGHTS = "prompts are answered ahead where the sampler gets weights, so as many batches wait"

BOUNDED = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
CORRECTIONS = {"token_truncate": ("truncate", "token"), "token_mask": ("mask", "token"),
               "sequence_truncate": ("truncate", "sequence"), "sequence_mask": ("mask", "sequence")}  # fmt: skip
"""How the sampler's own log-probabilities are corrected for: ours of both, and of how much at a time."""


def read(account: Account, method: str, prefix: str = "") -> None:
    """Take the options of an online method.

    Args:
        method: as it is called here.
        prefix: before every key, `trl.`.
    """
    for name in OPTIONS:
        key = prefix + name
        if name == "loss_type" and account.get(key) not in (None, *BOUNDED):
            account.refuse(key, f"method.loss_type is one of {', '.join(BOUNDED)}", unless=None)
        elif name == "epsilon_high" and account.get(f"{prefix}loss_type") == "cispo":
            _bound(account, prefix)
        elif account.has(key):
            account.take(key, f"method.{name}", number)
    account.take(f"{prefix}shuffle_dataset", "train.shuffle")
    account.take(f"{prefix}top_k", "method.top_k", lambda value: max(0, int(value)))
    account.take(f"{prefix}entropy_coef", "method.entropy_coef", number)
    _steered(account, prefix)
    _ends(account, f"{prefix}generation_kwargs")
    arguments = account.get(f"{prefix}chat_template_kwargs")
    if isinstance(arguments, Mapping) and "renderer" not in account.recipe.get("data", {}):
        account.set("data.renderer", {"name": "jinja", "arguments": dict(arguments)})
        account.covered(f"{prefix}chat_template_kwargs", "data.renderer.arguments", "by the model's own template")
    scaled = account.get(f"{prefix}scale_rewards")
    made = account.recipe.get("method")
    if isinstance(made, dict) and made.get("multi_objective_aggregation") == "normalize_then_sum":
        account.passes(f"{prefix}scale_rewards", "normalize_then_sum scales rewards in its own way, there as well")
    elif method == "grpo" and scaled is not None:
        words = {True: "group", "True": "group", "true": "group", False: "none", "False": "none", "false": "none"}
        account.take(f"{prefix}scale_rewards", "method.scale_rewards", value=words.get(scaled, scaled))
    account.passes(f"{prefix}scale_rewards", f"method {method} has its own")
    account.default(f"{prefix}num_generations", "method.num_generations", 2 if method == "rloo" else 8)
    account.default(f"{prefix}max_completion_length", "method.max_completion_length", 512)
    if method == "rloo":
        if account.get(f"{prefix}beta") != 0:
            account.default(f"{prefix}beta", "method.beta", 0.05)
            account.set("method.kl_in", "reward")  # where theirs takes it from
    elif number(account.get(f"{prefix}beta", 0)):
        account.default(f"{prefix}use_bias_correction_kl", "method.use_bias_correction_kl", True)
    if method == "grpo" and not account.has(f"{prefix}loss_type"):
        account.default(f"{prefix}loss_type", "method.loss_type", "dapo")
    _rewards(account, prefix)
    for key in GUIDED:
        account.take(prefix + key, "method.guided.regex")
    _ahead(account, prefix)
    _correction(account, prefix)
    for key, note in NO_EFFECT.items():
        account.passes(prefix + key, note)
    for key, note in REFUSED.items():
        account.refuse(prefix + key, note)
    reference(account, prefix)


def _bound(account: Account, prefix: str) -> None:
    """CISPO's bound of ratios: there `epsilon_high` itself, or else `epsilon`; here 1 more than `epsilon_high`."""
    key = f"{prefix}epsilon_high"
    bound = number(account.get(key, account.get(f"{prefix}epsilon", 0.2)))
    if isinstance(bound, int | float) and bound >= 1:
        account.take(key, "method.epsilon_high", value=bound - 1, note=f"{bound} bounds ratios, 1 more than it")
    elif not account.refuse(key, f"ratios are cut to {bound} there, below 1; set the bound less 1", unless=None):
        account.inside(key, bound, "not taken", note=f"left out, ratios are cut to {bound} there, and to 5 here")


def prompts(account: Account, block: Account, prefix: str, each: str) -> None:
    """Turn a batch that counts completions into one of prompts, once it is set: each prompt has a group of them.

    Args:
        block: holds the options of the method, which `account` or a block in it has.
        each: the key with the completions that go through at once, to which a note is written.
    """
    group = block.whole(f"{prefix}num_generations", account.recipe["method"].get("num_generations", 8))
    step = account.recipe["train"]["batch_size"]
    drawn = step
    if block.has(f"{prefix}generation_batch_size"):
        drawn = block.whole(f"{prefix}generation_batch_size", step)
    elif block.has(f"{prefix}steps_per_generation"):
        drawn = account.whole(each, step) * block.whole(f"{prefix}steps_per_generation", 1)
    for key in ("steps_per_generation", "generation_batch_size"):
        block.covered(prefix + key, "method.mini_batches")
    if drawn > step and drawn % step == 0:
        account.set("method.mini_batches", drawn // step)
    account.set("train.batch_size", max(1, drawn // group))
    note = f"prompts, each with {group} completions: there a step counts {step} completions"
    if drawn % group:
        note += ", not a whole number of groups"
    account.lines = [
        replace(line, note=note) if line.setting == "train.batch_size" and line.key == each else line
        for line in account.lines
    ]


def _ahead(account: Account, prefix: str) -> None:
    """Rollouts that are drawn ahead, kept and asked for once more, as axolotl names it."""
    if account.get(f"{prefix}async_prefetch"):
        depth, every = account.whole(f"{prefix}prefetch_depth", 1), account.whole(f"{prefix}vllm_sync_interval", 1)
        account.set("method.prefetch", max(depth, every))
        for key in ("async_prefetch", "prefetch_depth"):
            account.covered(prefix + key, "method.prefetch")
        account.take(f"{prefix}vllm_sync_interval", "method.sync_every", int, note=NEW_WEIGHTS if every > depth else "")
    if account.get(f"{prefix}streaming_partial_batch"):
        account.set("method.streaming_groups", account.whole(f"{prefix}streaming_min_groups", 1))
        for key in ("streaming_partial_batch", "streaming_min_groups"):
            account.covered(prefix + key, "method.streaming_groups")
    if account.whole(f"{prefix}replay_buffer_size", 0):
        account.take(f"{prefix}replay_buffer_size", "method.replay_groups", int)
        account.refuse(
            f"{prefix}replay_recompute_logps",
            "repeated training on a group is corrected by its sampling log-probabilities",
        )
    if number(account.get(f"{prefix}reroll_start_fraction", 1)) < 1:
        account.take(f"{prefix}reroll_start_fraction", "method.reroll_start", number)
        account.set("method.reroll_groups", account.whole(f"{prefix}reroll_max_groups", 1))
        account.covered(f"{prefix}reroll_max_groups", "method.reroll_groups")
    for key in ("async_prefetch", "prefetch_depth", "vllm_sync_interval", "streaming_partial_batch",
                "streaming_min_groups", "replay_buffer_size", "replay_recompute_logps", "reroll_start_fraction",
                "reroll_max_groups"):  # fmt: skip
        account.passes(prefix + key, "it is off")


def _correction(account: Account, prefix: str) -> None:
    """What corrects for a sampler with other weights or another arithmetic; TRL masks whole sequences by itself."""
    mode = f"{prefix}vllm_importance_sampling_mode"
    switch = f"{prefix}vllm_importance_sampling_correction"
    if account.get(switch) is False:
        account.take(switch, "method.importance_correction", value="none")
    elif account.get(mode) in CORRECTIONS:
        how, level = CORRECTIONS[str(account.get(mode))]
        account.take(mode, "method.importance_correction", value=how)
        account.set("method.importance_correction_level", level)
    elif account.get(f"{prefix}use_vllm") or account.get(f"{prefix}async_prefetch"):
        account.default(mode, "method.importance_correction", "mask", "of whole sequences")
        account.set("method.importance_correction_level", "sequence")
    for name in ("cap", "clip_max"):
        account.take(f"{prefix}vllm_importance_sampling_{name}", "method.importance_correction_cap", number)
    account.take(f"{prefix}vllm_importance_sampling_clip_min", "method.importance_correction_floor", number)
    account.covered(switch, "method.importance_correction")
    account.refuse(mode, f"method.importance_correction: one of {', '.join(CORRECTIONS)} there")


def _steered(account: Account, prefix: str) -> None:
    """Whether the entropy bonus is steered to a target, 0.2 nats where TRL is not told."""
    names = "entropy_target", "entropy_coef_min", "entropy_coef_max", "entropy_coef_delta"
    if str(account.get(f"{prefix}use_adaptive_entropy")).lower() != "true":
        for name in ("use_adaptive_entropy", *names):
            account.passes(prefix + name, "the weight of the bonus is constant")
        return
    for name in names:
        account.take(prefix + name, f"method.{name}", number)
    account.default(f"{prefix}entropy_target", "method.entropy_target", 0.2)
    account.covered(f"{prefix}use_adaptive_entropy", "method.entropy_target")


def _ends(account: Account, key: str) -> None:
    """What ends an answer, of the further arguments of generation."""
    arguments = account.get(key)
    if not isinstance(arguments, Mapping):
        return
    ids = arguments.get("stop_token_ids", arguments.get("eos_token_id"))
    strings = arguments.get("stop", arguments.get("stop_strings"))
    others = sorted(set(arguments) - {"stop_token_ids", "eos_token_id", "stop", "stop_strings"})
    if ids is not None:
        account.set("method.stop_ids", [ids] if isinstance(ids, int) else list(ids))
    if strings:
        account.set("method.stop", [strings] if isinstance(strings, str) else list(strings))
    if others:
        account.refuse(key, f"method.stop_ids and method.stop are taken, but not {', '.join(others)}")
    else:
        account.covered(key, "method.stop_ids" if ids is not None else "method.stop")


def reference(account: Account, prefix: str) -> None:
    """Whether what `beta` holds the policy to follows it."""
    keys = [prefix + name for name in ("sync_ref_model", "ref_model_sync_steps", "ref_model_mixup_alpha")]
    if account.get(keys[0]):
        account.take(keys[0], "method.reference.sync_every", value=account.get(keys[1]) or SYNC_STEPS, note="steps")
        account.covered(keys[1], "method.reference.sync_every")
        account.take(keys[2], "method.reference.mix", number)
        return
    for key in keys:
        account.passes(key, "the reference does not change")


def _rewards(account: Account, prefix: str) -> None:
    key = f"{prefix}reward_funcs"
    functions = account.get(key)
    names = [functions] if isinstance(functions, str) else list(functions or [])
    weights = account.get(f"{prefix}reward_weights") or []
    made: list[Any] = []
    inside: list[str] = []
    for place, name in enumerate(map(str, names)):
        module, _, function = name.rpartition(".") if DOTTED.fullmatch(name) else ("", "", name)
        if function in JUDGES:
            reward = dict(JUDGES[function])
        elif module:
            # a function of the user's own, `rewards.length`: our entry calls it as TRL does
            reward = {"name": "python_function", "module": module, "function": function}
        else:
            reward = {"name": "python_function", "file": "rewards.py", "function": function}
            inside.append(function)
        if place < len(weights):
            reward["weight"] = number(weights[place])
        made.append(reward)
    if made:
        note = f"copy {', '.join(inside)} with all that it uses to rewards.py: a training script is not imported"
        account.take(key, "method.rewards", value=made, note=note if inside else "see that each module can be imported")
    account.covered(f"{prefix}reward_weights", "method.rewards")
