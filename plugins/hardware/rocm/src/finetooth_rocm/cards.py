"""Which AMD GPUs are in the machine, as Linux's driver tells it; no framework is asked."""

from __future__ import annotations

from pathlib import Path

NODES = Path("/sys/class/kfd/kfd/topology/nodes")
"""Where the kernel's compute driver lists processors and GPUs; the architecture of a processor is 0."""


def in_machine(nodes: Path = NODES) -> str:
    """Their architectures, `AMD GPU (gfx942)`; empty if there is none, or the driver is not there."""
    architectures = [_architecture(file) for file in sorted(nodes.glob("*/properties"))]
    names = [name for name in architectures if name]
    if not names:
        return ""
    return f"{f'{len(names)} AMD GPUs' if len(names) > 1 else 'an AMD GPU'} ({', '.join(dict.fromkeys(names))})"


def _architecture(file: Path) -> str:
    """`gfx942` of the number 90402: two digits each of step and minor version (the last as hexadecimal), then the
    major one."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    number = next((line.split()[1] for line in lines if line.startswith("gfx_target_version ")), "0")
    version = int(number) if number.isdigit() else 0
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else ""
