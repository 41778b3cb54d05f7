"""What NVIDIA's data sheets state: dense FLOP/s by GPU and precision."""

from __future__ import annotations

import re

TERA = 1e12

PEAKS: tuple[tuple[str, float, float, float], ...] = (
    # NVIDIA H200 Tensor Core GPU Datasheet (SXM, NVL); H100 Tensor Core GPU Architecture whitepaper (H100 SXM, PCIe;
    # the same GPU is in H200 SXM and GH200 Grace Hopper, and with slower links and fp64 in H800); H100 Tensor Core GPU
    # Datasheet (NVL). Their figures for
    # tensor cores are "with sparsity": twice these.
    (r"H200 NVL", 835.5, 835.5, 60.0),
    (r"H100 NVL", 835.5, 835.5, 60.0),
    (r"(H100|H800) PCIe", 756.0, 756.0, 51.2),
    (r"H200|GH200|H100 80GB HBM3|H800", 989.4, 989.4, 66.9),
    (r"H20", 148.0, 148.0, 44.0),  # no data sheet is public: as the press quotes NVIDIA
    (r"B200", 2250.0, 2250.0, 75.0),  # Blackwell Architecture Technical Brief, HGX B200: an eighth, half of "sparse"
    (r"A100|A800", 312.0, 312.0, 19.5),  # A100 Tensor Core GPU Datasheet; the A800 has slower links
    (r"A40", 149.7, 149.7, 37.4),  # A40 Datasheet
    (r"A30", 165.0, 165.0, 10.3),  # A30 Tensor Core GPU Datasheet
    (r"A10", 125.0, 125.0, 31.2),  # A10 Tensor Core GPU Datasheet (A10G is another)
    (r"L40S", 362.05, 362.05, 91.6),  # L40S Datasheet
    (r"L40", 181.05, 181.05, 90.5),  # L40 Datasheet
    (r"L4", 121.0, 121.0, 30.3),  # L4 Tensor Core GPU Datasheet, which states "with sparsity": half of it
    # V100 Tensor Core GPU Datasheet; V100S PCIe Datasheet
    (r"V100S-PCIE-\d+GB", 0.0, 130.0, 16.4),
    (r"V100-PCIE-\d+GB", 0.0, 112.0, 14.0),
    (r"V100-SXM[23]-\d+GB", 0.0, 125.0, 15.7),
    (r"T4", 0.0, 65.0, 8.1),  # T4 Tensor Core GPU Datasheet
    (r"RTX A6000", 154.8, 154.8, 38.7),  # RTX A6000 Datasheet: half of 309.7 "with sparsity"
    # GeForce accumulates in fp32 at half the rate of fp16: the whitepapers' lines "with FP32 accumulate", dense
    (r"RTX 3090", 71.0, 71.0, 35.6),  # Ampere GA102 GPU Architecture whitepaper
    (r"RTX 4090", 165.2, 165.2, 82.6),  # Ada GPU Architecture whitepaper
    (r"RTX 5090", 209.5, 209.5, 104.8),  # RTX Blackwell GPU Architecture whitepaper
)
"""Pattern for torch's name of the GPU; TFLOP/s in bf16 and fp16 on tensor cores (without sparsity, accumulating in
fp32) and in fp32 without TF32, which finetooth leaves off; from the NVIDIA document in the comment. 0 is: not
computed there. The first match counts."""

NOT_WHOLE = re.compile(r"MIG|Laptop|Max-Q|\bD( v\d)?$|vGPU|-\d+[ABCQ]$|Ti$|SUPER$", re.IGNORECASE)
"""Names of GPUs that are a part of the one in the table (`-40C`, `-8Q`: shared with other virtual machines), or another
one of nearly the same name."""


def peak_flops(name: str) -> dict[str, float]:
    """Dense FLOP/s by precision; empty for a GPU that is not in the table."""
    if NOT_WHOLE.search(name):
        return {}
    for pattern, bf16, fp16, fp32 in PEAKS:
        if re.search(rf"(?<!\w)({pattern})(?!\w)", name):
            stated = {"bf16": bf16, "fp16": fp16, "fp32": fp32}
            return {precision: tera * TERA for precision, tera in stated.items() if tera}
    return {}
