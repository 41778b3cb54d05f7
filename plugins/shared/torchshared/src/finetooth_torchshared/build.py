"""Which GPUs the installed torch was built for, read off its files: importing it takes seconds."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

FILE = "version.py"
"""In torch's package, since 1.0: `cuda: Optional[str] = '12.8'`, `hip: Optional[str] = None`."""


def built_for(platform: str, package: Path | None = None) -> bool:
    """Whether the installed torch was built for a platform; False if there is none, or its file says nothing of it.

    Args:
        platform: `cuda` or `hip`, as `torch.version` names them.
        package: torch's folder; None looks for it.
    """
    folder = package or _package()
    if folder is None:
        return False
    try:
        text = (folder / FILE).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    return re.search(rf"""^{platform}\b[^=\n]*=\s*['"]""", text, re.MULTILINE) is not None


def _package() -> Path | None:
    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None
