"""The first hour of three people, typed at a terminal: their own rows, another tool's files, a result to use.

`FT_PEOPLE` names the `ft` of another environment, such as one that has wheels alone.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

Typed = Callable[..., str]
Rows = list[tuple[str, str]]

pytestmark = pytest.mark.slow

AXOLOTL = """
base_model: BASE
datasets:
  - {path: ./support.jsonl, type: chat_template, field_messages: messages, roles_to_train: [assistant]}
adapter: lora
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_linear: true
sequence_len: 512
excess_length_strategy: truncate
micro_batch_size: 4
gradient_accumulation_steps: 2
num_epochs: 2
optimizer: adamw_torch
lr_scheduler: cosine
learning_rate: 0.0002
warmup_ratio: 0.03
weight_decay: 0.0
seed: 7
"""
TRL = """
from datasets import load_dataset
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

data = load_dataset("json", data_files="support.jsonl", split="train")
args = SFTConfig(
    output_dir="out", num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=2,
    learning_rate=2e-4, lr_scheduler_type="cosine", warmup_ratio=0.03, weight_decay=0.0, max_length=512,
    assistant_only_loss=True, seed=7, report_to="none",
)
peft = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
trainer = SFTTrainer(model="BASE", args=args, train_dataset=data, peft_config=peft)
trainer.train()
"""


def table(rows: Rows, name: str, *columns: str, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with Path(name).open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([columns, *rows])


def test_a_hobbyist_with_columns_of_her_own(typed: Typed, rows: Rows, tiny_smollm2: Path) -> None:
    """She is asked, trains, talks to it, and takes it to Ollama."""
    table(rows, "support.csv", "alpha", "beta")
    shown = typed(
        "init --system 'You are Lumi.'",
        [("What data do you have", "support.csv"), ("Which column is the question", "alpha"),
         ("Which column is the answer", "beta"), ("Which model", str(tiny_smollm2)), ("How much memory", ""),
         ("How long", "look"), ("Train now", "n")],
    )  # fmt: skip
    assert "Where is my parcel?" in shown, "rows are shown before they are asked about"
    assert "Next: ft check recipe.yaml, then ft run recipe.yaml" in shown
    shown = typed("run recipe.yaml train.max_steps=3 --output runs/bot")
    assert "done" in shown and "ft chat" in shown
    said = [shown.index(text) for text in ("reading the recipe", "deciding the plan", "Plan", "loading the model")]
    assert said == sorted(said), "what is done is said before the first result of it"
    assert "You are Lumi." in typed("chat runs/bot --prompt 'Where is my parcel?' --max-tokens 4")
    shown = typed("export runs/bot --to ollama --unmeasured")
    assert "exporting runs/bot to ollama" in shown and "writing the weights" in shown and "ollama create" in shown
    modelfile = next(Path("runs/bot").rglob("Modelfile")).read_text(encoding="utf-8")
    assert 'SYSTEM """You are Lumi."""' in modelfile, "it speaks as what the rows made it"


def test_a_german_table_out_of_excel(typed: Typed, rows: Rows, tiny_smollm2: Path) -> None:
    table(rows, "support.csv", "Frage", "Antwort", delimiter=";", encoding="utf-8-sig")
    shown = typed(f"init --yes --data support.csv --model {tiny_smollm2}")
    assert "';' separates the fields" in shown and "'Frage' is the question and 'Antwort' the answer" in shown
    shown = typed("data preview recipe.yaml --rows 1")
    assert "Where is my parcel?" in shown and "[[" in shown, "what trains is marked"


def test_an_engineer_brings_the_files_of_two_tools(typed: Typed, rows: Rows, tiny_smollm2: Path) -> None:
    """An axolotl YAML and a TRL script that say the same become the same training."""
    messages = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows]
    Path("support.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    Path("ax.yml").write_text(AXOLOTL.replace("BASE", str(tiny_smollm2)))
    Path("train.py").write_text(TRL.replace("BASE", str(tiny_smollm2)))
    assert "keys of axolotl were taken" in typed("import ax.yml --output axolotl.yaml")
    assert "keys of trl were taken" in typed("import train.py --output trl.yaml")
    ours, theirs = (yaml.safe_load(Path(f"{name}.yaml").read_text()) for name in ("axolotl", "trl"))
    for section in ("model", "adapter", "optimizer", "schedule"):
        assert ours[section] == theirs[section], section
    for name in ("max_length", "excess_length", "batch_size", "epochs", "seed"):
        assert ours["train"][name] == theirs["train"][name], name
    losses = []
    for name in ("axolotl", "trl"):
        typed(f"run {name}.yaml train.max_steps=2 train.precision=fp32 data.renderer=chatml --output runs/{name}")
        lines = (Path("runs") / name / "metrics.jsonl").read_text().splitlines()
        losses.append([one["loss"] for one in map(json.loads, lines) if one["event"] == "step"])
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_researcher_looks_before_she_trains(typed: Typed, rows: Rows, tiny_smollm2: Path) -> None:
    """What she has to know comes before the first step: plan, tokens, and what is wrong."""
    table(rows, "support.csv", "prompt", "completion")
    typed(f"init --yes --data support.csv --model {tiny_smollm2}")
    shown = typed("check recipe.yaml")
    assert "optimizer step" in shown and "memory" in shown
    typed("run recipe.yaml train.max_steps=2 --output runs/a")
    typed("run recipe.yaml train.max_steps=2 optimizer.learning_rate=1e-3 --output runs/b")
    assert "optimizer.learning_rate" in typed("runs compare a b")
    assert "--dry-run" not in typed("push runs/a --to hf:me/mine --dry-run")


NOTEBOOKS = {"own_loss": "focal, by hand", "own_reward": "rewards/short/mean", "own_rows": "eval/polite"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_researcher_opens_a_notebook(program: list[str], tmp_path: Path, tiny_smollm2: Path, name: str) -> None:
    """An own loss, an own reward and an own evaluator, run from top to bottom by the same environment."""
    python = Path(program[0]).with_name("python") if "FT_PEOPLE" in os.environ else Path(sys.executable)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FT_PLUGINS")}
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    own = {**clean, "PATH": path, "MODEL": str(tiny_smollm2), "HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(tmp_path / "i")}
    book = f"{name}.ipynb"
    shutil.copy(Path(__file__).parents[2] / "examples" / book, tmp_path)
    command = [str(python), "-m", "nbconvert", "--to", "notebook", "--execute", "--output", f"done-{book}", book]
    if subprocess.run([str(python), "-c", "import nbconvert, ipykernel"], capture_output=True).returncode:
        pytest.skip("opening a notebook takes the packages nbconvert and ipykernel")
    ended = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert NOTEBOOKS[name] in (tmp_path / f"done-{book}").read_text(encoding="utf-8")
