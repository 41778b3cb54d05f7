"""The whole engine on a pretend accelerator, which refuses tensors of the host and counts what a GPU would wait for."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PER_MICRO_BATCH, PER_STEP, PER_TOKEN = 2.0, 1, 1.2
OWN_CODE = 1.0
"""transformers looks at its mask once more in a pass."""


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["stream", "transformers"])
@pytest.mark.parametrize("trains", ["lora", "full"])
@pytest.mark.parametrize("lacks", ["", "without-float64"])
def test_it_trains_and_samples_there_and_hardly_waits(decoder: str, trains: str, lacks: str) -> None:
    pytest.importorskip("finetooth_native")
    command = [sys.executable, str(Path(__file__).with_name("pretend_accelerator.py")), decoder, "fp32", trains, lacks]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    losses = [float(number) for number in said["LOSSES"].split()]
    assert losses[::2] == pytest.approx(losses[1::2], abs=2e-5) and len(set(losses)) > 2
    waits = {name: float(said[name].split()[0]) for name in ("MICRO-BATCH", "STEP", "TOKEN")}
    more = OWN_CODE if decoder == "transformers" else 0.0
    assert waits["MICRO-BATCH"] <= PER_MICRO_BATCH + more, said["MICRO-BATCH"]
    assert waits["STEP"] <= PER_STEP, said["STEP"]
    assert waits["TOKEN"] <= PER_TOKEN, said["TOKEN"]
    assert ast.literal_eval(said["SAMPLED"]) == [21, 21]
