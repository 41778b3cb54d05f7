"""Files of all forms, in all tools' ways; nothing of a script runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from finetooth_hooks import UserError
from finetooth_importer import files
from finetooth_importer.account import Account
from finetooth_importer.command import read_tool
from finetooth_importer.script import of_script

Outcomes = Callable[[Account], dict[str, tuple[str, str]]]


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
    account = read_tool(given, tool)
    (computed,) = [line for line in account if line.key == "max_length"]
    assert computed.outcome == "not taken" and "computes" in computed.note
    made = account.recipe
    assert made["model"]["name"] == "Qwen/Qwen3-0.6B"
    assert made["data"]["train"] == {"name": "datasets", "path": "trl-lib/Capybara", "split": "train[:100]"}
    assert made["optimizer"] == {"learning_rate": 2e-4, "name": "adamw"}
    assert made["train"]["batch_size"] == 8 and made["method"] == {"name": "sft", "train_on": "assistant"}
    assert made["adapter"] == {"name": "lora", "rank": 8, "alpha": 16, "targets": ["q_proj", "v_proj"]}


def test_defaults_are_those_of_the_arguments_class(tmp_path: Path) -> None:
    """TRL turns transformers' own arguments into its own, which keeps their rate; rows by split are those of one."""
    script = """
rows = load_dataset("json", data_files={"test": "b.json", "train": "a.json"}, split="train")
SFTTrainer(model="m", train_dataset=rows, args=ARGUMENTS(output_dir="out"))
"""
    for name, rate in (("TrainingArguments", 5e-5), ("SFTConfig", 2e-5)):
        (tmp_path / "train.py").write_text(script.replace("ARGUMENTS", name), encoding="utf-8")
        given, tool = files.read(tmp_path / "train.py")
        made = read_tool(given, tool, tmp_path / "train.py").recipe
        assert made["optimizer"]["learning_rate"] == rate and made["data"]["train"] == "a.json"
        assert ("gradient_checkpointing" in made["train"]) == (name == "SFTConfig")


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
    given = of_script(LOOPED, Path("a.py"))
    assert (given["dataset_name"], given["dataset_train_split"], given["max_steps"]) == ("a/b", "train", 2)
    looped = LOOPED.replace("train_dataset=rows", "train_dataset=two")
    assert "dataset_name" not in of_script(looped, Path("a.py"))


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
    made = read_tool(given, tool).recipe
    assert made["model"]["name"] == "unsloth/Qwen3-4B" and made["quantization"] == "nf4"
    assert made["adapter"] == {"name": "lora", "rank": 16, "alpha": 32, "targets": ["q_proj"]}
    assert made["train"]["max_length"] == 1024 and made["method"] == {"name": "sft", "train_on": "assistant"}
    assert made["optimizer"] == {"name": "adamw_8bit", "learning_rate": 2e-4}
    (tmp_path / "b.ipynb").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="not a notebook"):
        files.read(tmp_path / "b.ipynb")


def test_a_command_line(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(
        "#!/bin/sh\ntrl dpo \\\n  --model_name_or_path m --dataset_name d --beta=0.2 \\\n"
        "  --learning_rate 1e-6 --use_peft\n"
    )
    given, tool = files.read(tmp_path / "run.sh")
    made = read_tool(given, tool).recipe
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


def test_a_shell_script_is_read_and_never_run(tmp_path: Path, outcomes: Outcomes) -> None:
    """Variables, comments in continued lines, where output goes, values that are no YAML; what only a shell knows is
    not taken."""
    (tmp_path / "train.sh").write_text(SHELL, encoding="utf-8")
    given, tool = files.read(tmp_path / "train.sh")
    assert tool == "llamafactory" and given == {
        "model_name_or_path": "/models/answers", "template": "llama3", "stage": "sft", "do_train": True,
        "dataset": "faq", "finetuning_type": "full", "output_dir": "saves/answers", "run_name": "(computed)",
        "learning_rate": "(computed)", "default_system": "*be kind: always", "logging_dir": "2026-01-02",
    }  # fmt: skip
    account = read_tool(given, tool, tmp_path / "train.sh")
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
    dated = "base_model: m\nsequence_len: 8\ndatasets: []\noutput_dir: 2026-01-02\n"
    (tmp_path / "a.yml").write_text(dated, encoding="utf-8")
    given, tool = files.read(tmp_path / "a.yml")
    assert json.loads(json.dumps(read_tool(given, tool).recipe))["output"] == "2026-01-02"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.yml", "base_model: x\n  datasets: [", r"a\.yml:2: .+"),
        ("a.yml", "- 1\n", "has no keys"),
        ("a.yml", f"a: {'[' * 2000}", "nested too deeply"),
        ("a.json", "{", "is not JSON"),
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
