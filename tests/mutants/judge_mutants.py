"""Make small wrong changes, one at a time, and see whether the tests notice: `make mutants`.

    python tests/mutants/judge_mutants.py [--part losses,server] [--jobs 2] [--again]

Every change is made in a copy of the workspace, whose sources come before the installed ones; the tests that its list
names run there. What was judged before is kept in `.mutants.json`, so that a run that was stopped goes on; a verdict
holds as long as no source of any package and none of its tests has changed, and `--again` judges anew. Exits 1 below
97 % noticed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from mutant_lists import ROOT, Mutant, read

KEPT = ROOT / ".mutants.json"
GOAL = 0.97
SECONDS = 900.0
"""After so long the tests count as having noticed: a change that makes them hang is seen."""

NOTICED, MISSED, UNJUDGED = "noticed", "MISSED", "not judged"
FAILED, NONE_CHOSEN, TOO_LONG = 1, 5, 124
"""How pytest ends, and what stands for tests that did not end."""
FORKS = multiprocessing.get_context("forkserver")
"""Tests run in forks of one process, which has imported `IMPORTED`: that takes two thirds of the time of most."""
IMPORTED = ("torch", "transformers", "peft", "datasets", "hypothesis", "pytest", "fastapi", "httpx")
_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)


def listed(root: Path) -> list[str]:
    """Files of the workspace that git knows, or would."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted(name for name in names if name and (root / name).is_file())


def run_pytest(root: Path, environment: Mapping[str, str], arguments: Sequence[str], output: Path) -> None:
    """Run tests in this process, which is a fork that ends with pytest's exit code."""
    os.setsid()  # so that what the tests start ends with them
    opened = os.open(output, os.O_WRONLY)
    os.dup2(opened, 1)
    os.dup2(opened, 2)
    os.chdir(root)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(root), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.dont_write_bytecode = True
    import pytest  # after the fork, with the environment of the tests

    sys.exit(pytest.main(list(arguments)))


class Copy:
    """A copy of the workspace in a folder of its own.

    Args:
        folder: where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.root, self._sound = folder, set[str]()
        for name in listed(ROOT):
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

    def judge(self, mutant: Mutant) -> tuple[str, str]:
        """Whether the tests notice the change: `noticed`, `MISSED`, or why that cannot be said. Slow tests are asked
        when the others noticed nothing, exhaustive ones never. A test that fails on the unchanged code as well has
        noticed nothing.

        Returns:
            the verdict, and the first test that failed, by which a list can be made shorter.
        """
        path = self.root / mutant.file
        text = path.read_text()
        for marks in ("not slow and not thorough", "slow and not thorough"):
            path.write_text(mutant.applied(text))
            try:
                code, failed = self.tested(mutant.tests, mutant.only, marks)
            finally:
                path.write_text(text)
            if code == TOO_LONG:
                return NOTICED, ""
            if code == FAILED and failed:
                if failed not in self._sound and self.tested((failed,), "", "")[0] != 0:
                    return f"{UNJUDGED}: {failed} fails on the code as it is", ""
                self._sound.add(failed)
                return NOTICED, failed
            if code not in (0, NONE_CHOSEN):
                return f"{UNJUDGED}: pytest ended with {code}", ""
        return MISSED, ""

    def tested(self, tests: Sequence[str], only: str, marks: str) -> tuple[int, str]:
        """Run tests on the code as it is now, up to the first that fails.

        Returns:
            pytest's exit code, or `TOO_LONG`, and which test failed.
        """
        chosen = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no", "-rfE", *tests]
        chosen += (["-k", only] if only else []) + (["-m", marks] if marks else [])
        with tempfile.NamedTemporaryFile("r") as output:
            process = FORKS.Process(
                target=run_pytest, args=(self.root, self._environment, chosen, Path(output.name))
            )  # fmt: skip
            process.start()
            process.join(SECONDS)
            code = process.exitcode
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.join()
            found = _FAILED.search(output.read())
        return (TOO_LONG, "") if code is None else (code, found[1] if found else "")


class Keys:
    """What verdicts are kept by: changes with anything that they hang on.

    Args:
        root: of the workspace.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._hashes = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in listed(root)}
        # all of them: what a test imports, and what that imports, is known only once it has run
        self._sources = self._of(n for n in self._hashes if "/src/" in n or n == "constraints.txt")

    def __call__(self, mutant: Mutant) -> str:
        """Of the change, of all sources, and of its tests with what helps them."""
        folders = {name.partition("::")[0] for name in mutant.tests}
        folders |= {str(Path(name).parent) for name in folders if name.endswith(".py")}
        begins = tuple(f"{folder}/" for folder in folders)
        beside = (name for name in self._hashes if name.startswith(begins))
        return hashlib.sha256("\0".join([repr(mutant), self._sources, self._of(beside)]).encode()).hexdigest()

    def _of(self, names: Iterable[str]) -> str:
        found = "\n".join(f"{name} {self._hashes[name]}" for name in names)
        return hashlib.sha256(found.encode()).hexdigest()


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
    key = Keys()
    left = [one for one in mutants if known.get(key(one)) not in (NOTICED, MISSED)]
    FORKS.set_forkserver_preload(list(IMPORTED))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies: SimpleQueue[Copy] = SimpleQueue()
        for n in range(chosen.jobs):
            copies.put(Copy(Path(folder) / str(n)))

        def judged(mutant: Mutant) -> tuple[Mutant, str, str, float]:
            begun = time.monotonic()
            copy = copies.get()
            try:
                return mutant, *copy.judge(mutant), time.monotonic() - begun
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(chosen.jobs) as pool:
            for mutant, verdict, failed, seconds in pool.map(judged, left):
                print(f"{verdict:>10}  {seconds:5.0f} s  {mutant.part}: {mutant.name}  {failed}", flush=True)
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
