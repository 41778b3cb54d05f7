"""Finds installed distributions with plugins by reading their `.dist-info` folders.

`importlib.metadata` finds the same ones (a test compares the two), but importing it costs more than reading all the
folders.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetooth_core.plugins.versions import canonical

GROUP = "finetooth"
"""The entry point group of plugins."""

SUFFIX = ".dist-info"


@dataclass(frozen=True)
class Installed:
    """A distribution with entry points in the group.

    Attributes:
        distribution: canonical name.
        version: of the distribution.
        references: values of its entry points, by name.
        requires: its declared requirements, as text.
        folder: its `.dist-info` folder.
        shadowed: further `.dist-info` folders of the same name, left over or hidden by this one.
    """

    distribution: str
    version: str
    references: tuple[tuple[str, str], ...]
    requires: tuple[str, ...]
    folder: Path
    shadowed: tuple[Path, ...] = ()


def discover(path: Sequence[str] | None = None) -> tuple[Installed, ...]:
    """Distributions with plugins on `path` (default `sys.path`), sorted by name. The first distribution of a name wins,
    as for imports."""
    first: dict[str, tuple[str, str]] = {}
    hidden: dict[str, list[Path]] = {}
    seen_folders: set[str] = set()
    for place in sys.path if path is None else path:
        place = os.path.realpath(place or ".")
        if place in seen_folders:
            continue
        seen_folders.add(place)
        try:
            names = sorted(name for name in os.listdir(place) if name.endswith(SUFFIX))  # noqa: PTH208 (faster)
        except OSError:
            continue  # a path entry that is not a folder has no distributions
        for name in names:
            distribution = canonical(name[: -len(SUFFIX)].partition("-")[0])
            if distribution not in first:
                first[distribution] = (place, name)
                continue
            shown = Path(*first[distribution])
            if first[distribution][0] == place and _installed_last(Path(place, name)) > _installed_last(shown):
                first[distribution] = (place, name)  # an older version was left over in the same folder
                hidden.setdefault(distribution, []).append(shown)
            else:
                hidden.setdefault(distribution, []).append(Path(place, name))
    installed = []
    for distribution, (place, name) in sorted(first.items()):
        references = _entry_points(f"{place}/{name}/entry_points.txt")
        if references:
            version, requires = _metadata(Path(place, name))
            shadowed = tuple(hidden.get(distribution, ()))
            installed.append(Installed(distribution, version, references, requires, Path(place, name), shadowed))
    return tuple(installed)


def _installed_last(folder: Path) -> tuple[bool, float]:
    """Of two versions in one folder, the complete one that was installed last is in use."""
    metadata = folder / "METADATA"
    return metadata.is_file(), folder.stat().st_mtime


def _entry_points(file: str) -> tuple[tuple[str, str], ...]:
    """Names and values in the group of plugins."""
    try:
        with open(file, encoding="utf-8") as opened:  # noqa: PTH123 (a Path for each of hundreds of folders is slow)
            text = opened.read()
    except (OSError, UnicodeDecodeError):
        return ()
    if f"[{GROUP}]" not in text:
        return ()
    pairs, inside = [], False
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            inside = line == f"[{GROUP}]"
        elif inside and "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            pairs.append((name.strip(), value.partition("[")[0].strip()))
    return tuple(sorted(pairs))


def _metadata(folder: Path) -> tuple[str, tuple[str, ...]]:
    """Version and requirements, from the headers of METADATA; the folder's name tells the version if there is none."""
    version, requires = folder.name[: -len(SUFFIX)].partition("-")[2], []
    try:
        text = (folder / "METADATA").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return version, ()
    for line in text.splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        if key == "Version":
            version = value.strip()
        elif key == "Requires-Dist":
            requires.append(value.strip())
    return version, tuple(requires)
