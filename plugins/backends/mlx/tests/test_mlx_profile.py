"""Recorded steps: the files are there, and the parts of a step fill no more than its time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx.core as mx
from finetooth_hooks import Datum, EngineError
from finetooth_hooks.engine import OBSERVERS_SPAN, STEP_SPAN
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_mlx.profile import COMPUTE, GRAPH, LAYOUT, OPTIMIZER, Recording, table

DATA = [Datum.from_tokens(list(range(20, 32)), id="first"), Datum.from_tokens(list(range(40, 60)), id="second")]


def test_a_recording_is_a_chrome_trace_with_a_table_and_a_memory_timeline(
    tmp_path: Path, write: Callable[..., Path], engine_of: Any
) -> None:
    engine = engine_of(write(tmp_path))
    with engine.profile(tmp_path / "profile") as spans:
        for _ in range(2):
            with spans.span(STEP_SPAN):
                engine.forward_backward(DATA, WEIGHTED_NLL)
                engine.step()
            with spans.span(OBSERVERS_SPAN):
                pass
    engine.forward_backward(DATA, WEIGHTED_NLL)  # recorded by nobody
    events = json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]
    steps = [event for event in events if event["name"] == STEP_SPAN]
    parts = [event for event in events if event["name"] in (LAYOUT, GRAPH, COMPUTE, OPTIMIZER)]
    # two micro-batches a step: 12 and 20 tokens do not fit into 24
    assert len(steps) == 2 and [event["name"] for event in parts] == 2 * [LAYOUT, *2 * [GRAPH, COMPUTE], OPTIMIZER]
    for step in steps:
        inside = [of for of in parts if step["ts"] <= of["ts"] and of["ts"] + of["dur"] <= step["ts"] + step["dur"]]
        assert len(inside) == 6 and 0 < sum(of["dur"] for of in inside) <= step["dur"]
    memory = json.loads((tmp_path / "profile" / "memory.json").read_text())
    assert memory["columns"] == ["microseconds", "allocated", "reserved"]
    assert max(allocated for _, allocated, _ in memory["points"]) == memory["peak"] > 0
    assert all(allocated <= reserved for _, allocated, reserved in memory["points"])
    assert memory["peak"] <= mx.get_peak_memory()


def test_the_table_says_the_shares_of_a_step() -> None:
    recording = Recording(spans=[(LAYOUT, 0, 10), (GRAPH, 10, 20), (COMPUTE, 30, 50), (OPTIMIZER, 80, 10)])
    recording.spans += [(STEP_SPAN, 0, 100), (OBSERVERS_SPAN, 100, 25)]
    lines = [line.split(" | ")[:3] for line in table(recording).splitlines() if line.startswith("| ")]
    assert lines[1:] == [
        ["| data layout", "10.0 %", "0.01"], ["| graph", "20.0 %", "0.02"], ["| computing", "50.0 %", "0.05"],
        ["| optimizer", "10.0 %", "0.01"], ["| trackers and hooks", "25.0 %", "0.03"], ["| the rest", "10.0 %", "0.01"],
    ]  # fmt: skip
    assert "No whole step" in table(Recording())


def test_the_model_is_not_given_away(tmp_path: Path, write: Callable[..., Path], engine_of: Any) -> None:
    engine = engine_of(write(tmp_path))
    assert "module" not in engine.capabilities
    with pytest.raises(EngineError, match=r"MLX keeps no gradients on modules.*set backend: torch"):
        engine.module()
