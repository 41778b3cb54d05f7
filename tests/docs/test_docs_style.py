"""Docstrings and texts of the code are plain English: docs/style.md."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PHRASES = re.compile(
    r"\b(told of|beside|what asks|go(?:es)? on|(?:is|are) no(?! longer\b| more\b| less\b)|becomes? of|lets? go of)\b"
)
NAMES = """
    contrib/csv core/guards core/kernel core/recipes core/rows core/saving core/toolbox kernels/operations kernels/steps
    plugins/adapters/freeze plugins/adapters/full plugins/adapters/lora plugins/adapters/peft
    plugins/backends/remote plugins/backends/torch plugins/commands/authoring
    plugins/commands/chat plugins/commands/data plugins/commands/doctor
    plugins/commands/eval plugins/commands/importer plugins/commands/init plugins/commands/report
    plugins/commands/runs plugins/commands/sweep plugins/commands/topics plugins/commands/watch
    plugins/data/datasets plugins/data/formats plugins/data/gguf plugins/data/media plugins/data/reasoninggym
    plugins/data/remote plugins/data/sql plugins/data/tables plugins/data/transformers plugins/data/webdataset
    plugins/environments/basic plugins/environments/gyms plugins/evaluators/exactmatch plugins/exporters/folders
    plugins/exporters/hub plugins/families/auto plugins/families/cohere plugins/families/deepseek
    plugins/families/gemma plugins/families/glm plugins/families/gptoss plugins/families/granite
    plugins/families/lfm2 plugins/families/llama plugins/families/mistral plugins/families/nemotronh
    plugins/families/phi plugins/families/qwen plugins/gates/integrity plugins/hardware/cuda
    plugins/hardware/rocm plugins/kernels/native plugins/kernels/triton plugins/losses/crossentropy
    plugins/losses/preference plugins/methods/bestofn plugins/methods/distillation plugins/methods/grpo
    plugins/methods/ppo plugins/methods/preference plugins/methods/pretrain plugins/methods/reward
    plugins/methods/selfrewarding plugins/methods/trl plugins/optimizers/adaptive plugins/optimizers/lowmemory
    plugins/optimizers/muon plugins/optimizers/standard plugins/quantizers/bitsandbytes plugins/quantizers/gptq
    plugins/quantizers/portable plugins/quantizers/torchao plugins/renderers/chatml plugins/renderers/jinja
    plugins/rewards/code plugins/rewards/function plugins/rewards/judge plugins/rewards/math
    plugins/rewards/rules plugins/samplers/engine plugins/samplers/servers plugins/services/client
    plugins/services/mcp plugins/services/openai plugins/services/server plugins/shared/peftfiles
    plugins/shared/rendering plugins/shared/rollouts plugins/shared/torchshared plugins/stores/disk
    plugins/stores/objects plugins/trackers/console plugins/trackers/mlflow plugins/trackers/trackio
    plugins/trackers/wandb
"""
NOT_YET = frozenset(NAMES.split())
"""Rooms that were written before the rule and still break it. Take one out when it is rewritten; add none."""


def rooms() -> list[str]:
    """Every package's folder from the root."""
    return sorted(file.parent.relative_to(ROOT).as_posix() for file in ROOT.glob("*/**/pyproject.toml") if (
        (file.parent / "src").is_dir() and ".venv" not in file.as_posix()
    ))  # fmt: skip


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring and every other text in a module, spaces as one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, " ".join(node.value.split())


def documented(source: str) -> Iterator[tuple[str, str]]:
    """Name and docstring of everything public in a module."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            name = getattr(node, "name", "the module")
            text = ast.get_docstring(node)
            if text and not name.startswith("_"):
                yield name, text


def broken(room: str) -> list[str]:
    """Places that break the rule, each as `file:line: phrase`."""
    places = []
    for file in sorted((ROOT / room / "src").rglob("*.py")):
        source, name = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
        places += [f"{name}:{line}: {match[0]!r}" for line, text in texts(source) for match in PHRASES.finditer(text)]
        for owner, text in documented(source):
            first = " ".join(text.split("\n\n")[0].split())
            if not first.rstrip("`\"')").endswith((".", ":", "?")):
                places.append(f"{name}: {owner}: the docstring does not begin with a sentence")
    return places


@pytest.mark.parametrize("room", rooms())
def test_room_is_plain_english(room: str) -> None:
    places = broken(room)
    if room in NOT_YET:
        assert places, f"{room} keeps the rule now: take it out of NOT_YET"
    else:
        assert places == [], "see docs/style.md"


def test_not_yet_names_rooms() -> None:
    assert set(rooms()) >= NOT_YET


def test_style_page_is_short() -> None:
    assert (ROOT / "docs/style.md").read_text(encoding="utf-8").count("\n") <= 80
