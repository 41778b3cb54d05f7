"""How products are summed: TF32 only where it is asked for and possible, and no sum in half precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Device, HardwareFacts
from finetooth_torch.device.accelerator import suit_products
from finetooth_torch.planning.products import choose_tf32


def hardware(architecture: str) -> HardwareFacts:
    """A made-up device."""
    return HardwareFacts(
        "made:up", (Device("cuda:0", f"Card ({architecture})", 2**34, architecture),), ("bf16", "fp32")
    )


@pytest.mark.parametrize("architecture", ["sm_80", "sm_89", "sm_90", "sm_120"])
@pytest.mark.parametrize("asked, on, why", [(True, True, "says so"), (False, False, "says so"), ("auto", False, "23")])
def test_tf32_is_had_from_ampere_on(architecture: str, asked: Any, on: bool, why: str) -> None:
    decided = choose_tf32(asked, "fp32", hardware(architecture))
    assert decided is not None and decided.value is on and why in decided.reason
    assert choose_tf32(asked, "bf16", hardware(architecture)) is None


@pytest.mark.parametrize("architecture", ["sm_75", "gfx942", "gfx1100", "avx512", ""])
def test_elsewhere_it_is_refused_in_a_line(architecture: str) -> None:
    for asked in ("auto", False):
        assert choose_tf32(asked, "fp32", hardware(architecture)) is None
    with pytest.raises(PlanError, match=r"^backend.tf32=true: Card \(.*\) has no TF32, .* from compute capability 8.0"):
        choose_tf32(True, "fp32", hardware(architecture))


@pytest.fixture
def as_another_library_set_it() -> Iterator[Any]:
    """torch's settings, set to the fast side."""
    products: Any = torch.backends.cuda.matmul
    halves = ("bf16_reduced_precision_reduction", "fp16_reduced_precision_reduction", "fp16_accumulation")
    switches = [(torch.backends.cudnn, "allow_tf32"), *((products, f"allow_{name}") for name in halves)]
    before, precision = [getattr(of, name) for of, name in switches], torch.get_float32_matmul_precision()
    for of, name in switches:
        setattr(of, name, True)
    torch.set_float32_matmul_precision("high")
    yield lambda: (torch.get_float32_matmul_precision(), *(getattr(of, name) for of, name in switches))
    for (of, name), value in zip(switches, before, strict=True):
        setattr(of, name, value)
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize("tf32", [False, True])
def test_what_another_library_set_does_not_stay(as_another_library_set_it: Any, tf32: bool) -> None:
    suit_products(torch.device("cpu"), tf32=tf32)
    assert as_another_library_set_it() == ("high", True, True, True, True)  # of a CPU they say nothing
    suit_products(torch.device("cuda", 0), tf32=tf32)
    assert as_another_library_set_it() == ("high" if tf32 else "highest", tf32, False, False, False)
    assert torch.backends.cuda.matmul.allow_tf32 is tf32  # what other libraries ask
