"""What becomes of the keys of each tool."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_importer import files
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]


AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: teknium/GPT4-LLM-Cleaned
    type: alpaca
  - path: rows.jsonl
    type: chat_template
    field_messages: conversations
    message_property_mappings: {role: from, content: value}
    roles: {assistant: [gpt, model], user: [human]}
val_set_size: 0.1
adapter: qlora
load_in_4bit: true
lora_r: 16
lora_alpha: 32
lora_target_linear: true
sequence_len: 2048
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
learning_rate: 2e-4
optimizer: paged_adamw_8bit
warmup_steps: 10
lisa_n_layers: 4
lora_alhpa: 3
wandb_project:
"""


def test_axolotl(outcomes: Outcomes) -> None:
    account = read_tool(files.of_yaml(AXOLOTL, Path("a.yml")), "axolotl")
    assert account.recipe["train"] == {
        "max_length": 2048,
        "batch_size": 8,
        "epochs": 3,
        "seed": 42,
    }
    assert account.recipe["data"]["train"] == [
        {"name": "datasets", "path": "teknium/GPT4-LLM-Cleaned", "split": "train", "format": "instruction"},
        {
            "name": "jsonl",
            "path": "rows.jsonl",
            "format": {
                "name": "chat",
                "column": "conversations",
                "fields": {"role": "from", "content": "value"},
                "roles": {"gpt": "assistant", "model": "assistant", "human": "user"},
            },
        },
    ]
    assert account.recipe["data"]["eval"] == {"fraction": 0.1}
    assert account.recipe["adapter"] == {"name": "lora", "rank": 16, "alpha": 32, "targets": "all-linear"}
    assert account.recipe["quantization"] == "nf4"
    assert account.recipe["optimizer"] == {"name": "paged_adamw_8bit", "learning_rate": 2e-4}
    assert account.recipe["schedule"] == {"warmup_steps": 10, "name": "cosine"}
    found = outcomes(account)
    assert found["optimizer"] == ("taken", "optimizer")
    assert found["lisa_n_layers"][0] == "not taken"
    assert found["seed"] == ("default", "train.seed")
    assert found["wandb_project"] == ("no effect", "")
    (slip,) = [line for line in account if line.key == "lora_alhpa"]
    assert slip.outcome == "not taken" and "did you mean lora_alpha" in slip.note


def test_settings_that_stand_inside_others(outcomes: Outcomes) -> None:
    """torchtune names other settings inside a text; mlx-lm's scale is ours times the rank."""
    tune = """
output_dir: /tmp/out
model: {_component_: torchtune.models.llama3_2.qlora_llama3_2_1b, lora_attn_modules: [q_proj, output_proj],
        apply_lora_to_mlp: false, lora_rank: 4, lora_alpha: 8}
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: "${output_dir}/base"}
dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset, train_on_input: false}
optimizer: {_component_: torch.optim.AdamW, lr: 3e-4}
loss: {_component_: torchtune.rlhf.loss.DPOLoss, beta: 0.2, label_smoothing: 0.1}
seed: "${nowhere}"
"""
    account = read_tool(files.of_yaml(tune, Path("a.yaml")), "torchtune")
    made = account.recipe
    assert made["model"]["name"] == "/tmp/out/base" and made["quantization"] == "nf4"
    assert made["adapter"] == {"name": "lora", "targets": ["q_proj", "o_proj"], "rank": 4, "alpha": 8}
    assert made["method"] == {"name": "dpo", "beta": 0.2, "loss": {"name": "sigmoid", "label_smoothing": 0.1}}
    assert made["optimizer"] == {"name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.01}
    assert made["schedule"] == "constant" and made["train"]["max_grad_norm"] == 0
    assert outcomes(account)["seed"] == ("not taken", "")
    mlx = {"model": "m", "iters": 10, "num_layers": -1, "lora_parameters": {"rank": 4, "scale": 5.0}}
    made = read_tool(mlx, "mlx-lm").recipe
    assert made["adapter"] == {"name": "lora", "rank": 4, "alpha": 20.0}
    assert (made["train"]["max_steps"], made["optimizer"]["learning_rate"]) == (10, 1e-5)


def test_what_is_here_now_is_taken(outcomes: Outcomes) -> None:
    """Settings for which there is something of ours: adapters, losses, optimizers, trackers, online methods."""
    online = {"num_generations": 4, "reward_funcs": ["rewards.length"], "loss_type": "dapo", "no_such": 1,
              "vllm_guided_decoding_regex": "[0-9]+"}  # fmt: skip
    account = read_tool({"base_model": "m", "datasets": [], "sequence_len": 8, "rl": "grpo", "trl": online}, "axolotl")
    method = account.recipe["method"]
    assert (method["name"], method["num_generations"], method["loss_type"]) == ("grpo", 4, "dapo")
    assert method["rewards"] == [{"name": "python_function", "module": "rewards", "function": "length"}]
    assert outcomes(account)["trl.no_such"][0] == "not taken"
    (guided,) = (one for one in account if one.key == "trl.vllm_guided_decoding_regex")
    assert guided.outcome == "taken" and method["guided"] == {"regex": "[0-9]+"}
    more = {"use_adaptive_entropy": True, "entropy_coef_max": 0.5, "top_entropy_quantile": 0.2,
            "generation_kwargs": {"stop_token_ids": [7, 9], "stop": "</a>"},
            "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    account = read_tool(
        {"base_model": "m", "datasets": [], "sequence_len": 8, "rl": "grpo", "trl": online | more}, "axolotl"
    )
    expected = {"entropy_target": 0.2, "entropy_coef_max": 0.5, "top_entropy_quantile": 0.2, "stop_ids": [7, 9]}
    assert {name: account.recipe["method"][name] for name in expected} == expected
    assert account.recipe["method"]["stop"] == ["</a>"]
    assert account.recipe["data"]["renderer"] == {"name": "jinja", "arguments": {"enable_thinking": False}}
    other = {**online, "entropy_target": 0.3, "generation_kwargs": {"seed": 3}}
    account = read_tool({"base_model": "m", "datasets": [], "sequence_len": 8, "rl": "grpo", "trl": other}, "axolotl")
    assert "entropy_target" not in account.recipe["method"]
    assert outcomes(account)["trl.generation_kwargs"][0] == "not taken"
    given = {"base_model": "m", "datasets": [], "sequence_len": 8, "optimizer": "came_pytorch", "adam_beta1": 0.8,
             "lisa_n_layers": 2, "lisa_step_interval": 5, "wandb_project": "p", "wandb_mode": "offline",
             "early_stopping_patience": 3, "evals_per_epoch": 1}  # fmt: skip
    made = read_tool(given, "axolotl").recipe
    assert made["optimizer"] == {"name": "came", "betas": [0.8, 0.999, 0.9999]}
    adam = {"adam_beta1": 0.8, "adam_epsilon": 1e-6}
    for theirs, ours in {
        "flash_adamw": {"name": "flash_adamw", "betas": [0.8, 0.999], "eps": 1e-6},
        "flash_adam": {"name": "flash_adam", "betas": [0.8, 0.999], "eps": 1e-6},
        "flash_lion": {"name": "flash_lion", "betas": [0.8, 0.999]},
        "flash_sgd": "flash_sgd",
        "flash_sgdw": "flash_sgdw",
        "optimi_adamw": {"name": "adamw", "betas": [0.8, 0.999], "eps": 1e-6},
    }.items():
        assert read_tool({**given, **adam, "optimizer": theirs}, "axolotl").recipe["optimizer"] == ours
    assert made["adapter"] == {"name": "lisa", "layers": 2, "every": 5}
    assert made["trackers"] == ["console", "jsonl", {"name": "wandb", "project": "p", "mode": "offline"}]
    assert made["train"]["early_stopping"] == {"patience": 3, "metric": "eval/loss"}
    given = {"model_name_or_path": "m", "stage": "sft", "finetuning_type": "oft", "oft_block_size": 16,
             "use_badam": True, "badam_switch_interval": 9, "use_dft_loss": True}  # fmt: skip
    made = read_tool(given, "llamafactory").recipe
    assert made["adapter"] == {"name": "oft", "block_size": 16} and made["method"] == {"name": "sft", "loss": "dft"}
    assert (made["optimizer"]["name"], made["optimizer"]["switch_every"]) == ("badam", 9)


def test_further_keys_of_axolotl_are_taken(outcomes: Outcomes) -> None:
    given = {
        "base_model": "m", "datasets": [{"path": "a.jsonl", "type": "chat_template", "split_thinking": True}],
        "rl": "reward_trainer", "chat_template": "gemma4", "save_strategy": "best", "metric_for_best_model": "eval_f1",
        "eval_steps": 5, "adapter": "qlora", "processor_kwargs": {"max_pixels": 9}, "quantize_moe_experts": True,
        "bnb_config_kwargs": {"bnb_4bit_use_double_quant": False}, "merge_lora_methods": "efficient",
        "lm_eval_tasks": ["arc"], "model_quantization_config": "FineGrainedFP8Config",
        "model_quantization_config_kwargs": {"dequantize": True},
    }  # fmt: skip
    account = read_tool(given, "axolotl")
    made, found = account.recipe, outcomes(account)
    assert made["method"] == "rm" and made["data"]["renderer"] == "gemma4"
    assert made["model"] == {"name": "m", "loader": {"name": "transformers", "dequantize": True}}
    assert made["checkpoint"] == {"keep_best": {"n": 1, "metric": "eval/f1"}, "every": 5}
    assert made["quantization"] == {"name": "nf4", "double": False}
    assert made["data"]["processor"] == {"name": "transformers", "image": {"max_pixels": 9}}
    assert {key for key, (outcome, _) in found.items() if outcome == "not taken"} == {"lm_eval_tasks"}
    chat = read_tool({**given, "rl": None}, "axolotl").recipe["data"]["train"]["format"]
    assert chat == {"name": "chat", "split_thinking": True}


def test_what_a_tool_does_not_read_is_named_and_not_taken() -> None:
    """axolotl trains on pretraining_dataset alone where both are given, and only LLaMA-Factory's trainers that keep
    transformers' loss smooth labels."""
    given = {"base_model": "m", "sequence_len": 8, "datasets": [{"path": "a.jsonl"}], "pretraining_dataset": "b.jsonl"}
    account = read_tool(given, "axolotl")
    found = {line.key: (line.outcome, line.note) for line in account}
    assert "b.jsonl" in str(account.recipe["data"]) and "a.jsonl" not in str(account.recipe["data"])
    assert found["datasets"] == ("no effect", "with both, the tool trains only on pretraining_dataset")
    given = {"model_name_or_path": "m", "stage": "dpo", "finetuning_type": "lora", "use_dft_loss": True,
             "label_smoothing_factor": 0.1}  # fmt: skip
    found = {line.key: (line.outcome, line.note) for line in read_tool(given, "llamafactory")}
    assert found["use_dft_loss"] == ("no effect", "the tool reads it only in stage sft")
    assert found["label_smoothing_factor"] == ("no effect", "the tool reads none in stage dpo")
    smoothed = read_tool({**given, "stage": "pt"}, "llamafactory").recipe["method"]
    assert smoothed == {"name": "pretrain", "loss": {"name": "smoothed_cross_entropy", "label_smoothing": 0.1}}


def test_rloo_of_trl_pays_for_the_kl_in_its_reward() -> None:
    """Its trainer takes beta times the KL from the reward, and beta is 0.05 where it is left out."""
    given = {"model_name_or_path": "m", "dataset_name": "d", "trainer": "rloo"}
    for beta, expected in (({}, (0.05, "reward")), ({"beta": 0.2}, (0.2, "reward")), ({"beta": 0.0}, (0.0, None))):
        method = read_tool({**given, **beta}, "trl").recipe["method"]
        assert (method["name"], method["beta"], method.get("kl_in")) == ("rloo", *expected)


def test_what_is_said_to_be_missing_is_missing() -> None:
    """A key that is named for an entry is not answered with there being none of that name."""
    from finetooth_importer.tools import axolotl_keys, llamafactory, trl

    index = Path(__file__).parents[4] / "core/kernel/src/finetooth_core/index.json"
    kinds = ("adapter", "loss", "optimizer", "tracker", "method", "quantizer")
    entries = json.loads(index.read_text(encoding="utf-8"))
    names = {name for kind in kinds for name in entries[kind]}
    assert {"qat", "badam", "dft", "wandb"} <= names
    for tool in (axolotl_keys, llamafactory, trl):
        for key, said in tool.REFUSED.items():
            denied = "here" in said.split() and (said.startswith("no ") or "is not here" in said)
            assert not (denied and names & set(key.split("_")) - {"fp8"}), (key, said)


def test_what_a_key_leaves_to_a_default_is_no_second_key() -> None:
    """Rows that lie beside a TRL script decide a format, and its default is listed below the same key."""
    account = Account({"path": "rows.jsonl", "mystery": 1})
    account.take("path", "data.train")
    account.inside("path", "texts", "default", "data.format")
    account.finish()
    assert account.shares() == (1, 2)


def test_only_keys_that_are_known_are_proposed() -> None:
    account = read_tool({"base_model": "m", "datasets": [], "my_own_uri": None, "my_own_url": 1}, "axolotl")
    (line,) = [line for line in account if line.key == "my_own_url"]
    assert line.note == "finetooth knows no such key of the tool"


def test_a_value_that_is_none_is_named() -> None:
    account = read_tool(
        {"base_model": "m", "sequence_len": "long", "micro_batch_size": "two", "datasets": []}, "axolotl"
    )
    lines = {line.key: line for line in account if line.outcome == "not taken"}
    assert "train.max_length cannot have this value" in lines["sequence_len"].note
    assert "not a whole number" in lines["micro_batch_size"].note


def test_a_base_in_fewer_bits_is_one_that_a_package_brings() -> None:
    """By its name and its options, as the two tools with keys of their own for them ask."""
    from finetooth_core.plugins.catalog import INDEX

    index = json.loads(INDEX.read_text(encoding="utf-8"))["quantizer"]
    trl = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True}
    factory = {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": False}
    for given, tool, wanted in (
        ({"model_name_or_path": "m", "use_peft": True, **trl}, "trl", {"name": "fp4", "double": True}),
        ({"model_name_or_path": "m", "finetuning_type": "lora", **factory}, "llamafactory",
         {"name": "nf4", "double": False}),
        ({"model_name_or_path": "m", "finetuning_type": "lora", "quantization_bit": 8}, "llamafactory", "int8"),
    ):  # fmt: skip
        found = read_tool(given, tool).recipe["quantization"]
        assert found == wanted
        assert (found["name"] if isinstance(found, dict) else found) in index


def test_a_switch_that_is_off_asks_for_no_base_in_fewer_bits() -> None:
    account = read_tool({"base_model": "m", "adapter": "lora", "load_in_8bit": True, "load_in_4bit": False}, "axolotl")
    assert account.recipe["quantization"] == "int8"
    outcomes = {line.key: line.outcome for line in account}
    assert outcomes["load_in_4bit"] == "no effect" and outcomes["load_in_8bit"] != "no effect"


@pytest.mark.parametrize(
    ("path", "there", "train"),
    [
        (".", "train.jsonl", {"name": "jsonl", "path": "./train.jsonl"}),
        ("./", "train.csv", {"name": "tables", "path": "./train.csv"}),
        ("../mine", "", {"name": "jsonl", "path": "../mine/train.jsonl"}),
        ("me/rows", "", {"name": "datasets", "path": "me/rows", "split": "train"}),
    ],
)
def test_autotrain_reads_a_split_of_a_folder(
    path: str, there: str, train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if there:
        Path(there).touch()
    given = {"task": "llm-sft", "base_model": "m", "project_name": "p", "data": {"path": path, "train_split": "train"}}
    assert read_tool(given, "autotrain").recipe["data"]["train"] == train


def test_a_recipe_with_a_corpus_and_a_channel_keeps_its_meaning() -> None:
    given = {
        "base": "smollm2-135m",
        "method": "lora",
        "backend": "torch",
        "lora": {"rank": 16, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "data": {"corpus": "chat.jsonl", "examples": 2800, "customer_data": False},
        "train": {"batch": 4, "learning_rate": 1e-4, "select_on": "val_loss_min"},
        "register": {"name": "bot", "channel": "candidate", "sign": True},
    }
    account = read_tool(given, "corpus-recipe")
    made = account.recipe
    assert made["model"] == {"name": "smollm2-135m"} and made["backend"] == "torch"
    assert made["adapter"] == {
        "name": "lora", "rank": 16, "alpha": 32, "dropout": 0.05, "targets": ["q_proj", "v_proj"]
    }  # fmt: skip
    assert made["data"] == {
        "train": "chat.jsonl", "examples": 2800, "classification": {"customer_data": False}, "eval": {"fraction": 0.1}
    }  # fmt: skip
    assert made["train"] == {"batch_size": 4} and made["optimizer"] == {"name": "adamw", "learning_rate": 1e-4}
    assert made["checkpoint"]["select_on"] == "eval/loss" and made["evaluate"]["evaluators"] == ["loss"]
    assert made["export"] == [{"name": "registry", "model": "bot", "channel": "candidate", "sign": True}]
    assert not [line.key for line in account if line.outcome == "not taken"]


@pytest.mark.parametrize(
    ("scaling", "ours", "outcome"),
    [
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
         {"rope_type": "yarn", "factor": 4.0}, "otherwise"),
        ({"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "dynamic", "factor": 2.0}, "otherwise"),
        ({"type": "longrope", "factor": 2.0}, None, "not taken"),
        (None, None, "not taken"),
    ],
)  # fmt: skip
def test_scaled_positions(outcomes: Outcomes, scaling: Any, ours: Any, outcome: str) -> None:
    overrides = {"rope_scaling": scaling} if scaling else {"use_cache": False}
    given = {"base_model": "a/b", "datasets": [{"path": "rows.jsonl", "type": "alpaca"}],
             "overrides_of_model_config": overrides}  # fmt: skip
    account = read_tool(files.of_yaml(json.dumps(given), Path("a.yml")), "axolotl")
    loader = account.recipe["model"] if isinstance(account.recipe["model"], dict) else {}
    assert loader.get("loader", {}).get("rope_scaling") == ours
    assert outcomes(account)["overrides_of_model_config"][0] == outcome
