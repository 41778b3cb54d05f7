"""The same bits each time on a GPU: what is decided, torch's switches, and the error of what cannot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from finetooth_hooks import Decision, EngineError
from finetooth_hooks.compute.layers import LayerFacts
from finetooth_hooks.protocols import Device, HardwareFacts, Head, ModelFacts
from finetooth_torch.device.accelerator import lenient, suit_attention, suit_repeats
from finetooth_torch.device.exhaustion import _attempt
from finetooth_torch.planning.repeatable import SWITCH, choose_deterministic, with_amd_kernels

FACTS = ModelFacts(64, 2, 4, 2, 16, 128, 500, 512, "model.layers", "model", Head(), (), (), "plain")


def hardware(architecture: str, name: str = "cuda:0") -> HardwareFacts:
    """A made-up device."""
    return HardwareFacts("made:up", (Device(name, f"Card ({architecture})", 2**34, architecture),), ("bf16", "fp32"))


@pytest.fixture
def switches() -> Iterator[None]:
    """torch's switches, put back afterwards."""
    before, fills = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_deterministic_debug_mode(before)
    torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.mark.parametrize("mixer", ["attention", "window", "convolution", "linear", "state_space"])
def test_auto_repeats_where_torch_can(mixer: Any) -> None:
    layer = LayerFacts(mixer, {}, {})
    decided = choose_deterministic("auto", replace(FACTS, per_layer=(layer, layer)), hardware("sm_90"))
    assert decided is not None
    assert decided.value is (mixer not in ("linear", "state_space"))
    assert ("bit for bit" in decided.reason) is not decided.value


@pytest.mark.parametrize("asked", [True, False])
def test_the_recipe_decides_on_a_gpu_and_a_cpu_needs_nothing(asked: bool) -> None:
    decided = choose_deterministic(asked, FACTS, hardware("gfx942"))
    assert decided is not None
    assert decided.value is asked
    assert choose_deterministic(asked, FACTS, hardware("avx512", "cpu")) is None


@pytest.mark.usefixtures("switches")
def test_what_has_no_deterministic_way_is_named() -> None:
    def puts() -> None:
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))  # which of the two stays is open

    def never(*_: Any) -> Any:
        raise AssertionError("memory did not run out")

    environment: dict[str, str] = {}
    suit_repeats(deterministic=True, environment=environment)
    assert environment == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with pytest.raises(
        EngineError, match=r"^backend\.deterministic: torch's put_ cannot compute the same bits"
    ) as said:
        _attempt(puts, never)
    assert said.value.action.startswith("set backend.deterministic: false")
    with lenient():
        puts()
    with pytest.raises(EngineError):
        _attempt(puts, never)
    suit_repeats(deterministic=False, environment=environment)
    _attempt(puts, never)
    with lenient():
        assert torch.get_deterministic_debug_mode() == 0


def test_a_users_own_switches_stay() -> None:
    own = {SWITCH: "0"}
    suit_attention("gfx1200", own)
    assert own == {SWITCH: "0"}
    for architecture, settings in (("gfx1201", {}), ("sm_90", {}), ("gfx1103", {SWITCH: "1"})):
        environment: dict[str, str] = {}
        suit_attention(architecture, environment)
        assert environment == settings


def test_the_plan_says_which_kernel_computes_attention() -> None:
    sdpa = Decision("backend.attention", "finetooth-sdpa:sdpa", "the first choice")
    flash = replace(sdpa, value="finetooth-flash:flash_attention_2")
    for environment, kernel in (({}, "AOTriton's kernels, experimental on gfx1200"), ({SWITCH: "0"}, "is not 1; they")):
        first, second = with_amd_kernels([sdpa, flash], hardware("gfx1200"), environment)
        assert kernel in first.reason
        assert "11.8 times as long" in first.reason
        assert second == flash
    assert with_amd_kernels([sdpa], hardware("gfx942")) == (sdpa,)
