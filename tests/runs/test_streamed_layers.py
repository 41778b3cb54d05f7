"""A base that is many times larger than what of it is in memory: measured, and the same adapter to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, LlamaForCausalLM

LAYERS = 16
MIB = 2**20

RUN = """
import json, sys
from pathlib import Path
import finetooth

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

session = finetooth.session(json.loads(sys.argv[1]))
planned = session.plan.memory
import transformers.modeling_utils, peft
Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
before = peak()
session.run()
print("found", json.dumps({"peak": peak() - before, "planned": dict(planned.parts)}))
"""


@pytest.mark.slow
def test_a_base_of_many_windows_takes_the_memory_of_one(
    recipe: Callable[..., dict[str, Any]], tiny_model: Path, tmp_path: Path
) -> None:
    """Of 16 layers of 16 MiB two are in memory; weights and planned weights fall by as much."""
    config = AutoConfig.from_pretrained(
        tiny_model, hidden_size=512, intermediate_size=2048, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=8, head_dim=64, dtype="float32",
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    each = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    assert each > 16 * MIB
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    for file in tiny_model.glob("tokenizer*"):
        (folder / file.name).write_bytes(file.read_bytes())
    del model
    found = {}
    for name, more in (("plain", {}), ("streamed", {"layers": "disk", "layer_window": 2, "activations": "disk"})):
        given = recipe(
            backend={"name": "torch", "decoder": "transformers", **more}, model=str(folder),
            train={"precision": "fp32", "max_steps": 2, "batch_size": 2, "max_length": 512},
            output=str(tmp_path / name),
            evaluate={"evaluators": []},
        )  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", RUN, json.dumps(given)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        line = next(line for line in done.stdout.splitlines() if line.startswith("found "))
        found[name] = json.loads(line.removeprefix("found "))
    away = (LAYERS - 2) * each
    plain, streamed = found["plain"], found["streamed"]
    assert plain["planned"]["weights"] - streamed["planned"]["weights"] == pytest.approx(away, rel=0.02)
    assert plain["peak"] - streamed["peak"] > 0.8 * away
    assert streamed["peak"] < LAYERS * each  # activations and the optimizer's state too
    one, other = (load_file(tmp_path / name / "artifact" / "adapter_model.safetensors") for name in found)
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
