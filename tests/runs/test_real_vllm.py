"""Rollouts from vLLM itself, where `FT_VLLM` names its command; elsewhere a stand-in with its wire is tested.

FT_VLLM=/opt/vllm/bin/vllm pytest -n0 -m slow tests/runs/test_real_vllm.py
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import finetooth
import pytest

COMMAND = os.environ.get("FT_VLLM", "")
PACKAGE = Path(__file__).parents[2] / "plugins" / "samplers" / "servers" / "src"
PATIENCE = 420
"""Seconds for a start, and for a batch: vLLM compiles when the first adapter is used."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.each,
    pytest.mark.skipif(not COMMAND, reason="FT_VLLM names no vLLM command; see docs/guides/environments.md"),
]

SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(PACKAGE),
}
"""The worker's class imports nothing else of finetooth."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("vllm") / "model"
    finetooth.engine({"model": "smollm2-135m", "adapter": "full", "train": {"precision": "fp32"}}).export(found)
    return found


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    words = [
        *(COMMAND, "serve", str(folder), "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", "float32", "--max-model-len", "512", "--enforce-eager", "--no-enable-chunked-prefill"),
        *("--enable-lora", "--max-lora-rank", "16", "--logprobs-mode", "processed_logprobs"),
        *("--worker-extension-cls", "finetooth_serversamplers.worker.Weights"),
    ]
    log = folder.parent / "server.log"
    with log.open("wb") as out:
        server = subprocess.Popen(
            words, env={**os.environ, **SETTINGS}, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + PATIENCE
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-2000:]
            time.sleep(0.5)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=2) as found:
            return bool(found.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize(
    ("weights", "adapter", "rate"), [("adapter", {"name": "lora", "rank": 16}, 1e-3), ("full", "full", 1e-4)]
)
def test_trainer_and_vllm_say_the_same(
    folder: Path,
    url: str,
    tmp_path: Path,
    metrics: Callable[[Path], list[dict[str, float]]],
    weights: str,
    adapter: Any,
    rate: float,
) -> None:
    """In every step, also after the weights have moved, of the distribution that tokens were drawn from: temperature,
    top_k and top_p. In fp32 on both sides the two differ by less than 1e-4; a head that went on with its old weights
    made it 3e-3. vLLM's own LoRA and own loader are what reads what is put in.

    The adapter's run comes first: the other one changes the server's base."""
    finetooth.run(
        {
            "model": str(folder),
            "data": {
                "train": {"name": "tasks", "task": "family", "split": "train", "count": 16, "seed": 1},
                "format": "task",
            },
            "method": {
                "name": "grpo",
                "num_generations": 4,
                "max_completion_length": 12,
                **{"temperature": 0.8, "top_k": 20, "top_p": 0.95, "max_logp_difference": 0.1},
                "rewards": [{"name": "answer_length", "most": 4, "unit": "characters", "slack": 12}],
                "sampler": {"name": "vllm", "url": url, "weights": weights, "timeout": PATIENCE},
            },
            "adapter": adapter,
            "optimizer": {"name": "adamw", "learning_rate": rate},
            "schedule": {"name": "constant"},
            "train": {"max_steps": 3, "batch_size": 2, "max_length": 256, "precision": "fp32"},
            "output": str(tmp_path / "run"),
        }
    )
    found = metrics(tmp_path / "run")
    assert len(found) == 3 and any(one["reward_std"] > 0 for one in found[:2])
    assert max(one["sampling/sampling_logp_difference/mean"] for one in found) < 1e-4
    assert max(one["sampling/sampling_logp_difference/max"] for one in found) < 1e-3
