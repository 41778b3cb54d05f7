"""What the update of one parameter holds for a moment on a host: each optimizer's entry against its process's peak."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from finetooth_core.plugins import manager
from finetooth_hooks import Optimizer

SCRIPT = """
import gc, json, sys, warnings
from pathlib import Path

warnings.filterwarnings("ignore")
import torch
from finetooth_kit.fake_context import FakeContext

OUTPUTS, INPUTS = 9216, 1024


def memory(field):
    found = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field + ":")]
    return 1024 * int(found[0].split()[1])


def held(name, settings):
    made = FakeContext(Path(), installed=True).build("optimizer", {"name": name, **settings})
    weight = torch.nn.Parameter(torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(0)))
    optimizer, most = made.create([("model.embed_tokens.weight", weight)]), 0
    for step in range(2):
        weight.grad = torch.full_like(weight, 0.1)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc(5))
        before = memory("VmRSS")
        optimizer.step()
        if step:  # the first makes the state
            most = max(most, memory("VmHWM") - before)
    return most / weight.numel()


print(json.dumps({name: held(name, settings) for name, settings in json.loads(sys.argv[1]).items()}))
"""

IN_BACKWARD = ("lomo", "adalomo")
"""Whose updates are not made by a step."""
ENTRIES = {
    one.full_name: one.entry
    for one in manager.start(files=[]).catalog.speaking("optimizer", "torch")
    if isinstance(one.entry, Optimizer) and not one.entry.devices and one.entry.name not in IN_BACKWARD
}


SETTINGS = {f"finetooth-lowmemory:{name}": {"momentum": 0.9} for name in ("flash_sgd", "flash_sgdw")}
"""What makes these keep a state, as their entries say; 0 is the default."""
PAGES_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""glibc gives every larger block pages of its own and takes them back when it is freed (mallopt(3)); it otherwise
keeps freed blocks up to 32 MiB, which a peak does not show."""


@pytest.fixture(scope="module")
def held() -> dict[str, float]:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("a process's peak can only be measured anew on Linux")
    tried = json.dumps({name: SETTINGS.get(name, {}) for name in ENTRIES})
    command, environment = [sys.executable, "-c", SCRIPT, tried], {**os.environ, **PAGES_AT_ONCE}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_an_update_of_one_tensor_holds_what_the_entry_says(name: str, held: dict[str, float]) -> None:
    assert held[name] == pytest.approx(ENTRIES[name].tensor_bytes, abs=0.25)
