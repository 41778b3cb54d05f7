"""A run that was trained to its end and found no memory to write what it trained: nothing is trained twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
import torch
from finetooth_hooks import EngineError
from finetooth_lora.adapter import LoraAdapter
from finetooth_torch.engine import TorchEngine


@pytest.mark.slow
def test_resume_only_writes_what_was_trained(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(train={"batch_size": 8, "precision": "bf16", "max_length": 256, "max_steps": 2})
    whole = finetooth.run({**made, "output": str(tmp_path / "whole")})

    def full(*args: Any) -> None:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing is left to train")

    with monkeypatch.context() as patched:
        patched.setattr(LoraAdapter, "export", full)
        with pytest.raises(EngineError, match=r"export ran out of memory after step 2, asking for 2\.15 GB more"):
            finetooth.run(made)
    run = tmp_path / "run"
    assert json.loads((run / "result.json").read_text())["status"] == "failed" and not (run / "artifact").exists()
    monkeypatch.setattr(TorchEngine, "forward_backward", never)
    outcome = finetooth.resume(run)
    assert (outcome.status, outcome.steps) == ("done", 2)
    assert whole.artifact is not None and outcome.artifact is not None
    name = "adapter_model.safetensors"
    assert (outcome.artifact / name).read_bytes() == (whole.artifact / name).read_bytes()
