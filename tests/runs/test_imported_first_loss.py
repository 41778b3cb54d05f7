"""A script for TRL, imported: our run trains the same tokens, with the same first loss, as TRL's own trainer."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest

pytest.importorskip("trl")
pytest.importorskip("finetooth_trl")
files = pytest.importorskip("finetooth_importer.files")
command = pytest.importorskip("finetooth_importer.command")
pytestmark = pytest.mark.slow  # importing TRL alone takes seconds

WORDS = ("red", "blue", "green", "white", "black", "grey")
SCRIPT = """
from datasets import load_dataset
from peft import LoraConfig
from trl import {kind}Config, {kind}Trainer
rows = load_dataset("json", data_files="rows.jsonl", split="train")
args = {kind}Config(max_steps=1, per_device_train_batch_size=5, learning_rate=1e-3, max_length=64, seed=0, {more})
{kind}Trainer(model="MODEL", args=args, train_dataset=rows, peft_config=LoraConfig(r=4)).train()
"""


TEMPLATE = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{%- if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{%- else %}{{ m.content + '<|im_end|>' }}"
    "{%- endif %}{%- if not loop.last %}{{ '\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '\n<|im_start|>assistant\n' }}{%- endif %}"
)
"""ChatML with the marks of answers that TRL masks by, and nothing behind the last answer's end: TRL scores what is."""


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


TALKS = [[said("user", f"Say {one}"), said("assistant", f"{one} and {two}")] for one, two in itertools.pairwise(WORDS)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "texts": [{"prompt": f"Say {one}:", "completion": f" {one} and {two}"} for one, two in itertools.pairwise(WORDS)],
    "messages": [{"messages": talk} for talk in TALKS],
    "sides": [{"prompt": talk[:1], "completion": talk[1:]} for talk in TALKS],
    "pairs": [{"prompt": talk[:1], "chosen": talk[1:], "rejected": [said("assistant", "no")]} for talk in TALKS],
    "labelled": [
        {"prompt": talk[:1], "completion": talk[1:], "label": bool(place % 2)} for place, talk in enumerate(TALKS)
    ],
}


@pytest.mark.parametrize(
    ("kind", "rows", "more"),
    [
        ("SFT", "texts", ""),
        ("SFT", "texts", "packing=True, packing_strategy='bfd'"),
        ("SFT", "texts", "completion_only_loss=False"),
        ("SFT", "messages", ""),
        ("SFT", "messages", "assistant_only_loss=True"),
        ("SFT", "sides", ""),
        ("DPO", "pairs", "beta=0.3"),
        ("KTO", "labelled", "beta=0.3"),
    ],
)
def test_the_first_loss_is_that_of_trl(
    recipe: Callable[..., Any], tmp_path: Path, tiny_model: Path, kind: str, rows: str, more: str
) -> None:
    """All rows are one step, so that their order does not matter."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    if rows != "messages" or more:
        (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    written = "".join(json.dumps(row) + "\n" for row in ROWS[rows])
    (tmp_path / "rows.jsonl").write_text(written, encoding="utf-8")
    script = SCRIPT.format(kind=kind, more=more).replace("MODEL", str(model))
    (tmp_path / "train.py").write_text(script, encoding="utf-8")
    given, tool = files.read(tmp_path / "train.py")
    made = command.read_tool(given, tool, tmp_path / "train.py").recipe
    assert made["data"]["train"] == "rows.jsonl"
    found = []
    handed = ("completion_only_loss", "assistant_only_loss", "beta", "packing", "packing_strategy")
    arguments = {key: given[key] for key in handed if key in given}
    theirs = {"name": "trl", "trainer": kind.lower(), "arguments": arguments}
    for name, method in (("ours", made["method"]), ("theirs", theirs)):
        run = {
            **made,
            "data": {**made["data"], "train": str(tmp_path / "rows.jsonl"), "renderer": "chatml"},
            "method": method,
            "train": {**made["train"], "precision": "fp32", "batch_size": len(ROWS[rows])},
            "evaluate": {"evaluators": []},
            "trackers": ["jsonl"],
            "output": str(tmp_path / name),
        }
        finetooth.run(run)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found.append(next(line for line in lines if line["event"] == "step"))
    ours, trl = found
    assert ours["loss"] == pytest.approx(trl["loss"], rel=1e-4)
    assert ours["grad_norm"] == pytest.approx(trl["grad_norm"], rel=1e-2)
