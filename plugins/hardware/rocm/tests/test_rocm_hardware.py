"""Facts of AMD GPUs, with a stand-in for torch: the machines that run the tests have none."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_kit import parametrize_with_checks
from finetooth_rocm.cards import in_machine
from finetooth_rocm.hardware import RocmHardware
from finetooth_torchshared.gpus import CONTEXT

GIB = 2**30
MI300X = ("AMD Instinct MI300X", "gfx942:sramecc+:xnack-", 304)
RX7900 = ("AMD Radeon RX 7900 XTX", "gfx1100", 48)


def fake_torch(*gpus: tuple[str, str, int], hip: str | None = "7.0.51831") -> Any:
    """As a ROCm build of torch looks: GPUs are under `torch.cuda`, `version.cuda` is None."""
    properties = [
        SimpleNamespace(name=name, gcnArchName=architecture, multi_processor_count=units, total_memory=192 * GIB)
        for name, architecture, units in gpus
    ]
    return SimpleNamespace(
        version=SimpleNamespace(cuda=None, hip=hip),
        cuda=SimpleNamespace(
            is_available=lambda: bool(gpus),
            device_count=lambda: len(gpus),
            get_device_properties=lambda index: properties[index],
            mem_get_info=lambda index: ((100 + index) * GIB, 192 * GIB),
            memory_reserved=lambda index: GIB,
            get_arch_list=lambda: ["gfx90a", "gfx942", "gfx1100"],
        ),
    )


def test_says_why_it_is_missing() -> None:
    assert RocmHardware(torch=fake_torch(MI300X)).missing() == ""
    assert "build of torch has no ROCm" in RocmHardware(torch=fake_torch(MI300X, hip=None)).missing()
    assert "no AMD driver or GPU" in RocmHardware(torch=fake_torch()).missing()
    assert RocmHardware(3, torch=fake_torch(MI300X)).missing() == "this machine has no GPU 3: torch sees 1"


def test_a_gpu_without_kernels_is_passed_over() -> None:
    assert RocmHardware(torch=fake_torch(RX7900)).missing() == ""
    said = RocmHardware(torch=fake_torch(("AMD Radeon 780M", "gfx1103", 12))).missing()
    assert said.startswith("AMD Radeon 780M is a gfx1103, and this build of torch is for gfx90a, gfx942, gfx1100: ")
    generic = fake_torch(("AMD Radeon 780M", "gfx1103", 12))
    generic.cuda.get_arch_list = lambda: ["gfx11-generic"]
    assert RocmHardware(torch=generic).missing() == ""


@pytest.mark.parametrize(
    ("architecture", "precisions", "slow"),
    [
        ("gfx90a:sramecc+:xnack-", ("bf16", "fp16", "fp32"), ()),
        ("gfx942:sramecc+:xnack-", ("bf16", "fp16", "fp32"), ()),
        ("gfx950:sramecc+:xnack-", ("bf16", "fp16", "fp32", "fp8"), ()),
        ("gfx1100", ("bf16", "fp16", "fp32"), ()),
        ("gfx1201", ("bf16", "fp16", "fp32", "fp8"), ()),
        ("gfx1030", ("fp16", "fp32"), ("bf16",)),
        ("gfx906:sramecc-:xnack-", ("fp16", "fp32"), ("bf16",)),
    ],
)
def test_precisions_follow_the_architecture(architecture: str, precisions: Any, slow: Any) -> None:
    facts = RocmHardware(torch=fake_torch(("AMD GPU", architecture, 60))).facts()
    bare = architecture.partition(":")[0]
    assert (facts.precisions, facts.slow_precisions) == (precisions, slow)
    assert facts.name == "finetooth-rocm:rocm" and facts.device == "cuda:0"
    assert facts.architecture == bare and facts.label == f"AMD GPU ({bare})"
    assert facts.memory == 192 * GIB and facts.host_memory > 0


@pytest.mark.parametrize(
    ("name", "architecture", "units", "bf16", "fp32"),
    [
        # what the data sheets state, in TFLOP/s
        ("AMD Instinct MI210", "gfx90a", 104, 181.0, 45.3),
        ("AMD Instinct MI250X", "gfx90a", 110, 383.0 / 2, 95.7 / 2),
        ("AMD Instinct MI300A", "gfx942", 228, 980.6, 122.6),
        ("AMD Instinct MI300X", "gfx942", 304, 1307.4, 163.4),
        ("AMD Instinct MI300X", "gfx942", 38, 1307.4 / 8, 163.4 / 8),  # an eighth, as a device of its own
        ("AMD Instinct MI325X", "gfx942", 304, 1307.4, 163.4),
        ("AMD Instinct MI350X", "gfx950", 256, 2306.9, 144.2),
        ("AMD Instinct MI355X", "gfx950", 256, 2516.6, 157.3),
        ("AMD Radeon RX 7900 XTX", "gfx1100", 48, 122.8, 61.4),
        ("AMD Radeon PRO W7900", "gfx1100", 48, 122.6, 61.3),
        ("AMD Radeon RX 9070 XT", "gfx1201", 32, 195.0, 48.7),
        ("AMD Radeon RX 9070", "gfx1201", 28, 145.0, 36.1),
        ("AMD Radeon RX 9070 GRE", "gfx1201", 24, None, None),
        ("AMD Instinct MI308X", "gfx942", 80, None, None),
        ("AMD Radeon RX 6800", "gfx1030", 30, None, None),
    ],
)
def test_the_peak_is_what_the_data_sheet_states_for_this_very_gpu(
    name: str, architecture: str, units: int, bf16: float | None, fp32: float | None
) -> None:
    found = RocmHardware(torch=fake_torch((name, architecture, units))).facts().peak_flops
    if bf16 is None or fp32 is None:
        assert found == {}
        return
    assert found["bf16"] == found["fp16"] == pytest.approx(bf16 * 1e12, rel=2e-3)
    assert found["fp32"] == pytest.approx(fp32 * 1e12, rel=2e-3)


def test_gpus_like_the_first_are_offered_and_the_others_named() -> None:
    torch = fake_torch(MI300X, RX7900, MI300X)
    facts = RocmHardware(torch=torch).facts()
    assert [device.name for device in facts.devices] == ["cuda:0", "cuda:2"]
    assert [device.name for device in facts.others] == ["cuda:1"]
    assert facts.devices[0].available == 101 * GIB + CONTEXT and facts.devices[1].available is None
    second = RocmHardware(1, torch=torch).facts()
    assert (second.device, second.architecture) == ("cuda:1", "gfx1100")
    assert [device.name for device in second.others] == ["cuda:0", "cuda:2"]
    assert second.devices[0].available == 102 * GIB + CONTEXT


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ((), ""),
        ((0, 0), ""),
        ((0, 90402), "an AMD GPU (gfx942)"),
        ((0, 90010, 90010), "2 AMD GPUs (gfx90a)"),
        ((110000, 120001), "2 AMD GPUs (gfx1100, gfx1201)"),
    ],
)
def test_cards_are_known_without_torch(tmp_path: Path, versions: tuple[int, ...], said: str) -> None:
    for number, version in enumerate(versions):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "properties").write_text(f"cpu_cores_count 4\nsimd_count 0\ngfx_target_version {version}\n")
    assert in_machine(tmp_path) == said
    assert in_machine(tmp_path / "nowhere") == ""


@parametrize_with_checks("finetooth_rocm.plugin")
def test_plugin_keeps_the_contract(check: Any) -> None:
    check()


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [("gfx1100", "max_split_size_mb:128"), ("gfx1201", "max_split_size_mb:128"), ("gfx942", ""), ("gfx90a", "")],
)
def test_large_blocks_stay_whole_on_graphics_cards(architecture: str, settings: str) -> None:
    assert RocmHardware(torch=fake_torch(("AMD GPU", architecture, 60))).facts().allocator == settings
