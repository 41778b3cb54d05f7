"""A small recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from finetooth_core.cli import main

sys.path.insert(0, str(Path(__file__).parent))  # known_models

Recipe = dict[str, Any]

READERS = {"llama": "xllamacpp", "mlx": "mlx_lm"}
"""Readers of exports that are not ours, and the module that each is."""
LLAMA = """
import json, os, sys, urllib.request
import xllamacpp
wanted = xllamacpp.CommonParams()
wanted.model.path = sys.argv[1]
wanted.n_ctx, wanted.n_parallel, wanted.cache_ram_mib, wanted.port = 512, 1, 0, 0
wanted.use_jinja, wanted.warmup, wanted.fit_params = True, False, False
wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = 1
wanted.cache_type_k = wanted.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
server = xllamacpp.Server(wanted)
def ask(path, body):
    url, kind = server.listening_address + path, {"Content-Type": "application/json"}
    return json.load(urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), kind), timeout=60))
print("found", json.dumps([ask(*one) for one in json.loads(sys.argv[2])]), flush=True)
os._exit(0)
"""
"""Puts requests to llama.cpp's own server, which reads the file alone."""

LETTERS = '''
"""A reward that answers of a random model differ in."""
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

def build(options: NoOptions, context):
    return lambda prompts, completions, columns: [float(sum(c in "aeiou" for c in text)) for text in completions]
'''


@pytest.fixture(scope="session")
def ask_reader() -> Callable[..., Any]:
    """Runs a script where a reader is, and gives the JSON that it prints behind `found`.

    Readers are looked for in this environment, or in others of their own under the folder that FT_READERS names
    (`make readers-test` makes them); where one is not, the test is skipped.
    """

    def ask(reader: str, script: str, *arguments: object) -> Any:
        python = Path(os.environ.get("FT_READERS", "/nowhere")) / reader / "bin/python"
        if not python.is_file():
            if find_spec(READERS[reader]) is None:
                pytest.skip(f"{READERS[reader]} is not installed")
            python = Path(sys.executable)
        command = [str(python), "-c", script, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        lines = [line for line in done.stdout.splitlines() if line.startswith("found ")]
        assert lines, (done.stdout + done.stderr)[-3000:]
        return json.loads(lines[0].removeprefix("found "))

    return ask


@pytest.fixture(scope="session")
def ask_llama_cpp(ask_reader: Callable[..., Any]) -> Callable[[Path, Sequence[tuple[str, Any]]], list[Any]]:
    """Puts requests, each a path and a body, to llama.cpp's server over a GGUF file, and gives its answers."""
    return lambda file, requests: ask_reader("llama", LLAMA, file, json.dumps(requests))


@pytest.fixture(scope="session")
def tiny_model(tiny_llama: Path) -> Path:
    """Two layers, 64 wide, random weights from a seed, the first of SmolLM2's tokens."""
    return tiny_llama


@pytest.fixture
def recipe(tiny_model: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """A recipe over 24 generated questions; keyword arguments replace whole sections."""

    def make(**sections: Any) -> Recipe:
        return {
            "model": str(tiny_model),
            "data": {"train": {"name": "tasks", "task": "family", "count": 24, "seed": 5}, "renderer": "chatml"},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 4},
            "optimizer": {"name": "adamw", "learning_rate": 1e-2},
            "train": {"batch_size": 8, "precision": "fp32", "max_length": 256},
            "trackers": ["jsonl"],
            "output": str(tmp_path / "run"),
            **sections,
        }

    return make


@pytest.fixture
def losses() -> Callable[[Path], list[float]]:
    """Losses of a run folder, by step."""

    def read(folder: Path) -> list[float]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["event"] == "step"]

    return read


@pytest.fixture
def metrics() -> Callable[[Path], list[dict[str, float]]]:
    """Metrics of a run folder, by step."""

    def read(folder: Path) -> list[dict[str, float]]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [line["metrics"] for line in lines if line["event"] == "step"]

    return read


@pytest.fixture
def online_recipe(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Callable[..., Recipe]]:
    """Makes what makes recipes that learn from rewards for letters: of the method and the steps of a file's tests, and
    of a plugin in place of the one that has the reward alone. What it gives takes `train` and options of the method."""

    def of(method: Recipe, train: Recipe, plugin: str = LETTERS) -> Callable[..., Recipe]:
        (tmp_path / "letters.py").write_text(plugin, encoding="utf-8")
        rows = {"name": "tasks", "task": "family", "count": 8, "seed": 5}
        common = {"precision": "fp32", "max_length": 256}

        def make(**given: Any) -> Recipe:
            asked = given.pop("train", None) or {}
            return recipe(
                data={"train": rows, "format": "task", "renderer": "chatml"},
                method={"rewards": ["letters"], **method, **given},
                train={**common, **train, **asked},
                evaluate={"evaluators": []},
                plugins=[str(tmp_path / "letters.py")],
            )

        return make

    return of


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real public data, if they are at hand."""
    folder = Path(os.environ.get("FT_SHARED", Path(__file__).parents[2].parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    return folder


@pytest.fixture
def ft(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command; its exit code, and what it printed."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def written(recipe: Callable[..., Recipe], tmp_path: Path) -> Callable[..., Path]:
    """A recipe file over a few conversations."""

    def write(*rows: list[str], **sections: Any) -> Path:
        roles = ("user", "assistant")
        lines = [
            json.dumps({"messages": [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]})
            for texts in rows
        ]
        (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
        sections.setdefault("data", {"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml"})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(**sections)))
        return tmp_path / "recipe.yaml"

    return write
