"""Dense FLOP/s of AMD's GPUs by precision: of Instinct reckoned as AMD does, of Radeon as stated.

AMD states peaks as compute units x FLOP per clock and unit x peak clock, and so are they reckoned here. The results
were compared with figures of AMD as others quote them: MI250X 383.0 and 95.7 TFLOP/s, MI250 362.1 and 90.5 (AMD's own
table of the MI200 series, at its announcement), 1.7 GHz and 104 units in each half of a MI250 (ROCm documentation,
"AMD Instinct MI250 microarchitecture"); 304 units of MI300X, and three times the MI250X in fp16 and bf16 (ROCm
documentation, "AMD Instinct MI300 series microarchitecture"); 304 units of MI325X and 256 of MI350X and MI355X (ROCm
documentation, "AMD GPU specifications"), whose clocks are 2.2 and 2.4 GHz and fp32 peak 157.3 TFLOP/s for MI355X (AMD
at Hot Chips 2025). The clock of MI300A, MI300X and MI325X is of their data sheets, which were not at hand to compare.
"""

from __future__ import annotations

import re

TERA = 1e12
GIGA = 1e9

PER_CLOCK = {"gfx90a": (1024, 256), "gfx942": (2048, 256), "gfx950": (4096, 256)}
"""FLOP that a compute unit's matrix cores do in a clock in bf16 or fp16 (without sparsity), and in fp32: CDNA 2, CDNA 3
and CDNA 4 Architecture white papers, tables of peak FLOP per clock and compute unit."""

CLOCKS = (
    # GHz at the peak. With all compute units that makes, in TFLOP/s of bf16: MI250X 383.0 (two devices to torch), MI210
    # 181.0, MI300X and MI325X 1307.4, MI300A 980.6, MI350X 2306.9 (stated as 2.3 PFLOP/s), MI355X 2516.6.
    (r"MI2(10|50X?)", 1.7),
    (r"MI300[XA]|MI325X", 2.1),
    (r"MI350X", 2.2),
    (r"MI355X", 2.4),
)
"""Pattern for torch's name of the GPU, and its clock. The compute units are counted, since a GPU may be several
devices, or a part of one."""

RADEON = (
    # product pages: peak half precision (matrix) and single precision (vector; fp32 has no matrix instructions).
    # Compared with units x clock: 96 x 2.5 GHz of RX 7900 XTX makes 61.44 and 122.88; 64 x 2.97 GHz of RX 9070 XT 48.66
    # and, at an eighth of AMD's 1557 TOPS of sparse int4, 194.6; RX 9070 likewise (1165 TOPS) 145.6.
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
        rates = next(((h, s) for pattern, h, s in RADEON if _is(pattern, name)), (0.0, 0.0))
        half, single = rates[0] * TERA, rates[1] * TERA
    return {"bf16": half, "fp16": half, "fp32": single} if half else {}


def _is(pattern: str, name: str) -> bool:
    return re.search(rf"(?<!\w)({pattern})(?!\w)(?! (GRE|M)\b)", name) is not None
