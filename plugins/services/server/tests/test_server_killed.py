"""The server killed with SIGKILL in the middle of training: clients notice a pause, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import pytest
from finetooth_hooks import Sampling
from finetooth_hooks.engine import StepSettings

STEPS = 14


def kill_repeatedly(server: Any, times: int, between: float, over: threading.Event) -> int:
    done = 0
    while done < times and not over.wait(between):
        server.kill()
        time.sleep(0.2)
        server.start()
        done += 1
    return done


def train(url: str, tiny: Path, ask: SimpleNamespace, pause: float = 0.0) -> tuple[list[Any], list[Any], Any]:
    """Numbers of a training with saving, sampling and loading in between."""
    seen: list[Any] = []
    sampled: list[Any] = []
    with finetooth.Client(url, patience=120) as client:
        session = client.session(str(tiny), adapter={"name": "lora", "rank": 4, "dropout": 0.1}, train={"seed": 5})
        for n in range(STEPS):
            forward = session.forward(ask.data(n), "cross_entropy")
            time.sleep(pause)
            seen.append((forward.loss, session.backward(forward.handle)))
            seen.append(session.forward_backward(ask.data(n + 100)).loss)
            seen.append(session.step(settings=StepSettings(learning_rate=1e-2)))
            if n % 4 == 3:
                sampled.append(session.generate([[10, 11, 12]], Sampling(max_tokens=6, seed=n)))
                saved = session.save(f"s{n}")
                session.load(saved)
        last = session.save("end")
        found = next(one for one in client.checkpoints(session.id) if one.id == last)
    return seen, sampled, found.size


@pytest.mark.slow
def test_a_client_goes_on_and_ends_bit_identical(
    tiny: Path, ask: SimpleNamespace, tmp_path: Path, killable: Any
) -> None:
    ends = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        server = killable(tiny, tmp_path / name, "api")
        over = threading.Event()
        kills: list[int] = []
        killer = threading.Thread(target=lambda s=server, o=over, k=kills: k.append(kill_repeatedly(s, 5, 2.0, o)))
        if name == "killed":
            killer.start()
        result = train(server.url, tiny, ask, pause=0.0 if name == "calm" else 1.0)
        over.set()
        if name == "killed":
            killer.join()
            assert kills[0] >= 2
        folders = sorted((tmp_path / name / "server" / "checkpoints").iterdir(), key=lambda f: f.stat().st_mtime)
        weights = (folders[-1] / "state" / "trained.safetensors").read_bytes()
        server.stop()
        ends.append((result, weights, len(folders)))
    assert ends[0] == ends[1]


CLIENT = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np, tinker
from tinker import types
given = json.loads(sys.argv[1])
service = tinker.ServiceClient()
training = service.create_lora_training_client(base_model=given["model"], rank=4, seed=11)
for n in range(given["steps"]):
    tokens = [[int(t) for t in np.random.default_rng([n, k]).integers(3, 128, size=12)] for k in range(3)]
    data = [types.Datum(types.ModelInput.from_ints(t[:-1]),
            {"target_tokens": np.asarray(t[1:]), "weights": np.ones(11, np.float32)}) for t in tokens]
    forward = training.forward_backward(data, "cross_entropy")
    stepped = training.optim_step(types.AdamParams(learning_rate=0.01))
    print(json.dumps([forward.result().metrics["loss:sum"], stepped.result().metrics["grad_norm"]]), flush=True)
    time.sleep(given["pause"])
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tinker") is None, reason="the package tinker is not installed")
def test_a_tinker_script_goes_on_and_ends_the_same(tiny: Path, tmp_path: Path, killable: Any) -> None:
    python = os.environ.get("FT_TINKER_PYTHON", sys.executable)
    said = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        server = killable(tiny, tmp_path / name, "tinker")
        given = {"model": str(tiny), "steps": STEPS, "pause": 0.0 if name == "calm" else 1.0}
        environment = {
            **os.environ, "TINKER_BASE_URL": server.url, "TINKER_API_KEY": "tml-local", "TINKER_TELEMETRY": "0",
        }  # fmt: skip
        script = subprocess.Popen(
            [python, "-c", CLIENT, json.dumps(given)], env=environment, stdout=subprocess.PIPE, text=True
        )
        over = threading.Event()
        killer = threading.Thread(target=kill_repeatedly, args=(server, 3, 4.0, over))
        if name == "killed":
            killer.start()
        out, _ = script.communicate(timeout=300)
        over.set()
        if name == "killed":
            killer.join()
        server.stop()
        assert script.returncode == 0
        said.append(out)
    assert len(said[0].splitlines()) == STEPS and said[0] == said[1]
