"""The server killed with SIGKILL in the middle of training: clients notice a pause, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import httpx2 as httpx
import pytest
from finetooth_hooks import Sampling
from finetooth_hooks.engine import StepSettings

STEPS = 14


class Killable:
    """`ft serve` in a process of its own, that can be killed and started again on the same port."""

    def __init__(self, tiny: Path, folder: Path, *faces: str, replay: float = 0.5) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable, "-m", "finetooth", "serve", *faces, "--model", str(tiny), "--folder", str(folder / "server"),
            "--port", str(self.port), "--replay", str(replay), "--set", "train.precision=fp32",
        ]  # fmt: skip
        self._log = folder / "serve.log"
        self.start()

    def start(self) -> None:
        with self._log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        for _ in range(600):
            assert self._process.poll() is None, self._log.read_text()
            try:
                if httpx.get(f"{self.url}/health", timeout=1).status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(self._log.read_text())

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(60)


def kill_repeatedly(server: Killable, times: int, between: float, over: threading.Event) -> int:
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
def test_a_client_goes_on_and_ends_bit_identical(tiny: Path, ask: SimpleNamespace, tmp_path: Path) -> None:
    ends = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        server = Killable(tiny, tmp_path / name, "api")
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
def test_a_tinker_script_goes_on_and_ends_the_same(tiny: Path, tmp_path: Path) -> None:
    python = os.environ.get("FT_TINKER_PYTHON", sys.executable)
    said = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        server = Killable(tiny, tmp_path / name, "tinker")
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
