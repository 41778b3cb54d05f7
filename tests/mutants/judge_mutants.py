"""Make small wrong changes, one at a time, and see whether the tests notice: `make mutants`.

    python tests/mutants/judge_mutants.py [--part losses,server] [--jobs 2] [--again]

Every change is made in a copy of the workspace, whose sources come before the installed ones; the tests that its list
names run there. What was judged before is kept in `.mutants.json` by the texts of everything that was involved, so that
a run that was stopped goes on; `--again` judges anew. Exits 1 below 95 % noticed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutant_lists import ROOT, Mutant, read

KEPT = ROOT / ".mutants.json"
GOAL = 0.95
SECONDS = 900.0
"""After so long the tests count as having noticed: a change that makes them hang is seen."""

NOTICED, MISSED, UNJUDGED = "noticed", "MISSED", "not judged"


class Copy:
    """A copy of the workspace in a folder of its own.

    Args:
        folder: where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.root = folder
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        for name in filter(None, files):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        sources = [path.parent.parent for path in sorted(folder.glob("**/src/*/__init__.py"))]
        self._environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(map(str, sources))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "FT_SHARED": os.environ.get("FT_SHARED", str(ROOT.parent / "shared")),
        }

    def judge(self, mutant: Mutant) -> str:
        """Whether the tests notice the change: `noticed`, `MISSED`, or why that cannot be said."""
        path = self.root / mutant.file
        text = path.read_text()
        path.write_text(mutant.applied(text))
        try:
            code = self.tested(mutant)
        finally:
            path.write_text(text)
        return {0: MISSED, 1: NOTICED, 124: NOTICED}.get(code, f"{UNJUDGED}: pytest ended with {code}")

    def tested(self, mutant: Mutant) -> int:
        """Exit code of pytest on the mutant's tests, on the code as it is now; 124 after too long."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests]
        command += ["-k", mutant.only] if mutant.only else []
        try:
            done = subprocess.run(
                command, cwd=self.root, env=self._environment, timeout=SECONDS, capture_output=True, check=False
            )
        except subprocess.TimeoutExpired:
            return 124
        return done.returncode


def key(mutant: Mutant) -> str:
    """Changes with anything that the verdict hangs on: the change, the file, and its tests' texts."""
    parts = [repr(mutant), (ROOT / mutant.file).read_text()]
    for name in mutant.tests:
        files = sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / name]
        parts += [file.read_text() for file in files]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def sound(copy: Copy, mutants: Iterable[Mutant]) -> dict[tuple[tuple[str, ...], str], bool]:
    """Whether the tests pass on the unchanged code, by what is run: those that fail anyway notice nothing."""
    found: dict[tuple[tuple[str, ...], str], bool] = {}
    for mutant in mutants:
        ran = (mutant.tests, mutant.only)
        if ran not in found:
            found[ran] = copy.tested(mutant) == 0
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", default="", help="lists, by name, with commas between them; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time")
    parser.add_argument("--again", action="store_true", help="judge what was judged before as well")
    chosen = parser.parse_args(arguments)
    parts = set(filter(None, chosen.part.split(",")))
    mutants = [one for one in read() if not parts or one.part in parts]
    known: dict[str, str] = json.loads(KEPT.read_text()) if KEPT.exists() and not chosen.again else {}
    left = [one for one in mutants if known.get(key(one)) not in (NOTICED, MISSED)]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for n in range(chosen.jobs):
            copies.put(Copy(Path(folder) / str(n)))
        first = copies.get()
        passes = sound(first, left)
        copies.put(first)

        def judged(mutant: Mutant) -> tuple[Mutant, str, float]:
            begun = time.monotonic()
            if not passes[mutant.tests, mutant.only]:
                return mutant, f"{UNJUDGED}: its tests fail on the code as it is", 0.0
            copy = copies.get()
            try:
                return mutant, copy.judge(mutant), time.monotonic() - begun
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(chosen.jobs) as pool:
            for mutant, verdict, seconds in pool.map(judged, left):
                print(f"{verdict:>10}  {seconds:5.0f} s  {mutant.part}: {mutant.name}", flush=True)
                known[key(mutant)] = verdict
                KEPT.write_text(json.dumps(known, indent=0))
    return report([(one, known[key(one)]) for one in mutants])


def report(verdicts: Sequence[tuple[Mutant, str]]) -> int:
    """Print how many were noticed, and each that was not; 1 below the goal."""
    noticed = sum(verdict == NOTICED for _, verdict in verdicts)
    for mutant, verdict in verdicts:
        if verdict != NOTICED:
            print(f"{verdict}: {mutant.part}: {mutant.name} ({mutant.file})")
    share = noticed / max(len(verdicts), 1)
    print(f"{noticed} of {len(verdicts)} noticed, {share:.1%}; the goal is {GOAL:.0%}")
    return 0 if share >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
