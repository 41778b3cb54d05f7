"""Facts of an Apple chip, told by a stand-in for torch, and why there is none elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_kit import parametrize_with_checks
from finetooth_mps.hardware import MpsHardware

GIB = 2**30


@parametrize_with_checks("finetooth_mps.plugin")
def test_the_plugin_conforms(check: Any) -> None:
    check()


def torch(*, available: bool = True, built: bool = True) -> Any:
    backend = SimpleNamespace(is_available=lambda: available, is_built=lambda: built, get_name=lambda: "Apple M4 Pro")
    return SimpleNamespace(
        backends=SimpleNamespace(mps=backend), mps=SimpleNamespace(recommended_max_memory=lambda: 36 * GIB)
    )


def test_the_memory_is_what_metal_recommends() -> None:
    hardware = MpsHardware(torch, lambda: "Darwin")
    assert hardware.missing() == ""
    facts = hardware.facts()
    assert (facts.memory, facts.device) == (36 * GIB, "mps:0")
    assert facts.label.startswith("Apple M4 Pro (") and facts.label.endswith("36 GiB of them for it)")
    assert "fp64" not in facts.precisions and "fp8" not in facts.precisions


@pytest.mark.parametrize(
    ("framework", "system", "said"),
    [
        (torch(available=False), "Linux", "no Mac (this is Linux)"),
        (torch(available=False), "Darwin", "torch finds no Metal device"),
        (torch(available=False, built=False), "Darwin", "this build of torch has no Metal"),
    ],
)
def test_why_there_is_none(framework: Any, system: str, said: str) -> None:
    assert MpsHardware(lambda: framework, lambda: system).missing() == said
