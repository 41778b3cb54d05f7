"""Facts of NVIDIA GPUs, with a stand-in for torch: the machines that run the tests have none."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_cuda.cards import in_machine
from finetooth_cuda.hardware import CudaHardware, allocator
from finetooth_kit import parametrize_with_checks
from finetooth_torchshared.gpus import CONTEXT


def fake_torch(
    name: str = "NVIDIA H200", capability: tuple[int, int] = (9, 0), count: int = 1, cuda: str | None = "13.0",
    hip: str | None = None, architectures: tuple[str, ...] = (),
) -> Any:  # fmt: skip
    properties = SimpleNamespace(name=name, major=capability[0], minor=capability[1], total_memory=139 * 2**30)
    asked: list[int] = []

    def free(index: int) -> tuple[int, int]:
        asked.append(index)
        return 100 * 2**30, 139 * 2**30

    return SimpleNamespace(
        version=SimpleNamespace(cuda=cuda, hip=hip),
        cuda=SimpleNamespace(
            is_available=lambda: count > 0,
            device_count=lambda: count,
            get_device_properties=lambda index: properties,
            mem_get_info=free,
            memory_reserved=lambda index: 7 * 2**30,
            get_arch_list=lambda: list(architectures),
            asked=asked,
        ),
    )


def test_says_why_it_is_missing() -> None:
    assert CudaHardware(torch=fake_torch()).missing() == ""
    assert "build of torch has no CUDA" in CudaHardware(torch=fake_torch(cuda=None)).missing()
    assert "no NVIDIA driver or GPU" in CudaHardware(torch=fake_torch(count=0)).missing()
    assert CudaHardware(3, torch=fake_torch(count=2)).missing() == "this machine has no GPU 3: torch sees 2"
    assert "hardware: rocm" in CudaHardware(torch=fake_torch(cuda=None, hip="7.0.51831")).missing()


def test_a_driver_that_is_too_old_or_broken_is_told_in_a_line() -> None:
    torch = fake_torch()

    def old() -> bool:
        warnings.warn(
            "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update "
            "your GPU driver (Triggered internally at ../c10/cuda/CUDAFunctions.cpp:108.)",
            stacklevel=1,
        )
        return False

    torch.cuda.is_available = old
    assert CudaHardware(torch=torch).missing() == (
        "torch finds no NVIDIA driver or GPU (CUDA initialization: The NVIDIA driver on your system is too old (found "
        "version 11040))"
    )
    torch = fake_torch()

    def broken(index: int) -> Any:
        raise RuntimeError("CUDA unknown error - this may be due to incorrectly set up environment. Setting ...\nMore")

    torch.cuda.get_device_properties = broken
    assert CudaHardware(torch=torch).missing() == (
        "the NVIDIA driver does not give torch its GPU (CUDA unknown error - this may be due to incorrectly set up "
        "environment)"
    )


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((6, 1), ("sm_75", "sm_80", "sm_90", "sm_120"), False),
        ((7, 0), ("sm_75", "sm_80", "compute_120"), False),
        ((8, 9), ("sm_75", "sm_80", "sm_86"), True),
        ((8, 0), ("sm_75", "sm_86"), False),
        ((9, 0), ("sm_80", "sm_86"), False),
        ((9, 0), ("sm_80", "compute_86"), True),
        ((12, 0), ("sm_90", "sm_100", "sm_120"), True),
        ((6, 1), (), True),
    ],
)
def test_a_gpu_without_kernels_is_passed_over(capability: Any, architectures: Any, runs: bool) -> None:
    said = CudaHardware(torch=fake_torch("GPU", capability, architectures=architectures)).missing()
    assert (said == "") is runs
    if not runs:
        assert said.startswith(
            f"GPU has compute capability {capability[0]}.{capability[1]}, and this build of torch is"
        )


def test_segments_grow_where_the_system_lets_them() -> None:
    assert CudaHardware(torch=fake_torch()).facts().allocator == allocator()
    assert allocator("6.8.0-38-generic") == ("expandable_segments:True" if sys.platform == "linux" else "")
    assert allocator("5.15.90.1-microsoft-standard-WSL2") == ""


@pytest.mark.parametrize(
    ("capability", "precisions", "slow"),
    [
        ((9, 0), ("bf16", "fp16", "fp32", "fp8"), ()),
        ((8, 9), ("bf16", "fp16", "fp32", "fp8"), ()),
        ((8, 0), ("bf16", "fp16", "fp32"), ()),
        ((7, 5), ("fp16", "fp32"), ("bf16",)),
        ((6, 1), ("fp32",), ("bf16", "fp16")),
    ],
)
def test_precisions_follow_the_compute_capability(capability: Any, precisions: Any, slow: Any) -> None:
    facts = CudaHardware(1, torch=fake_torch(capability=capability, count=2)).facts()
    assert (facts.precisions, facts.slow_precisions) == (precisions, slow)
    assert facts.device == "cuda:1" and facts.memory == 139 * 2**30
    assert f"{capability[0]}.{capability[1]}" in facts.label
    assert facts.architecture == f"sm_{capability[0]}{capability[1]}" and facts.host_memory > 0


def test_cards_are_known_without_torch(tmp_path: Path) -> None:
    assert in_machine(tmp_path) == in_machine(tmp_path / "nowhere") == ""
    for number in range(2):
        (tmp_path / f"0000:0{number}:00.0").mkdir()
        (tmp_path / f"0000:0{number}:00.0" / "information").write_text("Model: \t\t NVIDIA L4\nIRQ:   \t\t 5\n")
        assert in_machine(tmp_path) == ("2 NVIDIA GPUs (NVIDIA L4)" if number else "an NVIDIA GPU (NVIDIA L4)")


def test_all_gpus_like_the_first_are_offered() -> None:
    facts = CudaHardware(torch=fake_torch(count=3)).facts()
    assert [(device.name, device.index) for device in facts.devices] == [("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 2)]
    assert facts.device == "cuda:0" and facts.only(2).device == "cuda:2"
    mixed = fake_torch(count=2)
    first = mixed.cuda.get_device_properties(0)
    other = SimpleNamespace(**{**vars(first), "name": "NVIDIA L4"})
    mixed.cuda.get_device_properties = lambda index: other if index else first
    assert [device.name for device in CudaHardware(torch=mixed).facts().devices] == ["cuda:0"]
    assert [device.label.partition(" (")[0] for device in CudaHardware(torch=mixed).facts().others] == ["NVIDIA L4"]
    assert [device.name for device in CudaHardware(1, torch=mixed).facts().others] == ["cuda:0"]
    assert facts.others == ()


def test_only_the_gpu_that_computes_is_asked_what_is_free() -> None:
    torch = fake_torch(count=3)
    facts = CudaHardware(torch=torch).facts()
    assert facts.devices[0].available == 107 * 2**30 + CONTEXT  # what torch holds already is its own
    assert facts.devices[1].available is None and torch.cuda.asked == [0]
    second = fake_torch(count=3)
    assert CudaHardware(1, torch=second).facts().devices[0].available == 107 * 2**30 + CONTEXT
    assert second.cuda.asked == [1]

    def unknown(index: int) -> tuple[int, int]:
        raise RuntimeError("CUDA error: initialization error")

    torch.cuda.mem_get_info = unknown
    assert CudaHardware(torch=torch).facts().devices[0].available is None


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10G", None),
        ("NVIDIA H800", 989.4e12),
        ("NVIDIA H800 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA GH200 480GB", 989.4e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A800 80GB PCIe", 312e12),
        ("NVIDIA GB200", None),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 5090 D v2", None),
        ("GRID A100-40C", None),
        ("NVIDIA A40-48Q", None),
        ("NVIDIA Next", None),
    ],
)
def test_the_peak_is_what_the_data_sheet_states_for_this_very_gpu(name: str, bf16: float | None) -> None:
    assert CudaHardware(torch=fake_torch(name)).facts().peak_flops.get("bf16") == bf16


@pytest.mark.parametrize(
    ("name", "fp16", "fp32"),
    [
        ("Tesla V100-SXM2-16GB", 125.0, 15.7),
        ("Tesla V100-PCIE-32GB", 112.0, 14.0),
        ("Tesla V100S-PCIE-32GB", 130.0, 16.4),
        ("Tesla T4", 65.0, 8.1),
    ],
)
def test_boards_of_one_chip_have_peaks_of_their_own(name: str, fp16: float, fp32: float) -> None:
    assert CudaHardware(torch=fake_torch(name, capability=(7, 0))).facts().peak_flops == {
        "fp16": fp16 * 1e12,
        "fp32": fp32 * 1e12,
    }


def test_a_precision_that_tensor_cores_lack_has_no_peak() -> None:
    facts = CudaHardware(torch=fake_torch("Tesla V100-SXM2-32GB", capability=(7, 0))).facts()
    assert facts.peak_flops == {"fp16": 125e12, "fp32": 15.7e12}


@parametrize_with_checks("finetooth_cuda.plugin")
def test_plugin_keeps_the_contract(check: Any) -> None:
    check()
