"""Facts of an Apple chip, told by a stand-in for MLX, and why there is none elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import install_command
from finetooth_kit import parametrize_with_checks
from finetooth_metal.hardware import MetalHardware

GIB = 2**30


@parametrize_with_checks("finetooth_metal.plugin")
def test_the_plugin_conforms(check: Any) -> None:
    check()


def core(there: bool = True) -> Any:
    told = {
        "device_name": "Apple M4 Pro", "architecture": "applegpu_g16s", "memory_size": 48 * GIB,
        "max_recommended_working_set_size": 36 * GIB,
    }  # fmt: skip
    return SimpleNamespace(metal=SimpleNamespace(is_available=lambda: there), device_info=lambda: told)


def test_the_memory_is_what_metal_recommends() -> None:
    hardware = MetalHardware(lambda: ("Darwin", "arm64"), core)
    assert hardware.missing() == ""
    facts = hardware.facts()
    assert (facts.memory, facts.host_memory, facts.device) == (36 * GIB, 48 * GIB, "gpu")
    assert facts.label == "Apple M4 Pro (48 GiB, 36 GiB of them for it)"
    assert facts.architecture == "applegpu_g16s" and facts.precisions[0] == "bf16"


def absent() -> Any:
    raise ImportError("No module named 'mlx'")


@pytest.mark.parametrize(
    ("machine", "given", "said"),
    [
        (("Linux", "x86_64"), core, "no Apple silicon (this is Linux x86_64)"),
        (("Darwin", "x86_64"), core, "no Apple silicon (this is Darwin x86_64)"),
        (
            ("Darwin", "arm64"),
            absent,
            f"MLX is not installed (No module named 'mlx'): {install_command('finetooth[mlx]')}",
        ),
        (("Darwin", "arm64"), lambda: core(there=False), "MLX finds no Metal device"),
    ],
)
def test_why_there_is_none(machine: tuple[str, str], given: Any, said: str) -> None:
    assert MetalHardware(lambda: machine, given).missing() == said
