"""What is done to torch for an accelerator, with stand-ins for what only a GPU has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from finetooth_hooks import Attention, EngineError
from finetooth_hooks.protocols import Device
from finetooth_kit.fake_context import FakeContext
from finetooth_torch.device.accelerator import current, suit_allocator
from finetooth_torch.device.exhaustion import _attempt
from finetooth_torch.planning.attention import choose_attention

GPU = torch.device("cuda:1")
GROW = "expandable_segments:True"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the allocator was told."""
    found: list[str] = []
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", found.append, raising=False)
    return found


def test_the_allocator_is_told_once_before_it_holds_anything(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert suit_allocator(GPU, GROW, {}) and told == [GROW]
    assert not suit_allocator(GPU, "", {}) and not suit_allocator(torch.device("cpu"), GROW, {})
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        assert not suit_allocator(GPU, GROW, {name: "backend:native"})  # the user has told it something
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 1)
    assert not suit_allocator(GPU, GROW, {})
    assert told == [GROW]


def test_a_torch_that_cannot_be_told_is_left_alone(told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(settings: str) -> None:
        raise RuntimeError("unrecognized setting")

    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", refuses)
    assert not suit_allocator(GPU, GROW, {})
    monkeypatch.delattr(torch._C, "_accelerator_setAllocatorSettings")
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", told.append, raising=False)
    assert suit_allocator(GPU, GROW, {}) and told == [GROW]  # where an earlier torch has it
    monkeypatch.delattr(torch.cuda.memory, "_set_allocator_settings")
    assert not suit_allocator(GPU, GROW, {})


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Devices that were made torch's current one."""
    found: list[torch.device] = []

    @contextmanager
    def device(of: torch.device) -> Iterator[None]:
        found.append(of)
        yield

    monkeypatch.setattr(torch.cuda, "device", device)
    return found


def test_the_engines_device_is_the_current_one_while_it_works(
    kit: SimpleNamespace, entered: list[torch.device], tmp_path: Path
) -> None:
    engine = kit.engine()
    assert entered == []  # a CPU is none
    with current(GPU):
        pass
    engine._parts = replace(engine._parts, device=GPU)
    engine.export(tmp_path / "artifact")
    assert entered == [GPU, GPU]


@pytest.mark.parametrize(
    ("asked", "packages", "architecture", "expected"),
    [
        ("flash_attention_3", {"flash-attn-3"}, "sm_90", "flash_attention_3"),
        ("flash_attention_4", {"flash-attn-4"}, "sm_100", "flash_attention_4"),
        ("flash", {"flash-attn"}, "sm_80", "flash_attention_2"),
        ("flash", {"flash-attn"}, "gfx942", "flash_attention_2"),
        ("flex_attention", set(), "sm_90", "flex"),
        ("flex_attention", set(), "gfx950", "flex"),
        ("flex", set(), "gfx1100", "flex"),
    ],
)
def test_attention_that_is_installed_may_be_picked_on_a_gpu(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, asked: str, packages: set[str], architecture: str,
    expected: str,
) -> None:  # fmt: skip
    import finetooth_toolbox.attention_choice as module

    def missing(needed: tuple[str, ...]) -> str:
        return "; ".join(f"package {name} is not installed" for name in needed if name not in packages)

    monkeypatch.setattr(module, "missing_packages", missing)
    imported = SimpleNamespace(import_module=lambda name: SimpleNamespace(flash_attn_varlen_func=None))
    monkeypatch.setattr("finetooth_flash.attention.importlib", imported)
    facts = replace(kit.facts(kit.config()), head_dim=128)
    hardware = replace(kit.hardware, devices=(Device("cuda:0", "a GPU", 2**35, architecture),))
    found = choose_attention(FakeContext(Path(), installed=True), asked, facts, {}, hardware, "bf16")
    assert [entry.name for entry in found.entries.values()] == [expected]
    assert all(isinstance(entry, Attention) for entry in found.entries.values())


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (
            "CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCompile with TORCH_USE_CUDA_DSA",
            "GPU for itself",
        ),
        ("CUDA error: all CUDA-capable devices are busy or unavailable", "GPU for itself"),
        (
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors",
            "this build of torch",
        ),
        ("HIP error: invalid device function\nHIP kernel errors might be reported later", "this build of torch"),
        (
            "CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might",
            "uncorrectable ECC error encountered)",
        ),
        (
            "HIP error: unspecified launch failure\nHIP kernel errors",
            "failed (torch: HIP error: unspecified launch failure)",
        ),
    ],
)
def test_a_gpu_that_is_busy_or_too_old_is_a_line_with_the_way_out(said: str, problem: str) -> None:
    def loads() -> None:
        raise torch.AcceleratorError(said)

    with pytest.raises(EngineError) as refused:
        _attempt(loads, lambda: pytest.fail("memory did not run out"))
    line = str(refused.value)
    assert line.startswith("hardware: ") and problem in line and "\n" not in line and "hardware: cpu" in line
