"""The whole engine on a pretend accelerator, which refuses tensors of the host and counts what a GPU would wait for."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PER_CALL, PER_STEP, PER_TOKEN = 2, 1, 1
"""Reading the prompts and rows that leave wait for nothing."""
AHEAD = 0.9
"""Of a micro-batch's operations, the share that the device has been given when the next one is laid out."""
CLOSE = {"fp32": (2e-5, 1e-5), "bf16": (2e-3, 0.05)}
"""How near losses and log-probabilities are to the CPU's, whose kernels round sums of bf16 elsewhere."""
LATE = 0.05
"""Of a micro-batch's operations, the share that the device may have been given when a copy of its inputs begins."""
OWN_CODE = 1
"""transformers looks at its mask once more in a pass."""


def tried(*arguments: str, program: str = "pretend_accelerator.py", after: str = " ") -> dict[str, str]:
    """What the program says, by the beginning of a line."""
    pytest.importorskip("finetooth_native")
    command = [sys.executable, str(Path(__file__).with_name(program)), *arguments]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(line.split(after, 1) for line in done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["stream", "transformers"])
@pytest.mark.parametrize("trains", ["lora", "full"])
@pytest.mark.parametrize(("precision", "lacks"), [("fp32", ""), ("fp32", "without-float64"), ("bf16", "")])
def test_it_trains_and_samples_there_and_hardly_waits(decoder: str, trains: str, precision: str, lacks: str) -> None:
    said = tried(decoder, precision, trains, lacks)
    of_losses, of_scores = CLOSE[precision]
    losses = [float(number) for number in said["LOSSES"].split()]
    assert losses[::2] == pytest.approx(losses[1::2], abs=of_losses) and losses[-1] < losses[1] - 0.02
    waits = {name: float(said[name].split()[0]) for name in ("CALL", "STEP", "TOKEN")}
    micro_batches = int(said["MICRO-BATCHES"])
    more = OWN_CODE * micro_batches if decoder == "transformers" else 0
    assert micro_batches > 1 and waits["CALL"] <= PER_CALL + more, said["CALL"]
    assert len(said["AHEAD"].split()) == 2 and min(map(float, said["AHEAD"].split())) >= AHEAD, said["AHEAD"]
    assert float(said["SCORED"]) < of_scores
    assert waits["STEP"] <= PER_STEP, said["STEP"]
    assert waits["TOKEN"] <= PER_TOKEN, said["TOKEN"]
    assert ast.literal_eval(said["SAMPLED"]) == [21, 21]


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "precision", "copies"), [("stream", "fp32", 4), ("transformers", "bf16", 2)])
def test_inputs_arrive_on_a_stream_of_their_own_while_the_device_computes(
    decoder: str, precision: str, copies: int
) -> None:
    """They change no bit, also where the run ends between micro-batches and is resumed, and add no wait; a copy begins
    before the device has been given more of its micro-batch, and after it has been given all of the one before."""
    said = tried(decoder, precision, program="pretend_streams.py")
    assert said["SAME"] == "51 True"
    by_call = {name: [float(x) for x in said[name].split()] for name in ("WAITS", "AHEAD", "LATE", "COPIES")}
    plain, streamed = by_call["WAITS"][:3], by_call["WAITS"][3:]
    assert [streamed[0], streamed[2]] == [plain[0], plain[2]] and streamed[1] <= plain[0], "the second engine is new"
    assert min(by_call["AHEAD"]) >= AHEAD and max(by_call["LATE"]) <= LATE
    assert by_call["COPIES"] == [0] * 3 + [copies] * 3 and said["UNREAD"] == "0"


@pytest.mark.slow
def test_a_replayed_token_waits_once_and_gives_the_device_little_else() -> None:
    """Copies of what is given, into the graph's own tensor, and of what is chosen."""
    same, replays, waits, operations = re.findall(r"\w+", tried("stream", "fp32", "lora", "graphs")["GRAPHS"])
    assert same == "True" and int(replays) == 19, "of 21 tokens, the first is the prompt's and the second warms up"
    assert int(waits) == 1 and int(operations) <= 4


@pytest.mark.slow
def test_every_setting_of_sampling_waits_once_a_token(tmp_path: Path) -> None:
    """Also to read prompts of several adapters, and for rows of several settings; unusual losses wait as any other."""
    said = tried(str(tmp_path), program="pretend_sampling.py", after=": ")
    waits = {name: float(of.split()[0]) for name, of in said.items()}
    losses = [waits.pop(name) for name in list(waits) if name.endswith(("loss", "step", "dropout"))]
    assert len(losses) == 3 and max(losses) <= PER_CALL, said
    assert len(waits) == 20 and max(waits.values()) <= PER_TOKEN, said
    assert [name for name, of in said.items() if of.split()[1] != "True"] == [], "what the host computes"


@pytest.mark.slow
def test_losses_of_routers_wait_once_a_step() -> None:
    """For the choices of the whole step; transformers' loop over experts, which asks each, is not ours."""
    said = tried("transformers", "fp32", "full", "mixture")
    losses = [float(number) for number in said["LOSSES"].split()]
    assert losses[::2] == pytest.approx(losses[1::2], abs=2e-5) and len(set(losses)) > 2
    waits = ast.literal_eval(said["CALL"].split(" ", 1)[1])
    ours = {place: times for place, times in waits.items() if "bodies.py" not in place}
    assert int(said["MICRO-BATCHES"]) > 1 and sum(ours.values()) == PER_CALL + 1, ours
