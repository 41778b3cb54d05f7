"""`ft plugins try`: three steps with each entry of a plugin, each in a process of its own, which may not take long."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from finetooth_hooks import (
    Attention,
    Command,
    CommandContext,
    Entry,
    Environment,
    Family,
    FinetoothError,
    Format,
    Kernel,
    Loader,
    Loss,
    PluginError,
    RecipeError,
    Sampler,
    Store,
)
from finetooth_kit.tiny_runs import ROWS, metrics_of, recipe_for, write_model

STEPS = 3
PAIRS = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "no"} for r in ROWS]
PROMPTS = [{"prompt": row["prompt"]} for row in ROWS]
LENGTH = {"name": "answer_length", "unit": "characters", "least": 32, "slack": 32}
"""A reward in which answers of a random model differ; else a group would teach nothing."""
ONLINE = {"name": "grpo", "num_generations": 2, "max_completion_length": 8, "rewards": [LENGTH]}
"""A method that learns from its own answers, of few and short ones."""
ELSEWHERE = {
    "face": "a server answers through it: ft serve {entry}",
    "processor": "it reads images or sounds: ft check RECIPE with rows that have some",
    "page": "a browser asks for it: ft board",
    "release_gate": "a registry asks it: ft registry promote",
    "loader": "it does not read a folder of transformers' files: ft check RECIPE with a model that it reads",
    "family": "transformers makes no tiny model of its model_types: ft check RECIPE with a model of the family",
    "store": "it needs a place: ft run RECIPE checkpoint.stores=[URL]",
    "sampler": "it needs a server: ft run RECIPE method.sampler={entry}",
    "environment": "it needs a server: ft run RECIPE method.environment={entry}",
    "kernel": "a run on this machine computes none of its operations: pytest with finetooth_kit's checks of kernels",
}
"""How to try an entry that no small run picks."""
LEARNS = ("loss", "method", "adapter", "optimizer", "attention", "kernel", "quantizer", "backend")
"""Kinds through which the gradient goes: with a norm of 0 at every step nothing was learned."""

FAULTS = {
    "NaN": r"\b(nan|inf)\b|not finite",
    "None": r"(returned|yielded) None\b",
    "shape": r"of shape|returned \d+ .* for \d+|\bshapes? ",
    "type": r"\b(returned|yielded) .+ not ",
}
"""What a refusal says, by kind of fault; else it raised."""


@dataclass(frozen=True)
class Trial:
    """What came of an entry's three steps.

    Attributes:
        entry: its kind and name.
        fault: `raises`, `hangs`, `NaN`, `None`, `shape`, `type`, `no gradient`, or `refused` for a recipe that the
            entry does not suit; empty: none.
        text: the losses, or the line that the run ended with.
        tried: False where no run picks a kind.
    """

    entry: str
    fault: str
    text: str
    tried: bool = True


def trials(
    context: CommandContext, name: str, overrides: Sequence[str] = (), *, limit: float = 120.0, folder: Path
) -> Iterator[Trial]:
    """Try every entry of a plugin.

    Args:
        overrides: settings of the recipe, `method=dpo`, for an entry that the recipe as it is does not suit.
        limit: seconds that a process may take.
        folder: an empty one, for the model and the runs.

    Raises:
        PluginError: no plugin has the name, or it is broken.
    """
    (plugin,) = context.plugin_facts([name])
    if plugin.faults and not plugin.entries:
        raise PluginError(plugin.name, plugin.faults[0].problem, action=f"fix it, then: ft plugins doctor {name}")
    model = _model(folder / "model", "llama")
    assert model is not None
    local = [plugin.file] if plugin.file and not plugin.module else []
    for index, entry in enumerate(plugin.entries):
        place = folder / str(index)
        place.mkdir()
        title = f"{entry.kind}:{entry.name}"
        pick = f"{plugin.name}:{entry.name}" if plugin.module else entry.name
        if isinstance(entry, Command):
            yield _tried(entry, title, [*_words(entry.name), "--help"], place, limit, local)
            continue
        changes = changes_for(entry, {"name": pick, **_example(entry, place)}, place, model)
        recipe = recipe_for(place, model, {**(changes or {}), "plugins": local})
        if changes is not None and isinstance(entry, Kernel):
            changes = recipe["kernels"] = _used(context, recipe)
        if not changes:
            how = ELSEWHERE[entry.kind].format(entry=entry.name)
            yield Trial(title, "", f"not tried, {how}; ft plugins doctor {name} checks the rest", tried=False)
            continue
        recipe["train"]["max_steps"] = STEPS
        file = place / "recipe.yaml"
        file.write_text(json.dumps(recipe), encoding="utf-8")
        yield _tried(entry, title, ["run", str(file), *overrides], place / "run", limit)


def _words(command: str) -> list[str]:
    """How a command is called."""
    group, _, name = command.partition("-")
    return [group, name] if group == "plugins" and name else [command]


def _model(folder: Path, kind: str) -> Path | None:
    """A tiny model of a type that transformers knows; None where it makes none."""
    try:
        with redirect_stderr(StringIO()):  # progress bars
            return write_model(folder, kind)
    except Exception:  # of a model's own code, whatever its config asks for
        return None


def _used(context: CommandContext, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Of the kernels that a recipe names, those that its run computes with."""
    kernels = dict(recipe["kernels"])
    while kernels:
        try:
            context.plan({**recipe, "kernels": kernels})
            break
        except RecipeError as error:
            if kernels.pop(error.setting.removeprefix("kernels."), None) is None:
                break
        except FinetoothError:
            break  # the run says what is wrong
    return kernels


def _example(entry: Entry, folder: Path) -> dict[str, Any]:
    """The options of an entry's example; its files are written."""
    for name, text in getattr(entry, "example_files", {}).items():
        (folder / name).write_text(text, encoding="utf-8")
    return json.loads(json.dumps(dict(entry.example)).replace("{folder}", folder.as_posix()))  # type: ignore[no-any-return]


def changes_for(entry: Entry, pick: Mapping[str, Any], folder: Path, model: Path) -> dict[str, Any] | None:
    """What a recipe says to pick an entry; None where no recipe of a small run can.

    Args:
        pick: the entry with its options.
        folder: for rows and a model that the entry needs.
        model: the recipe's.
    """

    def rows(of: Sequence[Mapping[str, Any]]) -> str:
        file = folder / "own.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in of), encoding="utf-8")
        return str(file)

    if isinstance(entry, Loss) and entry.together == "group":
        return {"method": {"name": "dpo", "loss": pick}, "data": {"train": rows(PAIRS)}}
    if isinstance(entry, Kernel):
        return {"kernels": {serves.operation: pick["name"] for serves in entry.serves}}
    if isinstance(entry, Format):
        return {"data": {"format": pick, "train": rows(entry.example_rows or ROWS)}}
    if isinstance(entry, Loader):
        return {"model": {"name": str(model), "loader": pick}} if entry.claims(str(model)) else None
    if isinstance(entry, Family):
        made = (
            _model(folder / "model", kind) for kind in sorted(entry.model_types, key=lambda kind: (len(kind), kind))
        )
        own = next(filter(None, made), None)
        return {"model": {"name": str(own), "family": pick}} if own else None
    if isinstance(entry, Store):
        return {"checkpoint": {"every": 1, "stores": [pick]}} if entry.tier != "remote" or "url" in pick else None
    if isinstance(entry, Environment | Sampler) and entry.remote:
        return None
    if isinstance(entry, Attention):
        return {"backend": {"name": "torch", "attention": pick}}
    tasks = [dict(entry.example_task)] * len(PROMPTS) if isinstance(entry, Environment) else PROMPTS
    sections: dict[str, dict[str, Any]] = {
        "loss": {"method": {"name": "sft", "loss": pick}},
        "quantizer": {"quantization": pick},
        "tracker": {"trackers": ["jsonl", pick]},
        "renderer": {"data": {"renderer": pick}},
        "source": {"data": {"train": pick}},
        "evaluator": {"evaluate": {"every": 1, "evaluators": [pick]}, "data": {"eval": rows(ROWS)}},
        "gate": {"checkpoint": {"every": 1, "gates": [pick]}},
        "exporter": {"export": [pick]},
        "reward": {"method": {**ONLINE, "rewards": [pick, LENGTH]}, "data": {"train": rows(PROMPTS)}},
        "environment": {"method": {**ONLINE, "environment": pick}, "data": {"train": rows(tasks)}},
        "sampler": {"method": {**ONLINE, "sampler": pick}, "data": {"train": rows(PROMPTS)}},
        "strategy": {"scale": {"strategy": pick, "devices": 2}},
        "launcher": {"scale": {"launcher": pick, "devices": 2}},
    }
    if entry.kind in ("adapter", "backend", "hardware", "method", "optimizer", "schedule"):
        return {entry.kind: dict(pick)}
    return sections.get(entry.kind)


def _tried(
    entry: Entry, title: str, arguments: Sequence[str], run: Path, limit: float, plugins: Sequence[str] = ()
) -> Trial:
    """
    Args:
        arguments: of `ft`.
        run: the run's folder.
        plugins: local ones that no recipe names.
    """
    named = [part for file in plugins for part in ("--plugins", file)]
    command = [sys.executable, "-m", "finetooth", *named, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Trial(title, "hangs", f"it did not end within {limit:g} s (--limit)")
    steps = metrics_of(run)
    losses = " ".join(f"{step['loss']:.4g}" for step in steps)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        line = lines[-1].removeprefix("error: ") if lines else f"the process ended with {done.returncode}"
        return Trial(title, fault_of(line, done.returncode), line)
    if isinstance(entry, Command):
        return Trial(title, "", "its --help is shown")
    if not all(math.isfinite(step["loss"]) for step in steps):
        return Trial(title, "NaN", f"losses {losses}, and the run did not stop")
    if entry.kind in LEARNS and not any(step["grad_norm"] for step in steps):
        return Trial(title, "no gradient", f"the norm of the gradient is 0 at every step, losses are {losses}")
    return Trial(title, "", f"{len(steps)} steps, losses {losses}")


def fault_of(line: str, code: int) -> str:
    """The kind of fault that a run's last line tells of.

    Args:
        code: exit code of the run.
    """
    for fault, pattern in FAULTS.items():
        if re.search(pattern, line):
            return fault
    return "refused" if code == 2 else "raises"


__all__ = ["Trial", "changes_for", "fault_of", "trials"]
