"""What `ft --version` says beside its own version: what a report of a fault needs, from metadata alone."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, entry_points, version

STANDS_ON = ("torch", "transformers", "peft", "datasets", "numpy")


def installed_lines() -> list[str]:
    """Python with the libraries, then the plugins: those of the core's own version counted, every other one named."""
    libraries = [f"python {platform.python_version()}"]
    for name in STANDS_ON:
        try:
            libraries.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    found = {entry.dist.name: entry.dist.version for entry in entry_points(group="finetooth") if entry.dist is not None}
    own = version("finetooth-core")
    others = [f"{name} {number}" for name, number in sorted(found.items()) if not _is_ours(name, number, own)]
    count = len(found) - len(others)
    plugins = [f"{count} of finetooth's own ({own})"] if count else []
    return [", ".join(libraries), "plugins: " + (", ".join([*plugins, *others]) or "none")]


def _is_ours(name: str, number: str, own: str) -> bool:
    return name.startswith("finetooth-") and number == own
