"""Online methods and preference training: prompts of a step, defaults, and keys under other names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]

TRL = {"trainer": "grpo", "model": "m", "dataset_name": "a.jsonl", "learning_rate": 1e-6}
AXOLOTL = {"base_model": "m", "datasets": [{"path": "a.jsonl"}], "sequence_len": 64}


@pytest.mark.parametrize(
    ("given", "prompts", "steps"),
    [
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4, "num_generations": 8}, 4, 1),
        ({"per_device_train_batch_size": 16}, 2, 1),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "num_generations": 4,
          "steps_per_generation": 8}, 16, 4),
        ({"per_device_train_batch_size": 8, "num_generations": 4, "generation_batch_size": 24}, 6, 3),
        ({"per_device_train_batch_size": 4, "trainer": "rloo"}, 2, 1),
    ],
)  # fmt: skip
def test_a_batch_of_completions_is_one_of_prompts(given: dict[str, Any], prompts: int, steps: int) -> None:
    """TRL's batch counts completions: a step of 8 x 4 with groups of 8 has 4 prompts."""
    account = read_tool({**TRL, **given}, "trl")
    assert account.recipe["train"]["batch_size"] == prompts
    assert account.recipe["method"].get("mini_batches", 1) == steps
    (line,) = [line for line in account if line.key == "per_device_train_batch_size"]
    assert "prompts, each with" in line.note


def test_axolotls_batch_counts_completions_too() -> None:
    given = {**AXOLOTL, "rl": "grpo", "micro_batch_size": 4, "gradient_accumulation_steps": 4}
    account = read_tool({**given, "trl": {"num_generations": 4}}, "axolotl")
    assert account.recipe["train"]["batch_size"] == 4
    assert read_tool(given, "axolotl").recipe["train"]["batch_size"] == 2
    gdpo = read_tool({**given, "rl": "gdpo"}, "axolotl").recipe["method"]
    assert (gdpo["name"], gdpo["multi_objective_aggregation"]) == ("grpo", "normalize_then_sum")


@pytest.mark.slow  # importing it takes seconds
def test_defaults_are_those_of_trl() -> None:
    """Of trl 1.16's own configurations, where it is here."""
    trl = pytest.importorskip("trl")
    for kind, name in (("grpo", "GRPOConfig"), ("rloo", "RLOOConfig")):
        theirs = {key: field.default for key, field in getattr(trl, name).__dataclass_fields__.items()}
        made = read_tool({"trainer": kind, "model": "m", "dataset_name": "a.jsonl"}, "trl").recipe
        assert made["optimizer"]["learning_rate"] == theirs["learning_rate"]
        for key in ("num_generations", "max_completion_length", *(["beta"] if kind == "rloo" else ["loss_type"])):
            assert made["method"][key] == theirs[key], key


def test_what_runs_ahead_is_named_otherwise(outcomes: Outcomes) -> None:
    """axolotl's keys of asynchronous training, and ours."""
    block = {
        "num_generations": 4, "async_prefetch": True, "prefetch_depth": 2, "use_data_producer": True,
        "streaming_partial_batch": True, "streaming_min_groups": 3, "replay_buffer_size": 8,
        "reroll_start_fraction": 0.4, "reroll_max_groups": 2, "reward_num_workers": 2, "vllm_lora_sync": True,
        "vllm_importance_sampling_correction": True, "vllm_importance_sampling_mode": "token_mask",
        "vllm_importance_sampling_cap": 2.5, "skip_zero_advantage_batches": False,
    }  # fmt: skip
    account = read_tool({**AXOLOTL, "rl": "grpo", "trl": block}, "axolotl")
    wanted = {
        "prefetch": 2, "streaming_groups": 3, "replay_groups": 8, "reroll_start": 0.4, "reroll_groups": 2,
        "importance_correction": "mask", "importance_correction_level": "token", "importance_correction_cap": 2.5,
        "skip_zero_advantage_batches": False,
    }  # fmt: skip
    assert account.recipe["method"] == account.recipe["method"] | wanted
    assert not [line for line in account if line.outcome == "not taken"]
    block |= {"replay_recompute_logps": True, "vllm_sync_interval": 3, "rollout_func": "my.rollout"}
    between = read_tool({**AXOLOTL, "rl": "grpo", "trl": block}, "axolotl").recipe["method"]
    assert (between["sync_every"], between["prefetch"]) == (3, 3)  # what waits has to last from one to the next
    found = outcomes(read_tool({**AXOLOTL, "rl": "grpo", "trl": block}, "axolotl"))
    for key in ("replay_recompute_logps", "rollout_func"):
        assert found[f"trl.{key}"][0] == "not taken"
    assert found["trl.vllm_sync_interval"][0] == "otherwise"
    default = read_tool({**AXOLOTL, "rl": "grpo", "trl": {"async_prefetch": True}}, "axolotl").recipe["method"]
    assert (default["importance_correction"], default["importance_correction_level"]) == ("mask", "sequence")


def test_losses_of_preference_training() -> None:
    dpo = {**AXOLOTL, "rl": "dpo", "precompute_ref_log_probs": True}
    made = read_tool({**dpo, "dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [1.0, 0.2]}, "axolotl").recipe
    assert made["method"]["losses"] == [{"name": "sigmoid", "weight": 1.0}, {"name": "sft", "weight": 0.2}]
    assert made["method"]["reference"] == {"policy": "precomputed"}
    made = read_tool({**dpo, "dpo_label_smoothing": 0.1}, "axolotl").recipe
    assert made["method"]["loss"] == {"name": "sigmoid", "label_smoothing": 0.1}
    assert read_tool({**dpo, "dpo_loss_type": ["hinge"]}, "axolotl").recipe["method"]["loss"] == {"name": "hinge"}
    made = read_tool({**AXOLOTL, "rl": "simpo", "simpo_gamma": 1.0}, "axolotl").recipe
    assert made["method"] == {"name": "simpo", "gamma": 1.0, "beta": 0.1, "sft_weight": 1.0}


def test_ebft_is_ebft(outcomes: Outcomes) -> None:
    block = {"feature_layers": [0.5], "embed_method": "concat", "use_whitening": True, "ce_coef": 0.03, "stride": 8}
    trl = {"num_generations": 4, "max_completion_length": 64, "scale_rewards": True, "use_vllm": True}
    account = read_tool({**AXOLOTL, "rl": "ebft", "ebft": block, "trl": trl}, "axolotl")
    wanted = {
        "name": "ebft", "feature_layers": [0.5], "embed_method": "concat", "use_whitening": True, "ce_coef": 0.03,
        "num_generations": 4, "max_completion_length": 64, "advantage_estimator": "group_norm",
    }  # fmt: skip
    assert account.recipe["method"] == account.recipe["method"] | wanted
    found = outcomes(account)
    assert found["ebft.stride"] == ("no effect", "") and found["ebft.ce_coef"][0] == "taken"
    assert read_tool({**AXOLOTL, "rl": "ebft"}, "axolotl").recipe["method"]["name"] == "ebft"


def test_ebft_in_strides_is_a_method_of_its_own(outcomes: Outcomes) -> None:
    block = {"mode": "strided", "stride": 4, "context_length": 6, "generate_max_len": 5, "n_samples_per_prompt": 2,
             "min_completion_prefix": 1, "advantage_estimator": "grpo", "top_p": 0.9}  # fmt: skip
    account = read_tool({**AXOLOTL, "rl": "ebft", "ebft": block}, "axolotl")
    wanted = {**block, "name": "ebft_strided", "advantage_estimator": "group_norm", "temperature": 0.6}
    assert account.recipe["method"] == {name: value for name, value in wanted.items() if name != "mode"}
    assert {outcome for outcome, *_ in outcomes(account).values()} <= {"taken", "default", "no effect", "otherwise"}


TALK = [
    {"role": "user", "content": "A fruit?"},
    {"role": "assistant", "content": "<think>Sweet.</think>A fig."},
    {"role": "user", "content": "Thanks."},
]


@pytest.mark.parametrize(
    ("kind", "row", "options", "columns"),
    [
        ("opencode.transform", {"input": "Add.", "output": "a + b"}, {"reference_column": "output"},
         {"output": "a + b"}),
        ("chat_multiturn.transform_last_turn", {"messages": TALK}, {}, {"answer": TALK[1]["content"]}),
        ("reasoning.transform", {"messages": TALK}, {"reasoning_column": "reasoning"},
         {"answer": "A fig.", "reasoning": "Sweet."}),
        ("reasoning.transform_answer_only", {"messages": TALK}, {}, {"answer": "A fig.", "reasoning": "Sweet."}),
    ],
)  # fmt: skip
def test_rows_of_ebft_become_what_its_functions_make(
    kind: str, row: Any, options: dict[str, str], columns: dict[str, str], read_as: Callable[..., Any]
) -> None:
    datasets = [{"path": "a.jsonl", "type": f"ebft_{kind}"}]
    account = read_tool({**AXOLOTL, "rl": "ebft", "datasets": datasets}, "axolotl")
    named = {name: account.recipe["method"].get(name) for name in ("reference_column", "reasoning_column")}
    assert {name: value for name, value in named.items() if value} == options
    assert not [line for line in account if line.outcome == "not taken"]
    read = read_as(account.recipe["data"]["train"]["format"], row)
    (task,) = read if isinstance(read, list) else [read]
    assert task.columns == columns
    shown = task.prompt if isinstance(task.prompt, str) else task.prompt[-1].content
    assert shown == ("Add." if "input" in row else "A fruit?")
    strided = {**AXOLOTL, "rl": "ebft", "ebft": {"mode": "strided"}, "datasets": datasets}
    assert any(line.key == "datasets[0].type" for line in read_tool(strided, "axolotl"))


@pytest.mark.parametrize(
    ("tool", "given", "method"),
    [
        ("axolotl", {**AXOLOTL, "rl": "nash"}, "nash"),
        ("trl", {**TRL, "trainer": "nash_md"}, "nash_md"),
        ("llamafactory", {"model_name_or_path": "m", "stage": "mca", "dataset": "a.jsonl"}, "mca"),
        ("autotrain", {"model": "m", "data_path": "a.jsonl", "project_name": "p", "trainer": "ppo2"}, "ppo2"),
        ("torchtune", {"loss": {"_component_": "torchtune.rlhf.loss.PPOLoss"}, "epochs": 1}, "PPOLoss"),
        ("mud-puppy", {"mud_puppy": True, "model": "m", "dataset": "a.jsonl", "method": "tbd"}, "tbd"),
    ],
)
def test_a_method_that_is_not_here_becomes_no_other(tool: str, given: dict[str, Any], method: str) -> None:
    """The recipe names it, so that its check refuses it and nothing else is trained."""
    account = read_tool(given, tool)
    named = account.recipe["method"]
    assert (named["name"] if isinstance(named, dict) else named) == method
    assert tool == "mud-puppy" or "not taken" in {line.outcome for line in account}


@pytest.mark.parametrize("rl", ["grpo", "gdpo"])
def test_what_normalizes_each_reward_leaves_scale_rewards_out(rl: str) -> None:
    """TRL's normalize_then_sum divides by its own deviations, whatever scale_rewards says; ours refuses the two."""
    block = {"scale_rewards": True, **({"multi_objective_aggregation": "normalize_then_sum"} if rl == "grpo" else {})}
    account = read_tool({"base_model": "m", "rl": rl, "trl": block}, "axolotl")
    assert account.recipe["method"]["multi_objective_aggregation"] == "normalize_then_sum"
    assert "scale_rewards" not in account.recipe["method"]
    assert {line.key: line.outcome for line in account}["trl.scale_rewards"] == "no effect"


def test_the_bound_of_cispo_is_trls(outcomes: Outcomes) -> None:
    """TRL holds a ratio at `epsilon_high` itself; the loss that is imported is asked where it holds one."""
    SurrogateOptions = pytest.importorskip("finetooth_policygradient.surrogate").SurrogateOptions

    keys = {"trainer": "grpo", "dataset_name": "a/b", "loss_type": "cispo"}
    taken = read_tool({**keys, "epsilon_high": 5.0}, "trl").recipe["method"]
    options = SurrogateOptions(objective="cispo", epsilon_high=taken["epsilon_high"])
    assert 1 + options.high == 5.0
    for more in ({}, {"epsilon_high": 0.3}):
        account = read_tool({**keys, **more}, "trl")
        assert outcomes(account)["epsilon_high"][0] == "not taken" and "epsilon_high" not in account.recipe["method"]
    assert read_tool({**keys, "loss_type": "dapo", "epsilon_high": 0.3}, "trl").recipe["method"]["epsilon_high"] == 0.3
