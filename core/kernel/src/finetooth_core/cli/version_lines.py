"""The further lines of `ft --version`: facts for a bug report, only from metadata."""

from __future__ import annotations

import platform
from collections import Counter
from importlib.metadata import distributions, entry_points, version

from finetooth_core.plugins.versions import parse

SEVERAL = 4
"""Number of plugins that must require a library for it to be listed."""


def installed_lines() -> list[str]:
    """Python with the libraries, then the plugins: those of the core's own version counted, every other one named."""
    dists = {entry.dist.name: entry.dist for entry in entry_points(group="finetooth") if entry.dist is not None}
    required = Counter[str]()
    for dist in dists.values():
        required.update({requirement.name for text in dist.requires or () if (requirement := parse(text)) is not None})
    libraries = [f"python {platform.python_version()}"]
    named = sorted(name for name, count in required.items() if count >= SEVERAL and not _is_ours(name))
    libraries += [f"{name} {library.version}" for name in named for library in [*distributions(name=name)][:1]]
    own = version("finetooth-core")
    numbers = {name: dist.version for name, dist in sorted(dists.items())}
    others = [f"{name} {number}" for name, number in numbers.items() if not (_is_ours(name) and number == own)]
    count = len(dists) - len(others)
    plugins = [f"{count} of finetooth's own ({own})"] if count else []
    return [", ".join(libraries), "plugins: " + (", ".join([*plugins, *others]) or "none")]


def _is_ours(name: str) -> bool:
    return name.startswith("finetooth-")
