"""What AMD's data sheets state: dense FLOP/s by GPU and precision."""

from __future__ import annotations

import re

TERA = 1e12
GIGA = 1e9

PER_CLOCK = {"gfx90a": (1024, 256), "gfx942": (2048, 256), "gfx950": (4096, 256)}
"""FLOP that a compute unit's matrix cores do in a clock in bf16 or fp16 (without sparsity), and in fp32: CDNA 2, CDNA 3
and CDNA 4 Architecture white papers, tables of peak FLOP per clock and compute unit."""

CLOCKS = (
    # GHz at the peak: MI200 Series, MI300X, MI300A, MI325X, MI350X and MI355X data sheets. With all compute units that
    # makes the TFLOP/s that they state: MI250X 383.0 (two devices to torch), MI210 181.0, MI300X and MI325X 1307.4,
    # MI300A 980.6, MI350X 2306.9 (stated as 2.3 PFLOP/s), MI355X 2516.6.
    (r"MI2(10|50X?)", 1.7),
    (r"MI300[XA]|MI325X", 2.1),
    (r"MI350X", 2.2),
    (r"MI355X", 2.4),
)
"""Pattern for torch's name of the GPU, and its clock. The compute units are counted, since a GPU may be several
devices, or a part of one."""

RADEON = (
    # product pages: peak half precision (matrix) and single precision (vector; there are no fp32 matrix instructions)
    (r"RX 7900 XTX", 122.8, 61.4),
    (r"RX 7900 XT", 103.0, 51.5),
    (r"PRO W7900", 122.6, 61.3),
    (r"RX 9070 XT", 195.0, 48.7),
    (r"RX 9070", 145.0, 36.1),
)
"""Pattern for the name of a card; TFLOP/s in bf16 and fp16, and in fp32. The first match counts."""


def peak_flops(name: str, architecture: str, units: int) -> dict[str, float]:
    """Dense FLOP/s by precision; empty for a GPU that is not in the tables.

    Args:
        units: compute units of the device.
    """
    half = single = 0.0
    if architecture in PER_CLOCK:
        clock = next((clock for pattern, clock in CLOCKS if _is(pattern, name)), 0.0)
        half, single = (units * rate * clock * GIGA for rate in PER_CLOCK[architecture])
    else:
        found = next(((h, s) for pattern, h, s in RADEON if _is(pattern, name)), (0.0, 0.0))
        half, single = found[0] * TERA, found[1] * TERA
    return {"bf16": half, "fp16": half, "fp32": single} if half else {}


def _is(pattern: str, name: str) -> bool:
    return re.search(rf"(?<!\w)({pattern})(?!\w)(?! (GRE|M)\b)", name) is not None
