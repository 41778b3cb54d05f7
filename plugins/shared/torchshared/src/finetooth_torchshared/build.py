"""Which GPUs the installed torch was built for, read off its files, since importing it takes seconds; and whether
bitsandbytes has loaded its library for them."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from finetooth_hooks import PlanError

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


def check_bitsandbytes(device: str, setting: str, instead: str) -> None:
    """Check that bitsandbytes computes on a device: without its library for GPUs it fails only when it is called.

    Args:
        setting: to blame.
        instead: what computes without bitsandbytes.

    Raises:
        PlanError: the library was not loaded.
    """
    from bitsandbytes import cextension

    if device.startswith("cuda") and isinstance(cextension.lib, cextension.ErrorHandlerMockBNBNativeLibrary):
        why = cextension.lib.error_msg.partition("\n")[0]
        raise PlanError(
            f"{setting}: bitsandbytes cannot load its library for this GPU ({why})",
            action=f"install what it lacks, or set {setting} to {instead}",
        )


def _package() -> Path | None:
    try:
        spec = find_spec("torch")
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec is not None and spec.origin else None
