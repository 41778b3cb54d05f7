"""Plugins that were found already: a server makes an engine for each of its clients, and finds its plugins once."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from finetooth_core.plugins import local_files, manager
from finetooth_core.plugins.manager import Plugins


class Started:
    """The plugins of one process, by what the user named. What is installed meanwhile is not seen; a local file that
    was changed is read again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, Plugins] = {}

    def start(
        self, *, files: Sequence[str | Mapping[str, object]], blocked: Sequence[str], base: Path, strict: bool = True
    ) -> Plugins:
        """See `manager.start`.

        Raises:
            PluginError: as there; it is raised again the next time.
        """
        key = json.dumps([list(files), list(blocked), _states(files, base), strict], default=str)
        with self._lock:
            if key not in self._found:
                self._found[key] = manager.start(files=files, blocked=blocked, base=base, strict=strict)
            return self._found[key]


def _states(files: Sequence[str | Mapping[str, object]], base: Path) -> list[object]:
    """Where local files lie and how they stand; without any, the folder does not matter."""
    states: list[object] = []
    for file in files:
        use = str(file.get("use", "") if isinstance(file, Mapping) else file).strip()
        if local_files.is_file_reference(use):
            path = base / Path(use).expanduser()
            known = path.stat() if path.is_file() else None
            states.append([str(path), None if known is None else (known.st_mtime_ns, known.st_size)])
    return states
