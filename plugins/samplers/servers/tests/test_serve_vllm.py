"""`ft serve vllm` against a made-up `vllm` that knows the documented options, and no others."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_core.cli import main

VLLM = f"""#!{sys.executable}
import argparse, json, os, sys
own = argparse.ArgumentParser(allow_abbrev=False)
own.add_argument("verb", choices=["serve"])
own.add_argument("model")
for name in ("host", "reasoning-parser", "worker-extension-cls"):
    own.add_argument("--" + name)
for name in ("port", "max-lora-rank", "max-model-len", "tensor-parallel-size", "data-parallel-size", "seed"):
    own.add_argument("--" + name, type=int)
own.add_argument("--gpu-memory-utilization", type=float)
own.add_argument("--dtype", choices=["auto", "half", "float16", "bfloat16", "float", "float32"])
own.add_argument("--logprobs-mode", choices=["raw_logits", "raw_logprobs", "processed_logits", "processed_logprobs"])
for name in ("enable-lora", "enable-prefix-caching", "enforce-eager", "enable-sleep-mode"):
    own.add_argument("--" + name, action=argparse.BooleanOptionalAction)
given = vars(own.parse_args()) | {{"pid": os.getpid()}}
given["environment"] = {{name: value for name, value in os.environ.items() if name.startswith("VLLM_")}}
with open(os.environ["SEEN"], "w") as file:
    json.dump(given, file)
"""
"""Options of vLLM's `EngineArgs` and of its server, as its reference names them (0.10.2)."""


@pytest.fixture
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    program = tmp_path / "vllm"
    program.write_text(VLLM)
    program.chmod(0o755)
    monkeypatch.setenv("SEEN", str(tmp_path / "seen.json"))
    return str(program)


def served(program: str, *words: str, model: str = "org/tiny") -> dict[str, Any]:
    """What the made-up server was given, by a process that `ft` became."""
    child = os.fork()
    if not child:
        os._exit(main(["serve", "vllm", model, "--vllm", program, *words]) or 70)  # it never comes to that
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    seen: dict[str, Any] = json.loads(Path(os.environ["SEEN"]).read_text())
    assert seen.pop("pid") == child
    return seen


@pytest.mark.slow
def test_the_process_becomes_a_server_for_adapters(vllm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With each option under vLLM's name, and what is behind `--` as it is; ranks are those that vLLM has."""
    monkeypatch.delenv("VLLM_SERVER_DEV_MODE", raising=False)
    seen = served(
        vllm, "--max-lora-rank", "24", "--port", "8100", "--dtype", "bfloat16", "--max-model-len", "512",
        "--gpu-memory-utilization", "0.4", "--tensor-parallel-size", "2", "--data-parallel-size", "3",
        "--enable-prefix-caching", "--reasoning-parser", "qwen3", "--enforce-eager", "--", "--seed", "7",
    )  # fmt: skip
    assert seen.pop("environment") == {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    assert {name: value for name, value in seen.items() if value is not None} == {
        "verb": "serve", "model": "org/tiny", "host": "127.0.0.1", "port": 8100, "max_lora_rank": 32,
        "enable_lora": True, "logprobs_mode": "processed_logprobs", "dtype": "bfloat16", "max_model_len": 512,
        "gpu_memory_utilization": 0.4, "tensor_parallel_size": 2, "data_parallel_size": 3,
        "enable_prefix_caching": True, "reasoning_parser": "qwen3", "enforce_eager": True, "seed": 7,
    }  # fmt: skip


@pytest.mark.slow
def test_a_server_for_whole_weights_that_sleeps(vllm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers hold the class that reads weights; what the environment says already stays."""
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "yes")
    seen = served(vllm, "--weights", "full", "--sleep", "--no-enable-prefix-caching")
    assert seen["environment"] == {"VLLM_SERVER_DEV_MODE": "yes"}
    assert seen["worker_extension_cls"] == "finetooth_serversamplers.worker.Weights"
    assert seen["enable_sleep_mode"] and seen["enable_lora"] is None and seen["enable_prefix_caching"] is False


@pytest.mark.slow
def test_words_are_shown_and_nothing_starts(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also where vLLM is not installed; a name that a loader knows becomes what vLLM loads, a folder stays."""
    assert main(["serve", "vllm", "smollm2-135m", "--vllm", "/no/vllm", "--print", "--", "--seed", "a b"]) == 0
    shown = capsys.readouterr().out.strip()
    assert shown.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True /no/vllm serve HuggingFaceTB/SmolLM2-135M")
    assert shown.endswith("--enable-lora --max-lora-rank 16 --seed 'a b'")
    assert main(["serve-vllm", str(tmp_path), "--sleep", "--print"]) == 0
    assert f"VLLM_SERVER_DEV_MODE=1 vllm serve {tmp_path} --host 127.0.0.1" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [
    (["org/tiny", "--vllm", "/no/vllm"], "ft serve vllm: no program '/no/vllm' here (install vllm"),
    (["org/tiny", "--weights", "full", "--host", "0.0.0.0"], "--host 0.0.0.0 can be reached by others"),
    (["org/tiny", "--max-lora-rank", "1000"], "--max-lora-rank"),
    ([], "Missing argument 'MODEL' (see ft serve vllm --help)"),
])  # fmt: skip
def test_what_cannot_be_served_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "vllm", *words]) == 2
    told = capsys.readouterr().err.strip()
    assert message in told and "\n" not in told
