"""Measure the kernels against what does the same elsewhere, and write tests/bench/results/kernels.json.

    python tests/bench/kernels.py [--out FILE] [--tiles]

On an NVIDIA or AMD GPU: `linear_logprob` in Triton and chunked, against whole logits in torch, and against
cut-cross-entropy and liger-kernel where they are installed (`pip install --no-deps cut-cross-entropy==25.1.1
liger-kernel==0.8.5`), time and peak memory of forward and backward; then the functions of given logits. Contenders take
turns within each repetition, after a warm-up. Everyone's loss and gradients are compared with the chunked ones, so that
nobody is faster by computing something else. Without a GPU those rows say "not measured", and small sizes on the CPU
are measured. `--tiles` also times the Triton kernels in other tiles.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from harness import RESULTS, machine
from kernelbench.given import given_rows, labels
from kernelbench.heads import (
    Loss,
    Shape,
    chunked,
    head_rows,
    in_triton,
    make_head,
    peers,
    step,
    tile_rows,
    whole_logits,
)
from kernelbench.turns import Row, milliseconds

WARM_UP, TIMED = 5, 20
CPU_WARM_UP, CPU_TIMED = 1, 5
HEADS: tuple[Shape, ...] = ((16_384, 248_320, 2_048), (8_192, 151_936, 1_024))
CPU_HEADS: tuple[Shape, ...] = ((256, 49_152, 576), (1_024, 8_192, 576))
GIVEN_VOCABULARY, CPU_VOCABULARY = 151_936, 49_152
GIVEN = ((1, 2048), (1, 8192), (1, 16384), (4, 4096), (8, 2048), (16, 2048), (16, 4096))
CPU_GIVEN = ((1, 16), (1, 32), (1, 64), (2, 32))
"""Sequences and their length."""
CPU_CONTENDERS: dict[str, Loss] = {"torch, whole logits": whole_logits, "chunked": chunked}


def gemm_tflops() -> float:
    """The device's own bf16 matrix product, at 8,192 in every direction: TFLOP/s."""
    a = torch.randn((8192, 8192), device="cuda", dtype=torch.bfloat16)
    times = [milliseconds("cuda", lambda: a @ a) for _ in range(WARM_UP + TIMED)][WARM_UP:]
    return round(2 * 8192**3 / (1e9 * statistics.median(times)), 1)


def cpu_peak(name: str, shape: tuple[int, int, int]) -> float:
    """Megabytes that one forward and backward pass adds to a fresh process's peak, inputs not counted."""
    command = [sys.executable, __file__, "--peak-of", json.dumps([name, shape])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report_peak(name: str, shape: tuple[int, int, int]) -> None:
    """In that process: print the figure. Linux only, where a process may reset its own peak."""
    hidden, weight, targets = make_head(*shape, "cpu", torch.float32)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = own_memory("VmRSS")
    step(CPU_CONTENDERS[name], hidden.requires_grad_(), weight, targets)
    print(round((own_memory("VmHWM") - before) * 1024 / 1e6, 1))


def own_memory(field: str) -> int:
    """KiB of this process, as the kernel counts them."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def cpu_rows() -> Row:
    """Small sizes in float32, where there is no GPU or beside it."""
    heads = list(head_rows(CPU_HEADS, dict(CPU_CONTENDERS), "cpu", torch.float32, CPU_WARM_UP, CPU_TIMED))
    for row in heads:
        if "frozen" in row["what"]:
            for name in CPU_CONTENDERS:
                row["contenders"][name]["peak_mb"] = cpu_peak(name, (row["rows"], row["vocabulary"], row["width"]))
    given = list(given_rows(CPU_GIVEN, CPU_VOCABULARY, "cpu", torch.float32, CPU_WARM_UP, CPU_TIMED))
    return {"linear_logprob": heads, "given logits": given}


def gpu_rows(tiles: bool) -> Row:
    """Everything on the GPU; or every row of it as not measured."""
    if not torch.cuda.is_available():
        why = {"not measured": "no NVIDIA or AMD GPU here"}
        return {
            "linear_logprob": [{"rows": n, "vocabulary": v, "width": d, **why} for n, v, d in HEADS],
            "given logits": [{**labels(b, n, GIVEN_VOCABULARY, "contiguous", "all"), **why} for b, n in GIVEN],
        }
    contenders: dict[str, Loss | str] = {"torch, whole logits": whole_logits, "chunked": chunked, "triton": in_triton}
    found: Row = {"gemm_bf16_tflops": gemm_tflops()}
    found["linear_logprob"] = list(head_rows(HEADS, contenders | peers(), "cuda", torch.bfloat16, WARM_UP, TIMED))
    found["given logits"] = list(given_rows(GIVEN, GIVEN_VOCABULARY, "cuda", torch.bfloat16, WARM_UP, TIMED))
    if tiles:
        found["tiles"] = tile_rows(HEADS[0])
    return found


def page_rows(found: list[Row]) -> list[Row]:
    """The lines that docs/benchmarks.md shows: a trained head, forward and backward apart, and the peak of both."""
    rows: list[Row] = []
    forward: dict[str, Row] = {}
    for row in found:
        if row.get("what") == "forward":
            forward = row["contenders"]
        elif "trained" in row.get("what", ""):
            shape = f"{row['rows']:,} x {row['vocabulary']:,} x {row['width']:,}"
            for name, both in row["contenders"].items():
                if "ms" not in both or "ms" not in forward[name]:
                    continue
                alone = forward[name]["ms"]
                figures = {"forward_ms": alone, "backward_ms": round(both["ms"] - alone, 3)}
                rows.append(
                    {
                        "shape": shape,
                        "kernel": name,
                        **figures,
                        "memory_bytes": int(both["peak_mb"] * 1e6),
                    }
                )
    return rows


def measured_on() -> Row:
    """Machine and versions."""
    versions = {}
    for name in ("torch", "triton", "cut-cross-entropy", "liger-kernel"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {**machine.machine(), "accelerator": gpu, "load": machine.load(), "versions": versions}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json", help="where to write the figures")
    parser.add_argument("--tiles", action="store_true", help="time the Triton kernels in other tiles too")
    parser.add_argument("--peak-of", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of is not None:
        report_peak(arguments.peak_of[0], tuple(arguments.peak_of[1]))
        return
    gpu = gpu_rows(arguments.tiles)
    measured = measured_on()
    figures = {
        "device": measured["accelerator"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "rows": page_rows(gpu["linear_logprob"]),
        "machine": measured,
        "protocol": {
            "gpu": {"warm_up": WARM_UP, "timed": TIMED},
            "cpu": {"warm_up": CPU_WARM_UP, "timed": CPU_TIMED},
            "ms": "median; the contenders take turns",
            "peak_mb": "1e6 bytes at the peak, beside the inputs",
            "gradient_difference": "relative to the chunked one, for the hidden states and the weight",
        },
        "gpu": gpu,
        "cpu": cpu_rows(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
