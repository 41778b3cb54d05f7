"""Every Triton kernel, as our own code launches it, compiled for devices that are not here: NVIDIA and AMD.

The launches are recorded while the functions run on a CPU (their results are never looked at), then specialised as
Triton's launcher would and compiled to machine code. That proves that they compile and fit, nothing about results.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from finetooth_kernels import gated
from finetooth_kernels.dropout import Dropped
from finetooth_kernels.grouped import WIDE_RANK
from finetooth_kernels.segments import Looks, Segment
from finetooth_triton import gpu, layers, wide_linear
from finetooth_triton import logits as dispatch
from finetooth_triton.cached_attention import CachedAttention
from finetooth_triton.directions import low_rank_linear_triton
from finetooth_triton.eight_bits import fp8_linear_triton
from finetooth_triton.grouped import grouped_matmul_triton
from finetooth_triton.integers import IntegerKernels
from finetooth_triton.linear_logprob import linear_logprob_triton
from finetooth_triton.operations import entropy_from_logits, selective_log_softmax
from finetooth_triton.segments import windowed_attention_triton

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="triton is not installed; see make kernels-test"
    ),
]

KIB = 2**10
TARGETS: dict[
    str, tuple[str, int | str, int, int]
] = {  # backend, architecture, threads per warp, bytes of shared memory that a block may take
    "sm_80": ("cuda", 80, 32, 163 * KIB),
    "sm_86": ("cuda", 86, 32, 99 * KIB),
    "sm_90": ("cuda", 90, 32, 227 * KIB),
    "gfx942": ("hip", "gfx942", 64, 64 * KIB),
    "gfx1100": ("hip", "gfx1100", 32, 64 * KIB),
}
EIGHTS = ("sm_89", "sm_90", "sm_100", "sm_120", "gfx950", "gfx1201")
"""Architectures that multiply in 8 bits."""
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.float8_e5m2: "*fp8e5",
}
OPTIONS = ("num_warps", "num_stages")


@dataclass
class Launch:
    """One launch: the kernel, its arguments by name, and the compiler's options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, int]


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Launch]]:
    """Runs a function as if its tensors lay on a device of an architecture with so much shared memory; returns the
    launches."""
    from finetooth_triton import (
        cache_kernels,
        direction_kernels,
        eight_bit_kernels,
        group_kernels,
        head_kernels,
        integer_kernels,
        layer_kernels,
        masked_kernels,
        row_kernels,
        segment_kernels,
    )

    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            assert all(isinstance(size, int) and size > 0 for size in grid)

            def launch(*args: Any, **kwargs: Any) -> None:
                options = {name: kwargs.pop(name) for name in OPTIONS if name in kwargs}
                named = dict(zip(self.kernel.arg_names, args, strict=False)) | kwargs
                assert set(named) == set(self.kernel.arg_names)
                launches.append(Launch(self.kernel, named, options))

            return launch

    modules = cache_kernels, direction_kernels, eight_bit_kernels, group_kernels, head_kernels, layer_kernels
    for module in (*modules, integer_kernels, masked_kernels, row_kernels, segment_kernels):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorder(getattr(module, name)))
    monkeypatch.setattr(gpu, "check_runs", lambda name, tensor: None)
    monkeypatch.setattr(dispatch, "has_kernels", lambda device, dtype: True)
    monkeypatch.setattr(layers, "runs_on", lambda device: True)
    monkeypatch.setattr(wide_linear, "multiplies_into_float32", lambda device, dtype: False)

    def run(
        function: Callable[[], None], shared_memory: int, architecture: int | str = "", maker: str = "nvidia"
    ) -> list[Launch]:
        monkeypatch.setattr(gpu, "maker", lambda device: maker)
        monkeypatch.setattr(gpu, "tiles_for", lambda dtype, device: gpu.tiles_within(dtype, shared_memory))
        monkeypatch.setattr(gpu, "in_halves", lambda device: str(architecture).startswith("gfx11"))
        launches.clear()
        function()
        return list(launches)

    return run


def maker(backend: str, warp: int) -> str:
    """See `gpu.maker`."""
    return "nvidia" if backend == "cuda" else "cdna" if warp == 64 else "rdna"


def compiled(launch: Launch, backend: str, architecture: int | str, warp: int) -> Any:
    """Specialise and compile: 1 becomes a constant, what divides by 16 is promised to."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    promises: dict[tuple[int, ...], list[list[Any]]] = {}
    for at, parameter in enumerate(launch.kernel.params):
        value, name = launch.arguments[parameter.name], parameter.name
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or (isinstance(value, int) and value == 1 and specialised):
            signature[name], constants[(at,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], promises[(at,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32"
            if value % 16 == 0 and specialised:
                promises[(at,)] = [["tt.divisibility", 16]]
        else:
            assert isinstance(value, float)
            signature[name] = "fp32"
    source = ASTSource(launch.kernel, signature, constants, promises)
    return triton.compile(source, target=GPUTarget(backend, architecture, warp), options=launch.options)


def head(dtype: torch.dtype, *, k: int | None, train: bool, everything: bool) -> None:
    """One forward and backward pass; `everything` switches on what can be switched on, and sizes are odd."""
    width = 63 if everything else 128
    hidden = torch.zeros(40, width, dtype=dtype, requires_grad=True)
    weight = torch.zeros(300, width, dtype=dtype, requires_grad=train)
    out = linear_logprob_triton(
        hidden,
        weight,
        torch.zeros((40,) if k is None else (40, k), dtype=torch.int64),
        bias_v=torch.zeros(300, dtype=dtype, requires_grad=train) if everything else None,
        softcap=30.0 if everything else None,
        entropy=everything,
        top1=everything,
    )
    objective = out.logprobs.sum() if out.entropy is None else out.logprobs.sum() + out.entropy.sum()
    objective.backward()


def given(dtype: torch.dtype) -> None:
    """Both functions of given logits, forward and backward."""
    logits = torch.zeros((2, 6, 5000), dtype=dtype).transpose(0, 1)[::2]
    entropy_from_logits(logits)
    selective_log_softmax(logits.requires_grad_(), torch.zeros((3, 2, 3), dtype=torch.int64)).sum().backward()


def rows(dtype: torch.dtype) -> None:
    """What layers do to their rows, forward and backward: wide rows, each activation, heads that turn in part."""

    def zeros(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype, requires_grad=True)

    def back(*results: torch.Tensor) -> None:
        sum(x.float().square().sum() for x in results).backward()  # type: ignore[union-attr]

    back(*layers.rms_norm_triton(zeros(6, 5000, dtype=torch.float32), zeros(5000), 1e-5, residual=True))
    back(layers.rms_norm_triton(zeros(6, 127), zeros(127), 1e-5))
    for activation in gated.ACTIVATIONS:
        back(layers.gated_mlp_triton(zeros(6, 2000), activation))
    angles = torch.zeros(6, 24)
    for size in (48, 64):
        back(layers.rotary_triton(zeros(6, 5, size), angles, angles, 3))
        for of_weight in (dtype, torch.float32):
            weights = zeros(size, dtype=of_weight), zeros(size, dtype=of_weight)
            back(layers.norm_rotary_triton(zeros(6, 40, size), *weights, angles, angles, 32, 1e-5))
        for of_weight in (dtype, torch.float32):
            back(
                layers.gated_norm_triton(
                    zeros(70, 2 * size), zeros(70, 2 * size), zeros(2 * size, dtype=of_weight), 1e-5
                )
            )
    words = torch.zeros(6, dtype=torch.int32), torch.zeros(2000, dtype=torch.int32)
    back(layers.keyed_dropout_triton(zeros(6, 2000), *words, 5, 1.5))


def experts(dtype: torch.dtype) -> None:
    """Products of groups with an addition in both forms, forward and backward, an odd depth, the widest fused rank."""
    for depth, rank, form in ((64, 16, "split"), (64, 16, "fused"), (127, WIDE_RANK, "fused")):
        x, weight = torch.zeros(40, depth, dtype=dtype), torch.zeros(3, depth, 512, dtype=dtype)
        factors = torch.zeros(3, depth, rank, dtype=dtype), torch.zeros(3, rank, 512, dtype=dtype)
        for tensor in (x, weight, *factors):
            tensor.requires_grad_()
        ends = torch.tensor([10, 10, 40], dtype=torch.int32)
        grouped_matmul_triton(x, weight, ends, (*factors, 0.5), form=form).sum().backward()


def dora(dtype: torch.dtype) -> None:
    """Two layers with DoRA, a bias and a residual stream, forward and backward, of an odd width and one of 16s."""
    for width in (127, 4096):
        x, base = torch.zeros(40, width, dtype=dtype, requires_grad=True), torch.zeros(40, 160)
        factors = [[torch.zeros(size, dtype=dtype, requires_grad=True) for size in ((8, width), (80, 8))] for _ in "qk"]
        lengths = [torch.ones(80, dtype=dtype, requires_grad=True) for _ in "qk"]
        weight, bias = torch.zeros(160, width, dtype=dtype), torch.zeros(160, dtype=dtype)
        additions = [(a, b, 0.5) for a, b in factors]
        low_rank_linear_triton(
            x, weight, bias, (80, 80), additions, base_no=base, magnitudes=lengths
        ).sum().backward()  # fmt: skip


def dropping(dtype: torch.dtype) -> None:
    """Two layers with dropout of a group, forward and backward: an odd width and a wide rank, and those of 16s."""
    for width, rank in ((127, 80), (4096, 16)):
        x = torch.zeros(2000, width, dtype=dtype, requires_grad=True)
        additions = [
            (*(torch.zeros(size, dtype=dtype, requires_grad=True) for size in ((rank, width), (80, rank))), 0.5)
            for _ in "qk"
        ]
        words = torch.zeros(2000, dtype=torch.int32), torch.zeros(width, dtype=torch.int32)
        group = torch.zeros(160, width, dtype=dtype), None, (80, 80), additions
        low_rank_linear_triton(x, *group, dropped=[Dropped(*words, 5, 1.5)] * 2).sum().backward()


def eight_bits(dtype: torch.dtype) -> None:
    """A linear layer in 8 bits that trains, forward and backward, of an odd width and of one that divides by 16."""
    for depth in (127, 4096):
        x, weight = torch.zeros(40, depth, dtype=dtype), torch.zeros(96, depth, dtype=dtype)
        fp8_linear_triton(x.requires_grad_(), weight.requires_grad_()).sum().backward()


def as_integers(dtype: torch.dtype) -> None:
    """Numbers to levels and back, products with each activation, with zero points and without, a norm of wide rows."""
    kernels, scale, zero = IntegerKernels(), torch.ones(6, 1), torch.zeros(6, 1, dtype=torch.int32)
    q = kernels.rescaled(torch.zeros(6, 5000, dtype=dtype), scale, zero, (-128, 127))
    assert q is not None
    kernels.rescaled(q, scale, zero)
    for activation in (None, "relu", *gated.ACTIVATIONS):
        bias = None if activation is None else torch.zeros(6, dtype=dtype)
        for zeros in (zero, 0):
            kernels.product(q, scale, zeros, q.t(), scale.t(), 0, bias, activation)  # type: ignore[arg-type]
    for width in (127, 5000):
        weight = torch.zeros(width, dtype=dtype)
        kernels.normed(q[:, :width], scale[0], weight, weight, 1e-5, 8, False)


def cache(dtype: torch.dtype) -> None:
    """Attention to a cache: heads of 64, 128 and 256 numbers, and odd ones whose prompts stand apart."""
    for size, samples in ((64, 1), (128, 1), (256, 1), (80, 3)):
        qkv, own = torch.zeros(6, 12, size, dtype=dtype), torch.zeros(2, 6, 2, 40, size, dtype=dtype)
        above = torch.zeros(2, 2, 2, 23, size, dtype=dtype) if samples > 1 else None
        attention, starts = CachedAttention.ready(qkv, size), torch.zeros(6 // samples, dtype=torch.int64)
        assert attention is not None
        attention(qkv, own, torch.tensor([40]), 0.25, starts_p=starts, samples=samples, above_hpkwd=above)


def segments(dtype: torch.dtype) -> None:
    """Attention over segments, forward and backward: heads of 64 with all that a layer may have, and wider ones."""
    sinks = torch.zeros(8, dtype=dtype)
    for size, looks in ((64, Looks(0.1, 100, None, sinks)), (128, Looks(0.1)), (256, Looks(0.1, 100, 50.0))):
        qkv = torch.zeros(300, 12, size, dtype=dtype, requires_grad=True)
        windowed_attention_triton(qkv, (Segment(0, 300, 300),), looks, heads=8, kv_heads=2).sum().backward()


CASES: dict[str, tuple[Callable[[torch.dtype], None], set[str]]] = {
    "trained head": (
        lambda dtype: head(dtype, k=None, train=True, everything=False),
        {"head_linear_kernel", "row_statistics_kernel", "head_gradient_kernel"},
    ),
    "trained head, everything": (
        lambda dtype: head(dtype, k=3, train=True, everything=True),
        {"head_linear_kernel", "row_statistics_kernel", "head_gradient_kernel"},
    ),
    "frozen head": (
        lambda dtype: head(dtype, k=None, train=False, everything=False),
        {"head_linear_kernel", "row_statistics_kernel", "row_gradient_kernel"},
    ),
    "frozen head, everything": (
        lambda dtype: head(dtype, k=None, train=False, everything=True),
        {"head_linear_kernel", "row_statistics_kernel", "row_gradient_kernel", "head_gradient_kernel"},
    ),
    "given logits": (given, {"row_statistics_kernel", "row_gradient_kernel"}),
    "experts": (experts, {"grouped_rows_kernel", "grouped_matrices_kernel"}),
    "rows of layers": (
        rows,
        {
            "rms_norm_kernel", "rms_norm_backward_kernel", "rms_norm_weight_backward_kernel", "gated_kernel",
            "gated_backward_kernel", "rotate_kernel", "norm_rotary_kernel", "norm_rotary_backward_kernel",
            "gated_norm_kernel", "gated_norm_backward_kernel",
            "dropout_kernel",
        },
    ),
    "DoRA": (dora, {"row_lengths_kernel", "scaled_kernel", "scaled_backward_kernel"}),
    "dropout in layers": (dropping, {"masked_narrow_kernel", "masked_factor_kernel", "masked_rows_kernel"}),
    "8 bits": (eight_bits, {"largest_kernel", "round_kernel"}),
    "integers": (as_integers, {"rescaled_kernel", "integer_product_kernel", "integer_norm_kernel"}),
    "a cache": (cache, {"cached_attention_kernel"}),
    "segments": (
        segments,
        {"segment_attention_kernel", "segment_queries_backward_kernel", "segment_keys_backward_kernel"},
    ),
}  # fmt: skip


DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# The longest compilations leave float16 out, which differs from bfloat16 in nothing but the type, but for one target.
COMBINATIONS = [
    pytest.param(case, target, dtype, id=f"{case}-{target}-{str(dtype).removeprefix('torch.')}")
    for case in CASES
    for target in TARGETS
    for dtype in DTYPES
    if dtype != torch.float16 or target == "sm_90" or "everything" not in case
    if case != "8 bits" or target in EIGHTS
]


@pytest.mark.parametrize(("case", "target", "dtype"), COMBINATIONS)
def test_kernels_compile_and_fit(
    record: Callable[..., list[Launch]], case: str, target: str, dtype: torch.dtype
) -> None:
    function, kernels = CASES[case]
    backend, architecture, warp, shared_memory = TARGETS[target]
    launches = record(lambda: function(dtype), shared_memory, architecture, maker(backend, warp))
    torchs = {"head_linear_kernel"} if dtype == torch.float32 else set()  # torch multiplies float32
    assert {launch.kernel.__name__ for launch in launches} == kernels - torchs
    for launch in launches:
        program = compiled(launch, backend, architecture, warp)
        assert program.asm["cubin" if backend == "cuda" else "hsaco"][:4] == b"\x7fELF"
        assert program.metadata.shared <= shared_memory, launch.kernel.__name__


def test_hopper_multiplies_in_its_tensor_cores(record: Callable[..., list[Launch]]) -> None:
    launches = record(lambda: head(torch.bfloat16, k=None, train=True, everything=False), TARGETS["sm_90"][3])
    products = [launch for launch in launches if launch.kernel.__name__.startswith("head_")]
    assert len(products) == 2
    for launch in products:
        assert "wgmma.mma_async" in compiled(launch, *TARGETS["sm_90"][:3]).asm["ptx"]


def test_a_kernel_that_does_not_compile_would_be_seen(record: Callable[..., list[Launch]]) -> None:
    launch = record(lambda: given(torch.float32), 0)[0]
    launch.arguments["COLUMNS"] = 100  # not a power of two
    with pytest.raises(Exception, match="power of 2"):
        compiled(launch, *TARGETS["sm_80"][:3])


# --- registers, shared memory and spills ------------------------------------------------------------------------------

MORE_TARGETS: dict[str, tuple[str, int | str, int, int]] = {
    **TARGETS,
    "sm_89": ("cuda", 89, 32, 99 * KIB),
    "sm_100": ("cuda", 100, 32, 227 * KIB),
    "sm_120": ("cuda", 120, 32, 99 * KIB),
    "gfx90a": ("hip", "gfx90a", 64, 64 * KIB),
    "gfx950": ("hip", "gfx950", 64, 160 * KIB),
    "gfx1151": ("hip", "gfx1151", 32, 64 * KIB),
    "gfx1201": ("hip", "gfx1201", 32, 64 * KIB),
}
SPILLING = {("sm_100", "segment_queries_backward_kernel")} | {
    (target, "segment_keys_backward_kernel") for target in ("gfx1100", "gfx1151")
}
"""Known to keep some numbers in memory, for heads of 128; whether smaller tiles are faster takes the device."""
PAGE = os.environ.get("FT_WRITE_DOCS")
"""Where `make kernels-test` may write the table."""


def resources(program: Any, backend: str) -> tuple[int, int, int]:
    """Registers of a thread, bytes of shared memory, and what does not fit into registers: bytes, or registers."""
    import triton

    if backend == "hip":
        assembly = program.asm["amdgcn"]
        counts = [int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1]) for name in ("vgpr_count", "vgpr_spill_count")]  # type: ignore[index]
        return counts[0], program.metadata.shared, counts[1]
    dump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        said = subprocess.run([dump, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack = (int(re.search(rf"{name}:(\d+)", said.stdout)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    return registers, program.metadata.shared, stack


def test_no_kernel_needs_more_registers_than_there_are(record: Callable[..., list[Launch]]) -> None:
    """In bf16, on every architecture that users name; the table is docs/benchmarks/kernel-resources.md."""
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    for target, (backend, architecture, warp, shared_memory) in MORE_TARGETS.items():
        always = (
            "trained head", "given logits", "rows of layers", "experts", "a cache", "DoRA", "dropout in layers",
            "integers", "segments",
        )  # fmt: skip
        for case in (*always, *(["8 bits"] * (target in EIGHTS))):
            run = lambda case=case: CASES[case][0](torch.bfloat16)  # noqa: E731
            for launch in record(run, shared_memory, architecture, maker(backend, warp)):
                name = launch.kernel.__name__
                used = resources(compiled(launch, backend, architecture, warp), backend)
                of = found.setdefault(name, {})
                of[target] = tuple(map(max, used, of.get(target, used)))  # type: ignore[assignment]
    spilling = {(target, name) for name, of in found.items() for target, used in of.items() if used[2]}
    assert spilling == SPILLING
    if PAGE:
        Path(PAGE).write_text(table(found), encoding="utf-8")


def table(found: dict[str, dict[str, tuple[int, int, int]]]) -> str:
    """The page."""
    import triton

    head = [
        "# What Triton's kernels take of a GPU", "",
        f"Registers of a thread / KiB of shared memory of a block, as Triton {triton.__version__} compiles them in",
        "bf16, without a GPU. A star: some registers are in memory. A dash: the device does not multiply in 8 bits.",
        "`FT_WRITE_DOCS=docs/benchmarks/kernel-resources.md make kernels-test` writes this page.", "",
        f"| kernel | {' | '.join(MORE_TARGETS)} |",
        f"|---|{'---|' * len(MORE_TARGETS)}",
    ]  # fmt: skip
    for name, of in sorted(found.items()):
        cells = [
            f"{of[to][0]} / {of[to][1] / KIB:.0f}{'*' if of[to][2] else ''}" if to in of else "-" for to in MORE_TARGETS
        ]
        head.append(f"| `{name.removesuffix('_kernel')}` | {' | '.join(cells)} |")
    return "\n".join([*head, ""])
