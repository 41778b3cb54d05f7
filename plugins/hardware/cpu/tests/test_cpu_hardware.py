"""Facts of the host CPU, from given and from real systems."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from finetooth_cpu.hardware import CpuHardware, cpu_flags, total_memory, usable_cores, usable_flags
from finetooth_kit import parametrize_with_checks


def hardware(*flags: str, cores: int = 2, available: int | None = 2**30) -> CpuHardware:
    return CpuHardware(lambda: frozenset(flags), lambda: 8 * 2**30, lambda: cores, lambda: available)


@pytest.mark.parametrize(
    ("flags", "precisions", "slow"),
    [
        (("avx2",), ("fp32",), ("bf16", "fp16")),
        (("avx2", "avx512f", "avx512_bf16"), ("bf16", "fp32"), ("fp16",)),
        (("amx_bf16", "avx512_bf16", "avx512_fp16"), ("bf16", "fp32", "fp16"), ()),
        (("asimd", "bf16"), ("bf16", "fp32"), ("fp16",)),
        ((), ("fp32",), ("bf16", "fp16")),
    ],
)
def test_precisions_follow_the_instruction_sets(flags: Any, precisions: Any, slow: Any) -> None:
    facts = hardware(*flags).facts()
    assert (facts.precisions, facts.slow_precisions) == (precisions, slow)


@pytest.mark.parametrize(
    ("limit", "kept"),
    [
        ("", {"fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        ("all", {"fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16"}),
        ("AVX512_CORE", {"fma", "avx2", "avx512f"}),
        ("avx2", {"fma", "avx2"}),
    ],
)
def test_what_torch_is_told_to_leave_alone_does_not_count(
    limit: str, kept: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every = frozenset({"fma", "avx2", "avx512f", "avx512_bf16", "amx_bf16"})
    monkeypatch.setattr("finetooth_cpu.hardware.cpu_flags", lambda: every)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert usable_flags() == kept
    assert ("bf16" in CpuHardware().facts().precisions) is ("avx512_bf16" in kept)


def test_label_names_cores_and_what_matters() -> None:
    assert hardware("avx512f", "avx512_bf16").facts().label == "2 CPU cores (avx512_bf16)"
    assert hardware("avx2", cores=1).facts().label == "1 CPU core (avx2)"
    assert hardware("avx2", "avx512f").facts().architecture == "avx512"
    assert hardware("asimd", "bf16").facts().architecture == "neon"


def test_what_is_free_is_never_more_than_there_is() -> None:
    for available, expected in ((2**30, 2**30), (2**40, 8 * 2**30), (None, None)):
        facts = hardware(available=available).facts()
        assert facts.devices[0].available == facts.host_available == expected
        assert facts.memory == 8 * 2**30  # what `auto` decides by


def test_facts_of_this_machine() -> None:
    real = CpuHardware()
    facts = real.facts()
    assert real.missing() == ""
    assert facts.host_memory == facts.memory > 0 and len(facts.devices) == 1
    assert facts.device == "cpu"
    assert facts.host_memory == facts.memory > 0 and len(facts.devices) == 1
    assert 0 < facts.memory <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert facts.memory == total_memory()
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert isinstance(cpu_flags(), frozenset)


def test_no_framework_is_imported() -> None:
    code = (
        "import sys; from finetooth_cpu.hardware import CpuHardware; CpuHardware().facts(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@parametrize_with_checks("finetooth_cpu.plugin")
def test_plugin_keeps_the_contract(check: Any) -> None:
    check()
