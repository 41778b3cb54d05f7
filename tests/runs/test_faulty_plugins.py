"""A third-party entry of every kind goes wrong in a run: the line that ends it names plugin, file and line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli import main
from finetooth_core.plugins import manager
from finetooth_hooks.entries import ENTRY_TYPES
from finetooth_kit.tiny_runs import ROWS, recipe_for, tiny_model_folder

__all__ = ["tiny_model_folder"]

PLUGIN = Path(__file__).with_name("faulty_plugin.py")
AROUND = {
    "loader": "transformers", "source": "jsonl", "format": "prompt_completion", "renderer": "chatml",
    "family": "llama", "method": "sft", "loss": "cross_entropy", "reward": "letters", "sampler": "engine",
    "environment": "single_turn", "adapter": "lora", "quantizer": "int8", "optimizer": "adamw", "schedule": "linear",
    "backend": "torch", "hardware": "cpu", "attention": "rows", "kernel": "torch", "tracker": "csv",
    "evaluator": "loss", "exporter": "safetensors", "store": "disk", "gate": "finite",
}  # fmt: skip
"""The entry that is wrapped, by kind."""
OF_NO_SMALL_RUN = {"processor", "strategy", "launcher", "face", "page", "release_gate", "command"}
"""Kinds of which `core/guards/tests/test_returned.py` looks at every function; their own packages run them."""
CALLED = {
    "loader": ("describe", "load", "tokenizer"), "source": ("read", "files", "portions", "stands_for"),
    "format": ("read",), "renderer": ("render", "prompt", "write", "check_texts", "refuse"), "family": ("facts",),
    "method": ("steps", "prepare", "begin", "state"), "loss": ("",), "reward": ("",), "sampler": ("sample",),
    "environment": ("episode",), "adapter": ("apply", "trained_parameters", "export", "low_rank", "rate_shares",
    "held_bytes", "kept_bytes", "token_bytes", "beginning_bytes"), "quantizer": ("linear", "takes"),
    "optimizer": ("create",), "schedule": ("factor", "observe"), "backend": ("engine", "plan"),
    "hardware": ("facts", "missing"), "attention": ("",), "kernel": ("linear_logprob",),
    "tracker": ("step", "start", "end"), "evaluator": ("evaluate", "prepare"), "exporter": ("export", "check"),
    "store": ("put", "names", "manifest", "remove"), "gate": ("check",),
}  # fmt: skip
"""What a small run calls of it; the first of each is tried in the quick tests."""
HOOKS = {"family": "ft_families"} | {kind: f"ft_{kind}" for kind in ("attention", "hardware")}
HOOKS |= {"loss": "ft_losses"}
ONLINE = {"name": "grpo", "num_generations": 4, "max_completion_length": 12}
FIRST = [(kind, functions[0], "json") for kind, functions in CALLED.items()]
OTHERS = [
    (kind, function, fault)
    for kind, functions in CALLED.items()
    for function in ("build", *functions)
    for fault in ("json", "stop", "exit", "file", "key", "import")
    if (kind, function, fault) not in FIRST
]


WRONG = [
    ("store", "put", "none"), ("evaluator", "evaluate", "nan"), ("adapter", "export", "none"),
    ("adapter", "low_rank", "nan"), ("attention", "", "nan"), ("source", "portions", "none"),
    ("family", "facts", "nan"), ("method", "prepare", "nan"), ("backend", "plan", "nan"), ("loss", "", "none"),
    ("kernel", "linear_logprob", "none"), ("quantizer", "linear", "none"), ("optimizer", "create", "none"),
    ("exporter", "export", "none"), ("format", "read", "none"), ("environment", "episode", "none"),
    ("sampler", "sample", "nan"),
]  # fmt: skip
"""Answers that no contract allows; `core/guards/tests/test_returned.py` has those of every function."""


def picked(kind: str, rows: Path, model: Path) -> dict[str, Any]:
    """What of a recipe picks the plugin's entry."""
    acme = {"name": "acme"}
    online = {"data": {"train": str(rows)}}
    return {
        "loader": {}, "family": {"model": {"name": str(model), "family": "acme"}},
        "source": {"data": {"train": {**acme, "path": str(rows)}}}, "format": {"data": {"format": "acme"}},
        "renderer": {"data": {"renderer": "acme"}}, "loss": {"method": {"name": "sft", "loss": acme}},
        "reward": {"method": {**ONLINE, "rewards": [acme]}, **online},
        "sampler": {"method": {**ONLINE, "rewards": ["letters"], "sampler": acme}, **online},
        "environment": {"method": {**ONLINE, "rewards": ["letters"], "environment": acme}, **online},
        "quantizer": {"quantization": acme}, "attention": {"backend": {"name": "torch", "attention": "acme"}},
        "kernel": {"kernels": {"linear_logprob": "acme"}}, "tracker": {"trackers": ["acme"]},
        "evaluator": {"evaluate": {"every": 1, "evaluators": [acme]}, "data": {"eval": str(rows)}},
        "exporter": {"export": [acme]}, "store": {"checkpoint": {"every": 1, "keep_last": 1, "stores": [acme]}},
        "gate": {"checkpoint": {"every": 1, "gates": [acme]}}, "adapter": {"adapter": {**acme, "rank": 2}},
    }.get(kind, {kind: acme})  # fmt: skip


def run(kind: str, function: str, fault: str, model: Path, folder: Path) -> tuple[int, Path]:
    """The exit code of `ft run`, and the plugin's file."""
    entries: Mapping[str, Any] = {
        one.entry.name: one.entry for one in manager.start().catalog.all(kind) if one.distribution != "finetooth-mlx"
    }
    module = f"{entries[AROUND[kind]].build.partition('.')[0]}.plugin" if AROUND[kind] in entries else ""
    case = {"kind": kind, "hook": HOOKS.get(kind, f"ft_{kind}s"), "name": AROUND[kind], "module": module}
    case |= {"function": function, "fault": fault}
    file = folder / f"acme_{kind}.py"
    text = PLUGIN.read_text(encoding="utf-8").replace('"""CASE"""', repr(json.dumps(case)))
    file.write_text(text, encoding="utf-8")
    online = kind in ("reward", "sampler", "environment")
    rows = [{"prompt": row["prompt"], **({} if online else {"completion": row["completion"]})} for row in ROWS]
    (folder / "own.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    recipe = recipe_for(folder, model, {**picked(kind, folder / "own.jsonl", model), "plugins": [str(file)]})
    recipe["train"]["max_steps"] = 3 if kind == "store" else 1
    if function == "token_bytes":  # the stream decoder keeps none of it
        recipe["backend"] = {"name": "torch", "decoder": "transformers"}
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    modules = set(sys.modules)
    try:
        return main(["run", str(folder / "recipe.yaml")]), file
    finally:
        for name in set(sys.modules) - modules:
            if getattr(sys.modules[name], "__file__", None) == str(file):
                del sys.modules[name]


def test_every_kind_is_run_or_said_not_to_be() -> None:
    assert CALLED.keys() == AROUND.keys() == ENTRY_TYPES.keys() - OF_NO_SMALL_RUN


@pytest.mark.parametrize(("kind", "function", "fault"), FIRST)
def test_what_raises_names_plugin_file_and_line(
    kind: str, function: str, fault: str, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, file = run(kind, function, fault, tiny_model_folder, tmp_path)
    said = capsys.readouterr()
    text = said.err + said.out if kind == "gate" else said.err  # a gate that raises holds a checkpoint back, no more
    *_, line = (line for line in text.splitlines() if str(file) in line)
    assert sum(line.startswith("error: ") for line in text.splitlines()) == (code != 0), text
    assert f"[{file}:" in line and file.name in line.replace(str(file), ""), line
    assert "a bug;" not in line and "Traceback" not in text and "config.json" not in line, line
    assert code in ((0,) if kind == "gate" and function == "check" else (1, 2)), text


@pytest.mark.parametrize("fault", ["no gradient", "gradient of zeros", "gradient of another shape", "gradient of NaN"])
def test_a_kernel_with_a_wrong_gradient_trains_no_step(
    fault: str, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, file = run("kernel", "linear_logprob", fault, tiny_model_folder, tmp_path)
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and line.startswith(f"error: kernels.linear_logprob={file.name}:acme: it is wrong on "), line
    assert "gradient" in line and f"[{file}:" in line and line.endswith("(set kernels.linear_logprob: torch)"), line
    assert not list(tmp_path.rglob("checkpoint-*"))


@pytest.mark.parametrize(
    ("kind", "function", "fault"), [*WRONG[:2], *(pytest.param(*case, marks=pytest.mark.slow) for case in WRONG[2:])]
)
def test_a_wrong_answer_names_plugin_file_and_line(
    kind: str, function: str, fault: str, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, file = run(kind, function, fault, tiny_model_folder, tmp_path)
    text = capsys.readouterr().err
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert code in (1, 2) and f"[{file}:" in line and "Traceback" not in text, text
    others = line.replace(str(file), "").replace(str(tmp_path), "")
    assert "finetooth" not in others and "a bug;" not in line and "report the model" not in line, line


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "function", "fault"), OTHERS)
def test_whatever_is_raised_names_plugin_file_and_line(
    kind: str, function: str, fault: str, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if fault not in ("file", "import"):
        test_what_raises_names_plugin_file_and_line(kind, function, fault, tiny_model_folder, tmp_path, capsys)
        return
    code, _ = run(kind, function, fault, tiny_model_folder, tmp_path)  # may be what the user forgot to bring
    said = capsys.readouterr()
    text = said.err + said.out
    assert any("acme" in line for line in text.splitlines()), text
    assert sum(line.startswith("error: ") for line in text.splitlines()) == (code != 0), text
    assert "a bug;" not in text and "Traceback" not in text and "config.json" not in text, text
    assert code in ((0,) if kind == "gate" and function == "check" else (1, 2)), text


@pytest.mark.slow
@pytest.mark.parametrize("kind", CALLED)
def test_as_it_is_it_trains(kind: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    """So that what is seen above is the fault's."""
    assert run(kind, CALLED[kind][0], "none at all", tiny_model_folder, tmp_path)[0] == 0
