"""Recorded steps: the files are there and say what happened; the breakdown of a trace made by hand adds up."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from finetooth_hooks import UserError
from finetooth_hooks.engine import OBSERVERS_SPAN, STEP_SPAN
from finetooth_torch.profile import recording
from finetooth_torch.profile.command import command
from finetooth_torch.profile.table import table
from finetooth_torch.profile.trace import (
    ATTENTION,
    COPIES,
    DEVICE_IDLE,
    ELEMENTWISE,
    IDLE,
    LAYOUT,
    LAYOUT_SPAN,
    OBSERVERS,
    OPTIMIZER,
    PRODUCTS,
    break_down,
    memory_timeline,
)


@pytest.fixture
def recorded(kit: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder with the recording of two steps of a tiny model."""
    engine, data = kit.engine(), kit.data()
    assert {"profile", "usage"} <= engine.capabilities
    with engine.profile(tmp_path / "profile") as spans:
        for _ in range(2):
            with spans.span(STEP_SPAN):
                engine.forward_backward(data, kit.nll)
                engine.step()
            with spans.span(OBSERVERS_SPAN):
                pass
    return tmp_path


def test_a_recording_is_a_chrome_trace_with_a_table_and_a_memory_timeline(recorded: Path) -> None:
    folder = recorded / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["memory.json", "table.md", "trace.json"]
    trace = json.loads((folder / "trace.json").read_text())
    complete = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert all({"name", "ts", "dur", "pid", "tid"} <= e.keys() for e in complete)
    assert [e["name"] for e in complete].count(STEP_SPAN) == 2
    assert any(e["name"] == "aten::mm" for e in complete)
    memory = json.loads((folder / "memory.json").read_text())
    assert memory["columns"] == ["microseconds", "allocated", "reserved"]
    assert max(allocated for _, allocated, _ in memory["points"]) == memory["peak"] > 0
    assert [at for at, _, _ in memory["points"]] == sorted(at for at, _, _ in memory["points"])


@pytest.mark.slow
def test_a_host_has_no_memory_snapshot_and_the_table_says_so(recorded: Path) -> None:
    text = (recorded / "profile/table.md").read_text(encoding="utf-8")
    assert "A snapshot of what allocated each block exists on accelerators alone." in text


def test_an_accelerator_writes_a_memory_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Around the recorded steps, and off again behind them; torch's own calls are stood in for, as there is no GPU."""
    calls: list[tuple[str, Any]] = []
    memory = torch.cuda.memory
    monkeypatch.setattr(memory, "_record_memory_history", lambda **given: calls.append(("record", given)))
    monkeypatch.setattr(memory, "_dump_snapshot", lambda path: calls.append(("dump", path)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(("wait", device)))
    device = torch.device("cuda")
    with pytest.raises(ZeroDivisionError), recording.record(tmp_path / "profile", device):
        calls.append(("step", 0))
        _ = 1 / 0
    stacks = {"max_entries": 1 << 20, "stacks": "python", "device": device}
    assert calls == [
        ("record", stacks), ("step", 0), ("wait", device), ("dump", str(tmp_path / "profile/snapshot.pickle")),
        ("record", {"enabled": None, "device": device}),
    ]  # fmt: skip


def test_the_parts_of_a_recording_add_up_to_its_steps(recorded: Path) -> None:
    found = break_down(json.loads((recorded / "profile" / "trace.json").read_text()))
    assert found.steps == 2 and not found.on_device
    assert sum(found.parts.values()) == pytest.approx(found.wall, rel=1e-6)
    assert {PRODUCTS, ELEMENTWISE, OPTIMIZER, IDLE} <= found.parts.keys()
    assert all(time >= 0 for time in found.parts.values())
    assert found.products and all(one.flops > 0 for one in found.products)
    text = (recorded / "profile" / "table.md").read_text()
    assert "Recorded: 2 steps" in text and "| matrix products" in text and "## By operator" in text


@pytest.mark.slow
def test_the_command_shows_the_table_again(recorded: Path) -> None:
    runs = SimpleNamespace(run_folder=lambda name: Path(name) if Path(name).is_dir() else None)
    shown = CliRunner().invoke(command, [str(recorded)], obj=runs)
    assert shown.output == (recorded / "profile" / "table.md").read_text()
    (recorded / "profile" / "table.md").unlink()
    refused = CliRunner().invoke(command, [str(recorded)], obj=runs)
    assert isinstance(refused.exception, UserError) and "no step of this run was recorded" in str(refused.exception)
    unknown = CliRunner().invoke(command, [str(recorded / "nothing")], obj=runs)
    assert isinstance(unknown.exception, UserError) and "no run has this name" in str(unknown.exception)


def test_a_step_that_fails_is_recorded_up_to_there(kit: SimpleNamespace, tmp_path: Path) -> None:
    engine = kit.engine()
    with pytest.raises(ZeroDivisionError), engine.profile(tmp_path) as spans, spans.span(STEP_SPAN):
        torch.mm(torch.ones(4, 4), torch.ones(4, 4))
        raise ZeroDivisionError
    assert "aten::mm" in (tmp_path / "trace.json").read_text()
    assert "No whole step was recorded" in (tmp_path / "table.md").read_text()


def event(name: str, start: float, duration: float, cat: str = "cpu_op", tid: int = 1, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": duration, "pid": 1, "tid": tid, "args": args}


def span(name: str, start: float, duration: float) -> dict[str, Any]:
    return event(name, start, duration, "user_annotation")


def test_time_goes_to_the_innermost_operator_and_to_the_span_it_is_in() -> None:
    trace = {
        "traceEvents": [
            event("aten::mm", 0, 50),  # before the first step: does not count
            span(STEP_SPAN, 100, 1000),
            span(LAYOUT_SPAN, 100, 30),
            event("aten::copy_", 110, 10),
            event("aten::linear", 200, 100),
            event("aten::addmm", 210, 80, **{"Input Dims": [[7], [5, 3], [3, 7]]}),
            event("aten::scaled_dot_product_attention", 400, 100),
            event("aten::bmm", 410, 50),
            event("MulBackward0", 500, 40),
            event("aten::mul", 510, 20),
            span("Optimizer.step#AdamW.step", 700, 100),
            event("aten::mul_", 710, 60),
            span(OBSERVERS_SPAN, 1100, 20),
        ]
    }
    found = break_down(trace)
    assert (found.steps, found.wall) == (1, 1020)
    assert found.parts == {
        PRODUCTS: 100, ATTENTION: 100, OPTIMIZER: 100, LAYOUT: 30, ELEMENTWISE: 20, OBSERVERS: 20, IDLE: 650,
    }  # fmt: skip
    (product,) = found.products
    assert (product.name, product.time, product.flops) == ("5 x 3 x 7", 80, 2 * 5 * 3 * 7)


def test_compiled_kernels_are_operators_by_name_and_products_by_shape() -> None:
    kernels = [("mm 5 x 3 x 7", 200), ("few_rows", 300), ("attention", 400), ("rms_norm", 500)]
    events = [event(f"finetooth::{name}", at, 50, "user_annotation") for name, at in kernels]
    around = event("_LowRankLinear", 190, 70)
    found = break_down({"traceEvents": [span(STEP_SPAN, 100, 900), around, *events, span(OBSERVERS_SPAN, 1000, 0)]})
    assert found.parts == {PRODUCTS: 100, ATTENTION: 50, ELEMENTWISE: 50, OBSERVERS: 0, IDLE: 700}
    names = {f"finetooth::{name.split()[0]}" for name, _ in kernels}
    assert {one.name for one in found.operators} == {"_LowRankLinear", *names}
    (product,) = found.products
    assert (product.name, product.time, product.flops) == ("5 x 3 x 7", 50, 2 * 5 * 3 * 7)


def device_trace() -> dict[str, Any]:
    """One step on an accelerator: a product, a fused kernel whose launcher is unknown, a copy, 30 small kernels."""
    launch = [event("cudaLaunchKernel", 12, 3, "cuda_runtime", correlation=1)]
    small = [event("tiny", 500 + 10 * i, 4, "kernel", tid=7, correlation=100 + i) for i in range(30)]
    return {
        "traceEvents": [
            span(STEP_SPAN, 0, 1000),
            event("aten::mm", 10, 10),
            *launch,
            event("ampere_kernel_whose_name_says_nothing", 20, 200, "kernel", tid=7, correlation=1),
            event("flash_fwd_kernel", 220, 100, "kernel", tid=7, correlation=2),
            event("Memcpy HtoD (Pageable -> Device)", 420, 50, "gpu_memcpy", tid=7, bytes=4_000_000),
            *small,
            span(OBSERVERS_SPAN, 1000, 0),
        ]
    }


def test_an_accelerators_time_is_that_of_its_kernels() -> None:
    found = break_down(device_trace())
    assert found.on_device
    assert found.parts == {PRODUCTS: 200, ATTENTION: 100, COPIES: 50, ELEMENTWISE: 120, DEVICE_IDLE: 530}
    assert [one.name for one in found.small] == ["tiny"]
    assert found.gaps == (100, 30)
    text = table(found, memory_timeline(device_trace(), on_device=True))
    assert "Memcpy HtoD (Pageable -> Device): 1 a step, 4.00 MB, 0.05 ms a step" in text
    assert "30 kernels a step are shorter than 10 us" in text and "12.0 % of the time; most of it in tiny" in text
    assert "2 gaps a step of more than 10 us, 13.0 % of the time; the longest 0.10 ms" in text


def test_a_trace_without_steps_says_so() -> None:
    found = break_down({"traceEvents": [event("aten::mm", 0, 50)]})
    assert "No whole step was recorded" in table(found, memory_timeline({}, on_device=False))


def test_the_memory_timeline_leaves_out_what_hardly_differs_but_never_the_peak() -> None:
    def allocated(at: float, total: int, device: int = 0) -> dict[str, Any]:
        return {"ph": "i", "name": "[memory]", "ts": at, "args": {"Total Allocated": total, "Device Type": device}}

    totals = [(5, 1_000_000), (6, 1_000_500), (7, 1_001_000), (9, 20)]
    timeline = memory_timeline(
        {"traceEvents": [*(allocated(at, total) for at, total in totals), allocated(8, 9**9, device=1)]},
        on_device=False,
    )
    assert timeline["points"] == [[0, 1_000_000, 0], [2, 1_001_000, 0], [4, 20, 0]]
    assert timeline["peak"] == 1_001_000
