"""What becomes of keys; files of all forms; nothing of a script runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import UserError
from finetooth_importer import files
from finetooth_importer.account import Account
from finetooth_importer.command import taken, uncompared

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


def outcomes(account: Account) -> dict[str, tuple[str, str]]:
    return {line.key: (line.outcome, line.setting) for line in account}


def test_axolotl() -> None:
    account = taken(files.of_yaml(AXOLOTL, Path("a.yml")), "axolotl")
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


def test_llamafactory_reads_its_list_of_datasets(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    listed = {
        "faq": {"file_name": "faq.json", "columns": {"prompt": "q", "response": "a"}},
        "talks": {"hf_hub_url": "org/talks", "formatting": "sharegpt", "columns": {"messages": "turns"}},
        "seen": {
            "file_name": "seen.json",
            "formatting": "sharegpt",
            "columns": {"messages": "turns", "images": "pictures", "tools": "calls", "videos": "films"},
        },
        "pairs": {"file_name": "pairs.json", "ranking": True, "columns": {"chosen": "good", "rejected": "bad"}},
    }
    (tmp_path / "data/dataset_info.json").write_text(json.dumps(listed), encoding="utf-8")
    given = {"model_name_or_path": "m", "stage": "sft", "dataset": "faq, talks, seen, pairs, other", "lora_rank": 4}
    account = taken(given, "llamafactory", tmp_path / "run.yaml")
    assert account.recipe["data"]["train"] == [
        {
            "name": "tables",
            "path": str(tmp_path / "data/faq.json"),
            "format": {
                "name": "instruction",
                "instruction": "q",
                "input": "",
                "output": "a",
                "separator": "\n",
                "system_column": "",
                "history": "",
            },
        },
        {
            "name": "datasets",
            "path": "org/talks",
            "split": "train",
            "format": {
                "name": "chat",
                "column": "turns",
                "tools": "",
                "system_column": "",
                "fields": {"role": "from", "content": "value"},
            },
        },
        {
            "name": "tables",
            "path": str(tmp_path / "data/seen.json"),
            "format": {
                "name": "chat",
                "column": "turns",
                "tools": "calls",
                "system_column": "",
                "fields": {"role": "from", "content": "value"},
                "images": "pictures",
                "videos": "films",
            },
        },
        {
            "name": "tables",
            "path": str(tmp_path / "data/pairs.json"),
            "format": {
                "name": "preference",
                "chosen": "good",
                "rejected": "bad",
                "tools": "",
                "system_column": "",
            },
        },
        "other",
    ]
    (line,) = [line for line in account if line.key == "dataset"]
    assert line.outcome == "otherwise" and "other is not in dataset_info.json" in line.note
    assert not [line for line in account if line.key.startswith("dataset.seen.")]
    assert account.recipe["adapter"] == {"name": "lora", "rank": 4, "alpha": 8}
    assert account.recipe["train"]["max_length"] == 2048 and account.recipe["train"]["epochs"] == 3.0


SCRIPT = """
import os
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

open(os.environ["MARK"], "w").write("ran")
RATE = 2e-4
model_name = "Qwen/Qwen3-0.6B"
dataset = load_dataset("trl-lib/Capybara", split="train[:100]").shuffle(seed=3)
args = SFTConfig(learning_rate=RATE, per_device_train_batch_size=4, gradient_accumulation_steps=2,
                 max_length=os.cpu_count() * 512, assistant_only_loss=True)
trainer = SFTTrainer(model=model_name, args=args, train_dataset=dataset, peft_config=LoraConfig(r=8, lora_alpha=16))
trainer.train()
"""


def test_a_script_is_read_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    given, tool = files.read(tmp_path / "train.py")
    assert tool == "trl" and not (tmp_path / "mark").exists()
    account = taken(given, tool)
    (computed,) = [line for line in account if line.key == "max_length"]
    assert computed.outcome == "not taken" and "computes" in computed.note
    made = account.recipe
    assert made["model"]["name"] == "Qwen/Qwen3-0.6B"
    assert made["data"]["train"] == {"name": "datasets", "path": "trl-lib/Capybara", "split": "train[:100]"}
    assert made["optimizer"] == {"learning_rate": 2e-4, "name": "adamw"}
    assert made["train"]["batch_size"] == 8 and made["method"] == {"name": "sft", "train_on": "assistant"}
    assert made["adapter"] == {"name": "lora", "rank": 8, "alpha": 16}


def test_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(
        "#!/bin/sh\ntrl dpo \\\n  --model_name_or_path m --dataset_name d --beta=0.2 \\\n"
        "  --learning_rate 1e-6 --use_peft\n"
    )
    given, tool = files.read(tmp_path / "run.sh")
    made = taken(given, tool).recipe
    assert (tool, made["method"]["name"], made["method"]["beta"], made["adapter"]["rank"]) == ("trl", "dpo", 0.2, 16)


SHELL = r"""#!/bin/bash
export NAME=answers   # of the run
MODEL="/models/$NAME"
DAY=$(date +%F)
cd <WHERE_IT_IS>
CUDA_VISIBLE_DEVICES=0 llamafactory-cli train \
    --model_name_or_path ${MODEL} \
#    --template qwen \
    --template llama3 \ # and not another
    --stage sft --do_train --dataset ${ROWS:-faq} --finetuning_type full \
    --output_dir 'saves/'$NAME --run_name $DAY --learning_rate ${RATE} \
    --default_system "*be kind: always" --logging_dir 2026-01-02 2> err.log > out.log 2>&1 &
"""


def test_a_shell_script_is_read_and_never_run(tmp_path: Path) -> None:
    """Variables, comments in continued lines, where output goes, values that are no YAML; what only a shell knows is
    not taken."""
    (tmp_path / "train.sh").write_text(SHELL, encoding="utf-8")
    given, tool = files.read(tmp_path / "train.sh")
    assert tool == "llamafactory" and given == {
        "model_name_or_path": "/models/answers", "template": "llama3", "stage": "sft", "do_train": True,
        "dataset": "faq", "finetuning_type": "full", "output_dir": "saves/answers", "run_name": "(computed)",
        "learning_rate": "(computed)", "default_system": "*be kind: always", "logging_dir": "2026-01-02",
    }  # fmt: skip
    account = taken(given, tool, tmp_path / "train.sh")
    assert outcomes(account)["learning_rate"] == ("not taken", "")
    json.dumps(account.recipe)
    (tmp_path / "open.sh").write_text("trl sft --model 'm\n", encoding="utf-8")
    with pytest.raises(UserError, match="close the quotes"):
        files.read(tmp_path / "open.sh")


def test_a_tool_is_known_by_its_program(tmp_path: Path) -> None:
    """However few of its flags are there."""
    for line, tool in (
        ("uv run mlx_lm.lora --model m --train --data d --fine-tune-type full", "mlx-lm"),
        ("python -m mlx_lm.lora --model m --train --data d", "mlx-lm"),
        ("autotrain llm --train --model m --data-path d", "autotrain"),
        ("python src/train_bash.py --stage sft --model_name_or_path m", "llamafactory"),
    ):
        (tmp_path / "run.sh").write_text(line, encoding="utf-8")
        assert files.read(tmp_path / "run.sh")[1] == tool, line
    script = "from autotrain.params import LLMTrainingParams\n"
    script += "LLMTrainingParams(model='m', data_path='d', project_name='p', trainer='sft', lr=1e-5)"
    (tmp_path / "run.py").write_text(script, encoding="utf-8")
    given, tool = files.read(tmp_path / "run.py")
    assert (tool, given["lr"]) == ("autotrain", 1e-5)


def test_days_are_texts(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text(f"{AXOLOTL}\noutput_dir: 2026-01-02\n", encoding="utf-8")
    given, tool = files.read(tmp_path / "a.yml")
    assert json.loads(json.dumps(taken(given, tool).recipe))["output"] == "2026-01-02"


def test_defaults_are_those_of_the_arguments_class(tmp_path: Path) -> None:
    """TRL turns transformers' own arguments into its own, which keeps their rate; rows by split are those of one."""
    script = """
rows = load_dataset("json", data_files={"test": "b.json", "train": "a.json"}, split="train")
SFTTrainer(model="m", train_dataset=rows, args=ARGUMENTS(output_dir="out"))
"""
    for name, rate in (("TrainingArguments", 5e-5), ("SFTConfig", 2e-5)):
        (tmp_path / "train.py").write_text(script.replace("ARGUMENTS", name), encoding="utf-8")
        given, tool = files.read(tmp_path / "train.py")
        made = taken(given, tool, tmp_path / "train.py").recipe
        assert made["optimizer"]["learning_rate"] == rate and made["data"]["train"] == "a.json"
        assert ("gradient_checkpointing" in made["train"]) == (name == "SFTConfig")


def test_only_keys_that_are_known_are_proposed() -> None:
    account = taken({"base_model": "m", "datasets": [], "my_own_uri": None, "my_own_url": 1}, "axolotl")
    (line,) = [line for line in account if line.key == "my_own_url"]
    assert line.note == "no key of the tool that is known"


def test_a_value_that_is_none_is_named() -> None:
    account = taken({"base_model": "m", "sequence_len": "long", "micro_batch_size": "two", "datasets": []}, "axolotl")
    lines = {line.key: line for line in account if line.outcome == "not taken"}
    assert "no value for train.max_length" in lines["sequence_len"].note
    assert "no whole number" in lines["micro_batch_size"].note


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yml", "base_model: x\n  datasets: [", r"a\.yml:2: .+"),
        ("a.yml", "- 1\n", "has no keys"),
        ("a.json", "{", "is no JSON"),
        ("a.py", "def f(:", r"a\.py:1: "),
        ("a.py", "print(1)", "no configuration of a trainer"),
        ("a.sh", "echo hello\n", "no command with"),
        ("b.sh", "trl sft --x 'y\n", "quot"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        files.read(tmp_path / name)
    with pytest.raises(UserError, match="no file"):
        files.read(tmp_path / "none.yml")


def ft(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "finetooth", "import", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    pytest.importorskip("finetooth_core")
    (tmp_path / "a.yml").write_text(AXOLOTL)
    wrong = ft("a.yml", "--from", "trl", folder=tmp_path)
    assert wrong.returncode == 2 and "looks like a configuration of axolotl" in wrong.stderr
    done = ft("a.yml", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Not taken:" in done.stdout and "lora_alhpa" in done.stdout and "recipe.yaml" in done.stdout
    again = ft("a.yml", folder=tmp_path)
    assert again.returncode == 2 and "recipe.yaml exists" in again.stderr
    found = json.loads(ft("a.yml", "--json", folder=tmp_path).stdout)
    assert found["tool"] == "axolotl" and found["recipe"]["train"]["batch_size"] == 8


def test_a_base_in_fewer_bits_is_one_that_a_package_brings() -> None:
    """By its name and its options, as the two tools with keys of their own for them ask."""
    from finetooth_core.catalog import INDEX

    index = json.loads(INDEX.read_text(encoding="utf-8"))["quantizer"]
    trl = {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True}
    factory = {"quantization_bit": 4, "quantization_type": "nf4", "double_quantization": False}
    for given, tool, wanted in (
        ({"model_name_or_path": "m", "use_peft": True, **trl}, "trl", {"name": "fp4", "double": True}),
        ({"model_name_or_path": "m", "finetuning_type": "lora", **factory}, "llamafactory",
         {"name": "nf4", "double": False}),
        ({"model_name_or_path": "m", "finetuning_type": "lora", "quantization_bit": 8}, "llamafactory", "int8"),
    ):  # fmt: skip
        found = taken(given, tool).recipe["quantization"]
        assert found == wanted
        assert (found["name"] if isinstance(found, dict) else found) in index


LOOPED = """
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
rows = load_dataset("a/b", split="train")
rows = rows.map(len)
first, second = 1, 2
one = two
two = one
SFTTrainer(model="m", args=SFTConfig(max_steps=2), train_dataset=rows, eval_dataset=two)
"""


def test_names_that_are_made_of_themselves_end() -> None:
    """`rows = rows.map(...)` is followed to where the rows come from, and two names of one another to nowhere."""
    given = files.of_script(LOOPED, Path("a.py"))
    assert (given["dataset_name"], given["dataset_train_split"], given["max_steps"]) == ("a/b", "train", 2)
    looped = LOOPED.replace("train_dataset=rows", "train_dataset=two")
    assert "dataset_name" not in files.of_script(looped, Path("a.py"))


NOTEBOOK = [
    "%%capture\npip install unsloth",
    "import os\n!pip install trl\nopen(os.environ['MARK'], 'w').write('ran')",
    "from unsloth import FastLanguageModel\n"
    "model, tokenizer = FastLanguageModel.from_pretrained(model_name='unsloth/Qwen3-4B', max_seq_length=1024)\n"
    "model = FastLanguageModel.get_peft_model(model, r=16, lora_alpha=32, target_modules=['q_proj'])",
    "trainer = SFTTrainer(model=model, args=SFTConfig(max_steps=60, optim='adamw_8bit', learning_rate=2e-4))\n"
    "trainer = train_on_responses_only(trainer, instruction_part='a', response_part='b')",
]


def test_a_notebook_of_unsloth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    cells = [{"cell_type": "code", "source": source.splitlines(keepends=True)} for source in NOTEBOOK]
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    given, tool = files.read(tmp_path / "a.ipynb")
    assert tool == "unsloth" and not (tmp_path / "mark").exists()
    made = taken(given, tool).recipe
    assert made["model"]["name"] == "unsloth/Qwen3-4B" and made["quantization"] == "nf4"
    assert made["adapter"] == {"name": "lora", "rank": 16, "alpha": 32, "targets": ["q_proj"]}
    assert made["train"]["max_length"] == 1024 and made["method"] == {"name": "sft", "train_on": "assistant"}
    assert made["optimizer"] == {"name": "adamw_8bit", "learning_rate": 2e-4}
    (tmp_path / "b.ipynb").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="no notebook"):
        files.read(tmp_path / "b.ipynb")


def test_settings_that_stand_inside_others() -> None:
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
    account = taken(files.of_yaml(tune, Path("a.yaml")), "torchtune")
    made = account.recipe
    assert made["model"]["name"] == "/tmp/out/base" and made["quantization"] == "nf4"
    assert made["adapter"] == {"name": "lora", "targets": ["q_proj", "o_proj"], "rank": 4, "alpha": 8}
    assert made["method"] == {"name": "dpo", "beta": 0.2, "loss": {"name": "sigmoid", "label_smoothing": 0.1}}
    assert made["optimizer"] == {"name": "adamw", "learning_rate": 3e-4, "weight_decay": 0.01}
    assert made["schedule"] == "constant" and made["train"]["max_grad_norm"] == 0
    assert outcomes(account)["seed"] == ("not taken", "")
    mlx = {"model": "m", "iters": 10, "num_layers": -1, "lora_parameters": {"rank": 4, "scale": 5.0}}
    made = taken(mlx, "mlx-lm").recipe
    assert made["adapter"] == {"name": "lora", "rank": 4, "alpha": 20.0}
    assert (made["train"]["max_steps"], made["optimizer"]["learning_rate"]) == (10, 1e-5)


def test_what_is_here_now_is_taken() -> None:
    """Settings for which there is something of ours: adapters, losses, optimizers, trackers, online methods."""
    online = {"num_generations": 4, "reward_funcs": ["rewards.length"], "loss_type": "dapo", "no_such": 1}
    account = taken({"base_model": "m", "datasets": [], "sequence_len": 8, "rl": "grpo", "trl": online}, "axolotl")
    method = account.recipe["method"]
    assert (method["name"], method["num_generations"], method["loss_type"]) == ("grpo", 4, "dapo")
    assert method["rewards"] == [{"name": "python_function", "module": "rewards", "function": "length"}]
    assert outcomes(account)["trl.no_such"][0] == "not taken"
    more = {"use_adaptive_entropy": True, "entropy_coef_max": 0.5, "top_entropy_quantile": 0.2,
            "generation_kwargs": {"stop_token_ids": [7, 9], "stop": "</a>"},
            "chat_template_kwargs": {"enable_thinking": False}}  # fmt: skip
    account = taken(
        {"base_model": "m", "datasets": [], "sequence_len": 8, "rl": "grpo", "trl": online | more}, "axolotl"
    )
    expected = {"entropy_target": 0.2, "entropy_coef_max": 0.5, "top_entropy_quantile": 0.2, "stop_ids": [7, 9]}
    assert {name: account.recipe["method"][name] for name in expected} == expected
    assert account.recipe["method"]["stop"] == ["</a>"]
    assert account.recipe["data"]["renderer"] == {"name": "jinja", "arguments": {"enable_thinking": False}}
    other = {**online, "entropy_target": 0.3, "generation_kwargs": {"seed": 3}}
    account = taken({"base_model": "m", "datasets": [], "sequence_len": 8, "rl": "grpo", "trl": other}, "axolotl")
    assert "entropy_target" not in account.recipe["method"]
    assert outcomes(account)["trl.generation_kwargs"][0] == "not taken"
    given = {"base_model": "m", "datasets": [], "sequence_len": 8, "optimizer": "came_pytorch", "adam_beta1": 0.8,
             "lisa_n_layers": 2, "lisa_step_interval": 5, "wandb_project": "p", "wandb_mode": "offline",
             "early_stopping_patience": 3, "evals_per_epoch": 1}  # fmt: skip
    made = taken(given, "axolotl").recipe
    assert made["optimizer"] == {"name": "came", "betas": [0.8, 0.999, 0.9999]}
    assert made["adapter"] == {"name": "lisa", "layers": 2, "every": 5}
    assert made["trackers"] == ["console", "jsonl", {"name": "wandb", "project": "p", "mode": "offline"}]
    assert made["train"]["early_stopping"] == {"patience": 3, "metric": "eval/loss"}
    given = {"model_name_or_path": "m", "stage": "sft", "finetuning_type": "oft", "oft_block_size": 16,
             "use_badam": True, "badam_switch_interval": 9, "use_dft_loss": True}  # fmt: skip
    made = taken(given, "llamafactory").recipe
    assert made["adapter"] == {"name": "oft", "block_size": 16} and made["method"] == {"name": "sft", "loss": "dft"}
    assert (made["optimizer"]["name"], made["optimizer"]["switch_every"]) == ("badam", 9)


def test_what_is_said_to_be_missing_is_missing() -> None:
    """A key that is named for an entry is not answered with there being none of that name."""
    from finetooth_importer.tools import axolotl_keys, llamafactory, trl

    index = Path(__file__).parents[4] / "core/src/finetooth_core/index.json"
    kinds = ("adapter", "loss", "optimizer", "tracker", "method", "quantizer")
    entries = json.loads(index.read_text(encoding="utf-8"))
    names = {name for kind in kinds for name in entries[kind]}
    assert {"qat", "badam", "dft", "wandb"} <= names
    for tool in (axolotl_keys, llamafactory, trl):
        for key, said in tool.REFUSED.items():
            denied = "here" in said.split() and (said.startswith("no ") or "is not here" in said)
            assert not (denied and names & set(key.split("_")) - {"fp8"}), (key, said)


def test_what_trains_is_decided_by_the_rows_of_trl(tmp_path: Path) -> None:
    """Texts are read without markup, conversations train whole, one column of text is pre-training; unseen rows are
    said to be unseen."""
    given = {"trainer": "sft", "model": "m", "dataset_name": "rows.jsonl"}
    said = {"role": "user", "content": "a"}
    for row, data, method in (
        ({"prompt": "a", "completion": "b"}, {"name": "prompt_completion", "style": "raw"}, ("sft", "assistant")),
        ({"prompt": [said], "completion": [said]}, None, ("sft", "all")),
        ({"messages": [said]}, None, ("sft", "all")),
        ({"text": "a"}, None, ("pretrain", None)),
    ):
        (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        made = taken(given, "trl", tmp_path / "train.py").recipe
        assert made["data"].get("format") == data
        assert (made["method"]["name"], made["method"].get("train_on")) == method
    assert taken(given | {"completion_only_loss": True}, "trl").recipe["method"]["train_on"] == "assistant"
    assert taken(given | {"assistant_only_loss": False}, "trl").recipe["method"]["train_on"] == "all"
    (line,) = (line for line in taken(given, "trl") if line.setting == "method.train_on")
    assert "the rows were not seen" in line.note


def test_what_trains_and_was_compared_with_nobody_is_said(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": []}) + "\n", encoding="utf-8")
    cases: list[tuple[str, dict[str, Any], bool]] = [
        ("axolotl", {"base_model": "m", "datasets": [{"path": "rows.jsonl", "type": "alpaca"}]}, True),
        ("axolotl", {"base_model": "m", "pretraining_dataset": "rows.jsonl"}, False),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq", "template": "qwen3"}, False),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq", "template": "bailing"}, True),
        ("llamafactory", {"model_name_or_path": "m", "dataset": "faq"}, True),
        ("trl", {"trainer": "sft", "model": "m", "dataset_name": "rows.jsonl"}, False),
        ("trl", {"trainer": "sft", "model": "m", "dataset_name": "org/rows"}, True),
        ("trl", {"trainer": "grpo", "model": "m", "dataset_name": "org/rows"}, False),
    ]
    for tool, given, doubted in cases:
        said = uncompared(taken(given, tool, tmp_path / "run.py"), tool)
        assert bool(said) == doubted, (tool, given, said)
        assert not doubted or said == f"The tokens that train were not compared with those of {tool} for such rows"


def test_what_a_script_saves_is_exported_unless_it_is_idle(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "model, tokenizer = FastLanguageModel.from_pretrained('org/m')\n"
        "model.save_pretrained_gguf('out', tokenizer, quantization_method=['q4_k_m', 'q8_0'])\n"
        "model.save_pretrained_merged('out', tokenizer)\n"
        "if False:\n    model.save_pretrained_gguf('out', tokenizer, quantization_method='f16')\n",
        encoding="utf-8",
    )
    account = taken(dict(files.of_script(script.read_text(encoding="utf-8"), script)), "unsloth", script)
    assert account.recipe["export"] == [
        {"name": "gguf", "stored": "q4_k_m"},
        {"name": "gguf", "stored": "q8_0"},
        "safetensors",
    ]


@pytest.mark.parametrize(
    ("tool", "given", "export"),
    [
        ("mud-puppy", {"mud_puppy": True, "model": "m", "merge_lora": True, "merge_precision": "fp16"},
         [{"name": "safetensors", "precision": "fp16"}]),
        ("mud-puppy", {"mud_puppy": True, "model": "m", "merge_precision": "fp16"}, None),
        ("llamafactory", {"model_name_or_path": "m", "stage": "sft", "export_dir": "out"}, ["safetensors"]),
        ("llamafactory", {"model_name_or_path": "m", "stage": "sft", "export_dir": "o", "export_quantization_bit": 4},
         None),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_model": True, "save_path": "out"}, ["safetensors"]),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_method": "lora"}, None),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_method": "merged_4bit"}, None),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_model": True, "save_gguf": True,
                     "quantization": ["q4_k_m", "q8_0"]},
         [{"name": "gguf", "stored": "q4_k_m"}, {"name": "gguf", "stored": "q8_0"}]),
        ("unsloth", {"unsloth": True, "model_name": "m", "quantization_method": "fast_quantized"},
         [{"name": "gguf", "stored": "q8_0"}]),
        ("unsloth", {"unsloth": True, "model_name": "m", "quantization_method": "iq2_xxs"}, None),
        ("unsloth", {"unsloth": True, "model_name": "m", "save_gguf": True, "save_model": False}, None),
    ],
    ids=range(11),
)  # fmt: skip
def test_what_is_written_at_the_end_is_exported(tool: str, given: dict[str, Any], export: Any, tmp_path: Path) -> None:
    account = taken(given, tool, tmp_path / "run.yaml")
    assert account.recipe.get("export") == export
    found = outcomes(account)
    for key in given.keys() & {"save_model", "save_method", "export_dir", "merge_lora", "quantization_method"}:
        assert found[key][1] == ("export" if export else ""), key
    lost = {key for key, (outcome, _) in found.items() if outcome == "not taken"}
    hopeless = {"merged_4bit": "save_method", "iq2_xxs": "quantization_method"}
    wanted = {hopeless[str(one)] for one in given.values() if str(one) in hopeless}
    assert lost == (wanted or lost & {"export_dir", "export_quantization_bit"})


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
    assert taken(given, "autotrain").recipe["data"]["train"] == train
