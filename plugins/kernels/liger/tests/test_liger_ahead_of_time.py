"""Liger's kernels, as our own code launches them, compiled for devices that are not here: NVIDIA and AMD.

The launches are recorded while the operations run on a CPU (their results are never looked at), then specialised as
Triton's launcher would and compiled to machine code. That proves that they compile, nothing about results.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from finetooth_liger import operations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed; see make kernels-test"
    ),
]

TARGETS = {
    "sm_80": ("cuda", 80, 32), "sm_90": ("cuda", 90, 32), "gfx942": ("hip", "gfx942", 64),
    "gfx1100": ("hip", "gfx1100", 32),
}  # fmt: skip
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
KERNELS = {
    "rms_norm": ("_rms_norm_forward_kernel", "_rms_norm_backward_kernel"),
    "rope": ("_triton_rope",),
    "swiglu": ("_swiglu_fused_gate_up_forward_kernel", "_swiglu_fused_gate_up_backward_kernel"),
}
"""By Liger's modules."""
Launch = tuple[Any, dict[str, Any], dict[str, int]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[Launch]:
    made: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*args: Any, **kwargs: Any) -> None:
                options = {name: kwargs.pop(name) for name in ("num_warps",) if name in kwargs}
                made.append((self.kernel, dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs, options))

            return launch

    for module, names in KERNELS.items():
        liger = importlib.import_module(f"liger_kernel.ops.{module}")
        for name in names:
            monkeypatch.setattr(liger, name, Recorder(getattr(liger, name)))
    monkeypatch.setattr(operations, "_taken", lambda x: True)
    return made


def compiled(launch: Launch, backend: str, architecture: int | str, warp: int) -> Any:
    """Specialise and compile."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, arguments, options = launch
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    for at, parameter in enumerate(kernel.params):
        value, name = arguments.get(parameter.name, parameter.default), parameter.name
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[name], constants[(at,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
    source = ASTSource(kernel, signature, constants)
    return triton.compile(source, target=GPUTarget(backend, architecture, warp), options=options)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", POINTERS)
def test_every_launch_compiles(launches: list[Launch], dtype: torch.dtype, target: str) -> None:
    x, weight = (torch.ones(shape, dtype=dtype, requires_grad=True) for shape in ((4, 4096), (4096,)))
    operations.rms_norm(x, weight, 1e-5).sum().backward()
    operations.gated_mlp(torch.ones(4, 2 * 14336, dtype=dtype, requires_grad=True)).sum().backward()
    angles = torch.ones(4, 64)
    operations.rotary(torch.ones(4, 40, 128, dtype=dtype, requires_grad=True), angles, angles, 36).sum().backward()
    assert {kernel.__name__ for kernel, _, _ in launches} == {name for names in KERNELS.values() for name in names}
    for launch in launches:
        made = compiled(launch, *TARGETS[target])
        assert made.asm["cubin" if target.startswith("sm") else "hsaco"]
