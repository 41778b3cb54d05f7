"""What Linux says of memory, from made-up files."""

from __future__ import annotations

from pathlib import Path

import pytest
from finetooth_toolbox.host_memory import available_memory, total_memory

MIB = 2**20


def system(folder: Path, meminfo: str = "MemTotal: 9000 kB\nMemAvailable: 4096 kB\n", **group: str) -> dict[str, Path]:
    """Files as Linux has them: 4 MiB could be had, and this process holds 1 MiB."""
    proc, groups = folder / "proc", folder / "group"
    (proc / "self").mkdir(parents=True)
    groups.mkdir()
    (proc / "meminfo").write_text(meminfo)
    (proc / "self" / "status").write_text("Name:\tpython\nVmRSS:\t1024 kB\n")
    for name, text in group.items():
        (groups / f"memory.{name}").write_text(text)
    return {"proc": proc, "group": groups}


def test_what_the_process_holds_is_its_own(tmp_path: Path) -> None:
    assert available_memory(**system(tmp_path)) == 5 * MIB


@pytest.mark.parametrize(
    ("limit", "current", "stat", "expected"),
    [
        ("max\n", f"{MIB}\n", "", 5 * MIB),
        (f"{100 * MIB}\n", f"{MIB}\n", "", 5 * MIB),
        (f"{3 * MIB}\n", f"{2 * MIB}\n", "", 2 * MIB),
        (f"{3 * MIB}\n", f"{3 * MIB}\n", f"anon 7\ninactive_file {MIB}\nactive_file {MIB}\n", 3 * MIB),
        (f"{3 * MIB}\n", f"{4 * MIB}\n", "", MIB),
    ],
)
def test_a_containers_limit_counts(tmp_path: Path, limit: str, current: str, stat: str, expected: int) -> None:
    assert available_memory(**system(tmp_path, max=limit, current=current, stat=stat)) == expected


def test_what_the_system_does_not_tell_is_not_known(tmp_path: Path) -> None:
    assert available_memory(**system(tmp_path, meminfo="MemTotal: 9000 kB\n")) is None
    assert available_memory(tmp_path / "nowhere", tmp_path) is None


def test_this_machine_has_memory() -> None:
    assert total_memory() > 0
