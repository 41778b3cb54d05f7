"""Files as the system keeps them in memory, so that nobody starts from a cold disk: what is still there depends on who
ran before, and on how much memory that took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

READ = (".pyc", ".so", ".json", ".safetensors")
"""What libraries and models are loaded from; `.so` with a version behind it too."""
PIECE = 2**22


def read_in(*folders: Path) -> int:
    """Read what is loaded from these folders; how many bytes that was."""
    buffer, found = bytearray(PIECE), 0
    for file in files(*folders):
        try:
            with file.open("rb", buffering=0) as reading:
                while count := reading.readinto(buffer):
                    found += count
        except OSError:  # a link to nowhere, a file that nobody may read: nobody loads it either
            continue
    return found


def files(*folders: Path) -> Iterator[Path]:
    """Those that are read, one folder after the other."""
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            if (file.suffix in READ or ".so." in file.name) and file.is_file():
                yield file
