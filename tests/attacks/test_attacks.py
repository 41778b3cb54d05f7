"""A short form of `make attacks`, and that what judges can tell a server that does not hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
if str(HERE) not in sys.path:
    sys.path.insert(0, str(HERE))

pytest.importorskip("finetooth_server")
pytest.importorskip("tinker")

from attacking.campaign import Campaign, chosen  # noqa: E402
from attacking.ground import ATTACKS  # noqa: E402
from attacking.judges import BUSY, QUIET, Asked, Verdict, problems  # noqa: E402
from attacking.page import render  # noqa: E402
from attacking.server import join_group  # noqa: E402


def test_each_attack_has_a_name_and_a_line_of_its_own() -> None:
    assert len({one.name for one in ATTACKS}) == len({one.what for one in ATTACKS}) == len(ATTACKS) >= 60
    assert 10 <= len(chosen(True)) < len(chosen(False)) == len(ATTACKS)


@pytest.mark.parametrize(
    ("health", "during", "word"),
    [
        ([Asked(0, 0.1, "-")], [Asked(0, 1.9, "-")], ""),
        ([Asked(0, 1.5, "-")], [Asked(0, 1.0, "-")], "/health took 1.5 s"),
        ([Asked(0, 0.1, "status_503")], [Asked(0, 1.0, "-")], "/health: status_503"),
        ([Asked(0, 0.1, "-")], [Asked(0, 1.0, "-"), Asked(1, 6.0, "-")], "took 3.50 s, 1.00 s when it was quiet"),
        ([Asked(0, 0.1, "-")], [Asked(0, 1.0, "KeyError:'state'")], "another tenant: KeyError"),
        ([Asked(0, 0.1, "-")], [], "no turn of another tenant"),
    ],
)
def test_what_does_not_hold_is_told(health: list[Asked], during: list[Asked], word: str) -> None:
    found = problems(health, [Asked(0, 1.0, "-")], during, QUIET)
    assert (word in found[0]) if word else found == []


def test_on_a_busy_machine_what_is_slow_is_no_fault_but_what_hangs_is() -> None:
    quiet = [Asked(0, 0.2, "-")]
    assert problems([Asked(0, 2.0, "-")], quiet, [Asked(0, 9.0, "-")], BUSY) == []
    assert problems([Asked(0, 11.0, "-")], quiet, quiet, BUSY) == ["/health took 11.0 s"]
    assert "took 40.00 s" in problems([], quiet, [Asked(0, 40.0, "-")], BUSY)[0]


def test_the_page_says_what_got_through() -> None:
    held = Verdict("a", "what | a", "", "/tmp/f-1/tiny: refused", 0.1, 1.0, 1.5, 0, 3.0)
    broke = Verdict("b", "what b", "/health took 4.0 s", "", 4.0, 1.0, 9.0, 2**20, 3.0)
    page = render(Campaign([held, held, broke], bound="4 GiB"), {"processor": "p"}, "2026-01-02")
    assert "**1 of 3 attacks failed**" in page and "**/health took 4.0 s**" in page and "what \\| a" in page
    assert "/tmp" not in page and "a folder: refused" in page


@pytest.mark.parametrize("bound", ["memory.max", "memory.limit_in_bytes", ""])
def test_a_server_joins_a_control_group_that_bounds_its_memory(tmp_path: Path, bound: str) -> None:
    """A folder that looks like one of version 2, of version 1, and like none."""
    own = tmp_path / "own"
    if not bound:
        with pytest.raises(RuntimeError, match="bounds no memory"):
            join_group(own, 2**30, 17)
        return
    own.mkdir()
    (own / bound).write_text("max")
    join_group(own, 2**30, 17)
    assert {file.name: file.read_text() for file in own.iterdir()} == {bound: str(2**30), "cgroup.procs": "17"}


@pytest.mark.slow
def test_a_server_holds_against_the_short_form(tmp_path: Path) -> None:
    """How much time others lose is judged by `make attacks`: this one runs beside other tests."""
    done = subprocess.run([sys.executable, str(HERE / "run.py"), "--short", "--busy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
