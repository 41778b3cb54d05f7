"""Configurations of DeepSpeed and of accelerate's launcher: the section `scale`, and a line for every key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool
from finetooth_importer.files import tool_of

ZERO_2: dict[str, Any] = {
    "zero_optimization": {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu", "pin_memory": True}},
    "gradient_clipping": 0.5, "bf16": {"enabled": True}, "train_batch_size": "auto",
    "flops_profiler": {"enabled": True},
}  # fmt: skip
ACCELERATE: dict[str, Any] = {
    "compute_environment": "LOCAL_MACHINE", "distributed_type": "MULTI_GPU", "num_processes": 8, "num_machines": 2,
    "machine_rank": 1, "main_process_ip": "10.0.0.1", "main_process_port": 29500, "mixed_precision": "bf16",
}  # fmt: skip


def outcomes(account: Account) -> dict[str, str]:
    return {line.key: line.outcome for line in account}


@pytest.mark.parametrize(
    ("tool", "given"),
    [
        ("axolotl", {"base_model": "m", "datasets": [{"path": "d", "type": "alpaca"}]}),
        ("llamafactory", {"model_name_or_path": "m", "stage": "sft", "finetuning_type": "lora", "dataset": "d"}),
        ("trl", {"model_name_or_path": "m", "dataset_name": "d"}),
    ],
)
def test_a_file_of_deepspeed_becomes_a_strategy(tmp_path: Path, tool: str, given: dict[str, Any]) -> None:
    """It is found by its name in the same folder, since their examples name it from another one."""
    (tmp_path / "zero2.json").write_text(json.dumps(ZERO_2), encoding="utf-8")
    account = read_tool({**given, "deepspeed": "configs/zero2.json"}, tool, tmp_path / "theirs.yaml")
    assert account.recipe["scale"] == {"strategy": {"name": "deepspeed", "stage": 2, "offload": True}}
    assert account.recipe["train"]["max_grad_norm"] == 0.5
    of_key = outcomes(account)
    assert of_key["deepspeed.flops_profiler.enabled"] == "not taken"
    assert of_key["deepspeed.train_batch_size"] == of_key["deepspeed.zero_optimization.overlap_comm"] == "no effect"


@pytest.mark.parametrize(("stage", "strategy"), [(0, "ddp"), (1, {"name": "deepspeed", "stage": 1})])
def test_a_mapping_in_place_of_the_file(stage: int, strategy: Any) -> None:
    account = read_tool({"base_model": "m", "deepspeed": {"zero_optimization": {"stage": stage}}}, "axolotl")
    assert account.recipe["scale"] == {"strategy": strategy}


def test_stage_3_is_a_strategy_of_its_own() -> None:
    """Weights on the host by its option, the optimizer's state by the optimizer's; NVMe is not there."""
    zero: dict[str, Any] = {"stage": 3, "stage3_prefetch_bucket_size": 1, "offload_param": {"device": "cpu"}}
    zero["offload_optimizer"] = {"device": "cpu"}
    account = read_tool({"base_model": "m", "deepspeed": {"zero_optimization": zero}}, "axolotl")
    assert account.recipe["scale"] == {"strategy": {"name": "zero3", "offload": True}}
    assert account.recipe["optimizer"]["offload"] == "cpu"
    zero["offload_param"] = {"device": "nvme"}
    account = read_tool({"base_model": "m", "deepspeed": {"zero_optimization": zero}}, "axolotl")
    assert account.recipe["scale"] == {"strategy": {"name": "zero3"}}
    assert outcomes(account)["deepspeed.zero_optimization.offload_param.device"] == "not taken"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    account = read_tool({"base_model": "m", "deepspeed": "zero1.json"}, "axolotl", tmp_path / "theirs.yaml")
    (line,) = (line for line in account if line.key == "deepspeed")
    assert line.outcome == "not taken" and "no such JSON file" in line.note
    assert "scale" not in account.recipe


def test_processes_of_accelerate_are_devices_of_each_machine() -> None:
    assert tool_of(ACCELERATE) == "accelerate"
    account = read_tool(ACCELERATE, "accelerate")
    assert account.recipe == {"scale": {"devices": 4, "nodes": 2, "strategy": "ddp"}, "train": {"precision": "bf16"}}
    of_key = outcomes(account)
    assert of_key.keys() == ACCELERATE.keys()
    assert {key for key, outcome in of_key.items() if outcome == "not taken"} == {
        "machine_rank", "main_process_ip", "main_process_port",
    }  # fmt: skip


def test_deepspeed_inside_accelerate(tmp_path: Path) -> None:
    one = {**ACCELERATE, "num_machines": 1, "distributed_type": "DEEPSPEED"}
    keys = {"zero_stage": 1, "offload_optimizer_device": "none", "gradient_clipping": 0.5}
    account = read_tool({**one, "deepspeed_config": keys}, "accelerate")
    assert account.recipe["scale"] == {"devices": 8, "strategy": {"name": "deepspeed", "stage": 1}}
    assert account.recipe["train"]["max_grad_norm"] == 0.5

    (tmp_path / "zero2.json").write_text(json.dumps(ZERO_2), encoding="utf-8")
    named = {**one, "deepspeed_config": {"deepspeed_config_file": "zero2.json"}}
    account = read_tool(named, "accelerate", tmp_path / "default_config.yaml")
    assert account.recipe["scale"]["strategy"] == {"name": "deepspeed", "stage": 2, "offload": True}


def test_another_way_to_share_is_refused() -> None:
    account = read_tool({**ACCELERATE, "distributed_type": "MEGATRON_LM"}, "accelerate")
    assert outcomes(account)["distributed_type"] == "not taken"
    assert "strategy" not in account.recipe["scale"]


@pytest.mark.parametrize(
    ("tool", "given", "strategy"),
    [
        ("axolotl", {"base_model": "m", "fsdp": ["full_shard", "auto_wrap"]}, "fsdp"),
        (
            "axolotl",
            {"base_model": "m", "fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}},
            {"name": "fsdp", "keep_layers": True},
        ),
        ("trl", {"model_name_or_path": "m", "dataset_name": "d", "fsdp": "no_shard auto_wrap"}, "ddp"),
        ("trl", {"model_name_or_path": "m", "dataset_name": "d", "fsdp": "no_shard offload"}, "ddp"),
        (
            "trl",
            {"model_name_or_path": "m", "dataset_name": "d", "fsdp": "offload shard_grad_op"},
            {"name": "fsdp", "keep_layers": True, "offload": True},
        ),
        ("trl", {"model_name_or_path": "m", "dataset_name": "d", "fsdp": True}, "fsdp"),
        (
            "accelerate",
            {
                "distributed_type": "FSDP",
                "num_processes": 2,
                "fsdp_config": {"fsdp_version": 1, "fsdp_sharding_strategy": "SHARD_GRAD_OP"},
            },
            {"name": "fsdp", "keep_layers": True},
        ),
    ],
)
def test_fully_sharded_training_becomes_a_strategy(tool: str, given: dict[str, Any], strategy: Any) -> None:
    """`reshard_after_forward: false` and SHARD_GRAD_OP keep a layer gathered, torch's NO_SHARD is ddp."""
    assert read_tool(given, tool).recipe["scale"]["strategy"] == strategy


@pytest.mark.parametrize(
    ("given", "strategy"),
    [
        ({"context_parallel_size": 2}, {"name": "context", "size": 2}),
        ({"tensor_parallel_size": 2, "sequence_parallel_degree": 4}, {"name": "fsdp", "tensor": 2, "context": 4}),
        ({"fsdp_config": {"offload_params": False}, "dp_replicate_size": 2}, {"name": "fsdp", "replicas": 2}),
        ({"dp_replicate_size": 2, "context_parallel_size": 1}, None),
    ],
)
def test_ranks_that_compute_the_same_rows_become_a_strategy(given: dict[str, Any], strategy: Any) -> None:
    account = read_tool({"base_model": "m", **given}, "axolotl")
    assert account.recipe.get("scale", {}).get("strategy") == strategy
    refused = {key for key, outcome in outcomes(account).items() if outcome == "not taken"}
    assert refused == (set() if strategy else {"dp_replicate_size"})


def test_what_sharded_training_does_not_have_is_said() -> None:
    given = {
        "fsdp_offload_params": True, "fsdp_activation_checkpointing": True, "fsdp_state_dict_type": "FULL_STATE_DICT",
        "fsdp_sharding_strategy": "HYBRID_SHARD", "fsdp_use_orig_params": False, "fsdp_odd": 3,
    }  # fmt: skip
    account = read_tool({"base_model": "m", "fsdp_config": given}, "axolotl")
    assert account.recipe["scale"] == {"strategy": {"name": "fsdp", "offload": True}}
    assert account.recipe["train"]["gradient_checkpointing"] is True
    of_key = {key.removeprefix("fsdp_config."): outcome for key, outcome in outcomes(account).items()}
    assert of_key["offload_params"] == "taken" and of_key["odd"] == "not taken"
    assert of_key["sharding_strategy"] == "otherwise"
    assert of_key["state_dict_type"] == of_key["use_orig_params"] == "no effect"


def test_transformers_divides_nothing_by_its_config_alone() -> None:
    given = {"model_name_or_path": "m", "dataset_name": "d", "fsdp_config": {"reshard_after_forward": True}}
    account = read_tool(given, "trl")
    assert "scale" not in account.recipe and outcomes(account)["fsdp_config"] == "no effect"
