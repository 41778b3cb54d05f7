"""The recipe of the guide where torch is not installed: check, run, stop, resume, chat; and what torch reads of it.

`make mlx-test` makes an environment as Apple silicon installs it and names its Python in FT_MLX_PYTHON. Without the
variable, processes of this environment take its place, in which torch and what needs it are not found.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

from finetooth_core.cli import main

RECIPE = Path(__file__).parents[4] / "docs/recipes/mac-lora.yaml"
BLOCKED = ("torch", "peft", "accelerate", "finetooth_torchshared", "finetooth_peftfiles")
WITHOUT = f"""
import sys
class Others:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {BLOCKED} else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Others(finder) for finder in sys.meta_path]
"""
STARTED = """
import sys
from finetooth_core.cli import main
code = main(sys.argv[1:])
held = [name for name in sys.modules if name.partition(".")[0] in ("torch", "peft")]
sys.exit(f"imported {held}" if held else code)
"""
STOPS = """
import os
from finetooth_hooks import hookimpl

@hookimpl
def ft_step(run, report):
    if str(report.step) == os.environ.get("FT_TEST_STOP"):
        raise KeyboardInterrupt
"""
ROWS = [
    {"messages": [{"role": "user", "content": f"{i % 5}+1?"}, {"role": "assistant", "content": f"{i % 5 + 1}"}]}
    for i in range(24)
]
READ = """
import json, sys, peft, torch, transformers
base = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
adapted = peft.PeftModel.from_pretrained(base, sys.argv[2]).eval()
lost = weight = 0.0
for row in json.load(sys.stdin):
    ids = torch.tensor([i for piece in row["pieces"] for i in piece["ids"]])
    weights = torch.tensor([w for piece in row["pieces"] for w in piece["weights"]])[1:]
    with torch.no_grad():
        given = adapted(ids[None]).logits[0, :-1].double().log_softmax(-1)
    lost -= float((weights * given.gather(-1, ids[1:, None])[:, 0]).sum())
    weight += float(weights.sum())
print(lost / weight)
"""


def ft(*arguments: object, said: str | None = None, code: int = 0, **environment: str) -> str:
    """What a command prints, in an environment or process without torch."""
    named = os.environ.get("FT_MLX_PYTHON")
    command = [named, "-c", STARTED] if named else [sys.executable, "-c", WITHOUT + STARTED]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "FT_PLUGINS")}
    done = subprocess.run(
        [*command, *map(str, arguments)], input=said, capture_output=True, text=True, check=False,
        env={**kept, "HF_HUB_OFFLINE": "1", **environment},
    )  # fmt: skip
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    assert "PyTorch" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write: Callable[..., Path]) -> Path:
    """A model `m` of the kind that the recipe names, rows, and a plugin that stops a run."""
    folder = tmp_path_factory.mktemp("torchless")
    (folder / "m").mkdir()
    write(folder / "m", "qwen3")
    for name, rows in (("train.jsonl", ROWS), ("valid.jsonl", ROWS[:5])):
        (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "stop.py").write_text(STOPS, encoding="utf-8")
    return folder


@pytest.mark.slow
def test_the_recipe_of_the_guide_needs_no_torch(folder: Path) -> None:
    given = {
        "model": folder / "m", "data.train": folder / "train.jsonl", "data.eval": folder / "valid.jsonl",
        "train.max_length": 64, "evaluate.every": 3, "checkpoint.every": 3, "optimizer.learning_rate": 0.02,
    }  # fmt: skip
    overrides = [f"{name}={value}" for name, value in given.items()]
    assert "finetooth-mlx:lora" in ft("check", RECIPE, *overrides)
    ft("run", RECIPE, *overrides, f"output={folder / 'whole'}")
    stop = ("--plugins", folder / "stop.py")
    ft("run", RECIPE, *overrides, f"output={folder / 'cut'}", *stop, code=130, FT_TEST_STOP="4")
    ft("resume", folder / "cut", *stop)
    whole, cut = ((folder / name / "artifact/adapter_model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert ft("chat", folder / "whole", "--max-tokens", "3", said="2+1?\n").strip()
    kept = json.loads((folder / "whole/result.json").read_text(encoding="utf-8"))["metrics"]["eval/loss"]
    rows = ft("data", "preview", RECIPE, *overrides, "--split", "eval", "--rows", 5, "--json")
    read = [sys.executable, "-c", READ, str(folder / "m"), str(folder / "whole/artifact")]
    theirs = float(subprocess.run(read, input=rows, capture_output=True, text=True, check=True).stdout)
    assert theirs == pytest.approx(kept, rel=1e-4)


@pytest.mark.slow
def test_a_gguf_file_trains_without_torch(folder: Path, tmp_path: Path) -> None:
    """A run of MLX leaves as GGUF, written where torch is; a LoRA over that file has the losses of torch."""
    given = {
        "data.train": folder / "train.jsonl", "data.eval": folder / "valid.jsonl", "train.max_length": 64,
        "evaluate.every": 4, "checkpoint.every": 4, "train.max_steps": 4, "train.precision": "fp32",
    }  # fmt: skip
    overrides = [f"{name}={value}" for name, value in given.items()]
    run = ("run", str(RECIPE), *overrides)
    assert main([*run, f"model={folder / 'm'}", f"output={tmp_path / 'whole'}"]) == 0
    assert (
        main(["export", str(tmp_path / "whole"), "--to", "gguf", "stored=f32", "--output", str(tmp_path / "out")]) == 0
    )
    file = f"model={tmp_path / 'out/model.gguf'}"
    ft(*run, file, f"output={tmp_path / 'mlx'}")
    assert ft("chat", tmp_path / "mlx", "--max-tokens", "3", said="2+1?\n").strip()
    assert main([*run, file, "backend=torch", f"output={tmp_path / 'torch'}"]) == 0
    read = [(tmp_path / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines() for name in ("mlx", "torch")]
    mine, theirs = ([line["loss"] for line in map(json.loads, lines) if line.get("loss")] for lines in read)
    assert len(mine) == 4 and mine == pytest.approx(theirs, rel=1e-3)
