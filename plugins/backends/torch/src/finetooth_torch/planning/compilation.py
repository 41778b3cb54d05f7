"""Whether torch compiles the decoder layers that transformers' own code computes. No framework."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal

from finetooth_hooks import Decision, PlanError
from finetooth_hooks.errors import install_command
from finetooth_hooks.protocols import HardwareFacts, ModelFacts, PlanRequest

from finetooth_torch.planning.offload import PIECES, Offload, among_ranks, in_parts

SETTING = "backend.compile"
OFF, REGIONAL = "off", "regional"
Compile = Literal["auto", "off", "regional"]
TURN_ON = f"set {SETTING}: {REGIONAL} to compile them"
LEAVE_OUT = f"leave {SETTING} out"
TRITON = ("cuda", "xpu")
"""Devices for which torch compiles with Triton."""
LEAST = 70
"""Compute capability of NVIDIA GPUs from which it does (Volta), times ten."""
COMPILERS = ("g++", "clang++")


def choose_compile(wanted: Compile, device: str, *, stream: bool) -> Decision | None:
    """The value of `TorchOptions.compile`; None if the stream decoder leaves nothing to decide.

    `auto` compiles nowhere: on a CPU it was measured not to pay (decision 0008), and accelerators were not measured.
    """
    if wanted == REGIONAL:
        why = "the recipe says so: the first steps take longer, numbers differ from uncompiled ones by rounding"
        return Decision(SETTING, REGIONAL, why)
    if stream:
        return None
    if wanted == OFF:
        return Decision(SETTING, OFF, "the recipe says so")
    cost = "compiling takes half a minute or longer on a CPU, and saved 7 % of a step"
    reason = cost if device == "cpu" else "whether it pays on this accelerator has not been measured"
    return Decision(SETTING, OFF, f"{reason}; {TURN_ON}")


def check_compile(
    request: PlanRequest, offload: Offload, *, stream: bool, functions: str = "", excluded: Mapping[str, bool]
) -> None:
    """Checks that `regional` can work.

    Args:
        functions: names of attention entries whose functions compute; empty: transformers' attention does.
        excluded: other settings that exclude it, and whether the recipe has them.

    Raises:
        PlanError: it cannot.
    """
    base, place = request.base, request.place
    pieces = {"backend.activations": offload.activations != "device", "backend.layers": offload.layers != "device"}
    others = {**pieces, PIECES: bool(offload.pieces), **excluded}
    setting = next((name for name, given in others.items() if given), "")
    left = f"leave {setting} or {SETTING} out"
    reasons = (
        (
            stream,
            "the stream decoder computes the layers, with kernels of its own, and nothing is left to compile",
            f"set backend.decoder: transformers, or {LEAVE_OUT}",
        ),
        (in_parts(place), "scale.strategy divides the model or rows", f"set scale.strategy: ddp, or {LEAVE_OUT}"),
        (
            place.wrap is not None and among_ranks(place),
            "scale.strategy wraps the model", f"set scale.strategy: ddp, or {LEAVE_OUT}",
        ),
        (bool(setting), f"{setting} runs code inside the layers that torch cannot compile", left),
        (base.stored is not None, "the base is stored in fewer bits, which torch does not compile", LEAVE_OUT),
        (_carries(base.facts), "states that layers carry along a row restart in code that torch cannot compile",
         LEAVE_OUT),
        (bool(functions), f"attention {functions} is a function that torch cannot compile",
         f"set backend.attention: sdpa, or {LEAVE_OUT}"),
        *_missing(place.hardware),
    )  # fmt: skip
    for holds, problem, action in reasons:
        if holds:
            raise PlanError(f"{SETTING}={REGIONAL}: {problem}", action=action)


def _carries(facts: ModelFacts) -> bool:
    return any(layer.state or layer.mixer == "convolution" for layer in facts.per_layer)


def _missing(hardware: HardwareFacts) -> tuple[tuple[bool, str, str], ...]:
    """What torch's compiler lacks on this machine."""
    from finetooth_kernels.triton_devices import obstacle  # with torch: not before a plan needs it

    device, nvidia = hardware.device.partition(":")[0], re.fullmatch(r"sm_(\d+)", hardware.architecture)
    named = os.environ.get("CXX", "").strip()
    found = shutil.which(named.split()[0]) if named else any(map(shutil.which, COMPILERS))
    needs = f"torch needs a C++ compiler, and {named or ' or '.join(COMPILERS)} was not found"
    return (
        (device not in ("cpu", *TRITON), f"torch does not compile for {device} here", LEAVE_OUT),
        (
            nvidia is not None and int(nvidia[1]) < LEAST,
            f"torch compiles for NVIDIA GPUs from compute capability 7.0, and {hardware.label} is older", LEAVE_OUT,
        ),
        (bool(triton := obstacle(hardware.architecture, hardware.label)), triton, LEAVE_OUT),
        (device == "cpu" and not found, needs, f"install one (apt install g++), or {LEAVE_OUT}"),
        (
            device in TRITON and find_spec("triton") is None,
            "torch needs Triton, which is not installed", f"{install_command('triton')}, or {LEAVE_OUT}",
        ),
    )  # fmt: skip
