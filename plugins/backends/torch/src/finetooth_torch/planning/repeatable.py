"""Whether a GPU computes the same bits each time, and which attention kernels it has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from finetooth_hooks import Decision, PlanError
from finetooth_hooks.protocols import HardwareFacts, ModelFacts

SETTING = "backend.deterministic"
SUMS = ("linear", "state_space")
"""Kinds of layers whose sums along a row have no deterministic version on a GPU."""

SWITCH = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
"""Variable that allows AOTriton's kernels, torch's fused attention on AMD GPUs, where torch calls them experimental."""
EXPERIMENTAL = ("gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1152", "gfx1153", "gfx1200")
"""Architectures for which torch does."""
STABLE = ("gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1151", "gfx1201")
"""Architectures on which torch uses them without the switch."""
SLOW = "11.8 times as long and 16.3 times the memory at 4,096 tokens, measured on gfx1200"


def choose_deterministic(
    wanted: Literal["auto"] | bool, facts: ModelFacts, hardware: HardwareFacts
) -> Decision | None:  # fmt: skip
    """The value of `TorchOptions.deterministic`; None on a CPU, which always computes the same bits.

    Raises:
        PlanError: the recipe asks for the same bits, and torch cannot compute the model's layers so.
    """
    if hardware.device == "cpu":
        return None
    mixers = sorted({layer.mixer for layer in facts.per_layer if layer.mixer in SUMS})
    without = f"torch has no deterministic sum for {' and '.join(mixers).replace('_', '-')} layers"
    if wanted is True and mixers and hardware.device.startswith("cuda"):
        raise PlanError(f"{SETTING}=true: {without} on a GPU", action=f"set {SETTING} to auto or false")
    if wanted != "auto":
        return Decision(SETTING, wanted, "the recipe says so")
    if mixers:
        rounding = "what is resumed or repeated agrees to rounding, not bit for bit"
        return Decision(SETTING, False, f"{without}: {rounding}")
    return Decision(
        SETTING, True, "what is resumed or repeated on this GPU has the same bits; the backward pass of attention is "
        "slightly slower and takes more memory",
    )  # fmt: skip


def has_fused_sdpa(hardware: HardwareFacts, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torch's `sdpa` is fused there: on all but AMD GPUs without AOTriton's kernels."""
    architecture = hardware.architecture
    tried = architecture in EXPERIMENTAL and environment.get(SWITCH, "1") == "1"
    return not architecture.startswith("gfx") or architecture in STABLE or tried


def with_amd_kernels(
    decisions: Sequence[Decision], hardware: HardwareFacts, environment: Mapping[str, str] = os.environ
) -> tuple[Decision, ...]:
    """Decisions on attention. If torch calls the GPU's fused kernels experimental, or there are none, the reason says
    which kernel `sdpa` uses and what the other one costs."""
    architecture, fused = hardware.architecture, has_fused_sdpa(hardware, environment)
    if architecture in EXPERIMENTAL and fused:
        kernel = f"AOTriton's kernels, experimental on {architecture}; torch's own would take {SLOW}"
    elif fused:
        return tuple(decisions)
    elif architecture not in EXPERIMENTAL:
        kernel = f"torch's own kernels, since AOTriton has none for {architecture}; they take {SLOW}"
    else:
        kernel = f"torch's own kernels, since {SWITCH} is not 1; they take {SLOW}"
    return tuple(
        replace(decision, reason=f"{decision.reason}; {kernel}") if str(decision.value).endswith("sdpa") else decision
        for decision in decisions
    )
