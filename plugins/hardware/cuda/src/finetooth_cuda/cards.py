"""Which NVIDIA GPUs are in the machine, as Linux's driver tells it; no framework is asked."""

from __future__ import annotations

from pathlib import Path

GPUS = Path("/proc/driver/nvidia/gpus")
"""Where NVIDIA's kernel driver lists its GPUs."""


def in_machine(gpus: Path = GPUS) -> str:
    """Their models, `an NVIDIA GPU (NVIDIA L4)`; empty if there is none, or the driver is not there."""
    names = [_model(file) for file in sorted(gpus.glob("*/information"))]
    if not names:
        return ""
    models = ", ".join(dict.fromkeys(name for name in names if name))
    count = f"{len(names)} NVIDIA GPUs" if len(names) > 1 else "an NVIDIA GPU"
    return f"{count} ({models})" if models else count


def _model(file: Path) -> str:
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "")
