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
from finetooth_server.encryption.master import master_keys, new_key
from finetooth_server.encryption.vault import Vault

STEPS = 8
KILLS = (1, 3, 6)
"""Steps after which the server is killed, while the next one is under way."""


class Killer:
    """Kills the server a moment after it is told to, while its client goes on."""

    def __init__(self, server: Any) -> None:
        self._server, self._threads, self._failed = server, list[threading.Thread](), list[AssertionError]()

    def soon(self, seconds: float) -> None:
        self.wait()
        self._threads.append(threading.Thread(target=self._kill, args=(seconds,)))
        self._threads[-1].start()

    def _kill(self, seconds: float) -> None:
        time.sleep(seconds)
        self._server.kill()
        try:
            self._server.start()
        except AssertionError as error:  # what the server said
            self._failed.append(error)

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()
        assert not self._failed, self._failed

    @property
    def kills(self) -> int:
        return len(self._threads)


def train(url: str, tiny: Path, ask: SimpleNamespace, killer: Killer | None) -> tuple[list[Any], list[Any], Any]:
    """Numbers of a training with saving, sampling and loading in between."""
    seen: list[Any] = []
    sampled: list[Any] = []
    with finetooth.Client(url, patience=180) as client:
        session = client.session(str(tiny), adapter={"name": "lora", "rank": 4, "dropout": 0.1}, train={"seed": 5})
        for n in range(STEPS):
            forward = session.forward(ask.data(n), "cross_entropy")
            seen.append((forward.loss, session.backward(forward.handle)))
            seen.append(session.forward_backward(ask.data(n + 100)).loss)
            seen.append(session.step(settings=StepSettings(learning_rate=1e-2)))
            if killer is not None and n in KILLS:
                killer.soon(0.05 * n)
            if n % 4 == 3:
                sampled.append(session.generate([[10, 11, 12]], Sampling(max_tokens=6, seed=n)))
                saved = session.save(f"s{n}")
                session.load(saved)
        last = session.save("end")
        found = next(one for one in client.checkpoints(session.id) if one.id == last)
    return seen, sampled, found.size


@pytest.mark.slow
@pytest.mark.parametrize(("databases", "encrypted"), [("sqlite", False), ("postgresql", True)], indirect=["databases"])
def test_a_client_goes_on_and_ends_bit_identical(
    tiny: Path, ask: SimpleNamespace, tmp_path: Path, killable: Any, databases: Any, encrypted: bool
) -> None:
    ends = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        more = ["--database", databases.new()]
        key = tmp_path / name / "key"
        if encrypted:
            key.touch(mode=0o600)
            key.write_text(new_key())
            more += ["--encryption-key", str(key)]
        server = killable(tiny, tmp_path / name, "api", more=more)
        killer = Killer(server) if name == "killed" else None
        try:
            result = train(server.url, tiny, ask, killer)
        finally:
            if killer is not None:
                killer.wait()
        if killer is not None:
            assert killer.kills == len(KILLS)
        folders = sorted((tmp_path / name / "server" / "checkpoints").iterdir(), key=lambda f: f.stat().st_mtime)
        vault = Vault(tmp_path / name / "server", master_keys(key) if encrypted else None)
        with vault.reading(folders[-1] / "state") as state:
            weights = (state / "trained.safetensors").read_bytes()
        server.stop()
        ends.append((result, weights, len(folders)))
    assert ends[0] == ends[1]


CLIENT = """
import json, os, sys, time, warnings
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
os._exit(0)  # the client leaves a thread running, which now and then aborts a process that ends in the usual way
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tinker") is None, reason="the package tinker is not installed")
def test_a_tinker_script_goes_on_and_ends_the_same(tiny: Path, tmp_path: Path, killable: Any) -> None:
    python = os.environ.get("FT_TINKER_PYTHON", sys.executable)
    said = []
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
        server = killable(tiny, tmp_path / name, "tinker")
        given = {"model": str(tiny), "steps": STEPS, "pause": 0.0 if name == "calm" else 0.3}
        environment = {
            **os.environ, "TINKER_BASE_URL": server.url, "TINKER_API_KEY": "tml-local", "TINKER_TELEMETRY": "0",
        }  # fmt: skip
        script = subprocess.Popen(
            [python, "-c", CLIENT, json.dumps(given)], env=environment, stdout=subprocess.PIPE, text=True
        )
        killer = Killer(server)
        lines = []
        assert script.stdout is not None
        for line in script.stdout:
            if name == "killed" and len(lines) in KILLS:
                killer.soon(0.05 * len(lines))
            lines.append(line)
        script.wait(300)
        killer.wait()
        server.stop()
        assert script.returncode == 0
        said.append(lines)
    assert len(said[0]) == STEPS and said[0] == said[1]
