"""What NVIDIA's data sheets state: dense FLOP/s by GPU and precision."""

from __future__ import annotations

import re

TERA = 1e12

PEAKS: tuple[tuple[str, float, float, float], ...] = (
    (r"H200 NVL", 835.5, 835.5, 60.0),
    (r"H200|GH200|H100 80GB HBM3|H100 SXM|H800", 989.4, 989.4, 66.9),
    (r"H100 NVL", 835.5, 835.5, 60.0),
    (r"H100 PCIe", 756.0, 756.0, 51.2),
    (r"H20", 148.0, 148.0, 44.0),
    (r"B200", 2250.0, 2250.0, 75.0),
    (r"A100|A800", 312.0, 312.0, 19.5),
    (r"A40", 149.7, 149.7, 37.4),
    (r"A30", 165.0, 165.0, 10.3),
    (r"A10", 125.0, 125.0, 31.2),
    (r"L40S", 362.05, 362.05, 91.6),
    (r"L40", 181.05, 181.05, 90.5),
    (r"L4", 121.0, 121.0, 30.3),
    (r"V100", 0.0, 125.0, 15.7),
    (r"T4", 0.0, 65.0, 8.1),
    (r"RTX A6000", 154.8, 154.8, 38.7),
    (r"RTX 3090", 71.0, 71.0, 35.6),
    (r"RTX 4090", 165.2, 165.2, 82.6),
    (r"RTX 5090", 209.5, 209.5, 104.8),
)
"""Pattern for torch's name of the GPU; TFLOP/s in bf16 and fp16 on tensor cores (without sparsity, accumulating in
fp32) and in fp32 without TF32, which finetooth leaves off. 0 is: not computed there. The first match counts."""

NOT_WHOLE = re.compile(r"MIG|Laptop|Max-Q| D$|vGPU", re.IGNORECASE)
"""Names of GPUs that are a part of the one in the table, or run slower."""


def peak_flops(name: str) -> dict[str, float]:
    """Dense FLOP/s by precision; empty for a GPU that is not in the table."""
    if NOT_WHOLE.search(name):
        return {}
    for pattern, bf16, fp16, fp32 in PEAKS:
        if re.search(rf"(?<!\w)({pattern})(?!\w)", name):
            stated = {"bf16": bf16, "fp16": fp16, "fp32": fp32}
            return {precision: tera * TERA for precision, tera in stated.items() if tera}
    return {}
