"""Build every first-party wheel and import it in an environment that holds only what it declares.

For each package the environment is the closure of its declared dependencies, taken from what is installed: a fresh
process sees only the top-level modules of those distributions. An import of anything undeclared fails there; a module
that wants one of the package's optional dependencies is named with it.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PATTERNS = ("hooks/*", "core/*", "kernels/*", "plugins/*/*", "contrib/*")
GUARD = """
import importlib, pkgutil, sys
allowed, package, known, optional = set(sys.argv[1].split(",")), sys.argv[2], set(sys.argv[3].split(",")), sys.argv[4]
class Declared:
    # what was not declared is not there: for an import and for a library that asks whether it is
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        return None if top in known - allowed else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Declared(finder) for finder in sys.meta_path]
module = importlib.import_module(package)
names = [m.name for m in pkgutil.walk_packages(module.__path__, package + ".") if not m.name.endswith("__main__")]
left = set()
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in optional.split(","):
            raise
        left.add(f"{name.removeprefix(package + '.')} ({error.name})")
rest = f", without what is optional: {', '.join(sorted(left))}" if left else ""
print(f"{package}: {1 + len(names) - len(left)} modules{rest}")
"""


def normal(name: str) -> str:
    """A distribution name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(required: list[Requirement]) -> set[str]:
    """The distributions and all that they require, extras they ask for included, as installed here."""
    seen: set[tuple[str, str]] = set()
    waiting = [(normal(one.name), extra) for one in required for extra in ("", *one.extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            texts = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        for one in map(Requirement, texts):
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(normal(one.name), other) for other in ("", *one.extras)]
    return {name for name, _ in seen}


def installed(requirement: str) -> bool:
    """Whether there is any version of it here: packages whose own dependencies are large are installed by who wants
    them, and their modules are named with what they lack."""
    try:
        metadata.version(Requirement(requirement).name)
    except metadata.PackageNotFoundError:
        return False
    return True


def main() -> int:
    """Check every package; the exit code counts the faults."""
    tops = {top: {normal(d) for d in dists} for top, dists in metadata.packages_distributions().items()}
    faults = 0
    folders = sorted({path.parent for pattern in PATTERNS for path in ROOT.glob(f"{pattern}/pyproject.toml")})
    with tempfile.TemporaryDirectory() as scratch:
        for folder in folders:
            project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
            command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", scratch, str(folder)]
            subprocess.run(command, check=True, capture_output=True)
            wheel = max(Path(scratch).glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)
            unpacked = Path(scratch) / wheel.stem
            zipfile.ZipFile(wheel).extractall(unpacked)
            needed = closure([Requirement(d) for d in (project["name"], *project.get("dependencies", []))])
            allowed = {top for top, dists in tops.items() if dists & needed}
            extras = [d for extra in project.get("optional-dependencies", {}).values() for d in extra]
            optional = {normal(Requirement(d).name) for d in extras}
            optional |= {normal(Requirement(d).name) for d in project.get("dependencies", []) if not installed(d)}
            optional |= {top for top, dists in tops.items() if dists & optional}
            packages = [path.parent.name for path in unpacked.glob("*/__init__.py")]
            for package in packages:
                arguments = [",".join(sorted(allowed | set(packages))), package, ",".join(sorted(tops))]
                arguments.append(",".join(sorted(optional)))
                # -P and the wheel first: the files under test are those of the wheel, not of the clone
                process = subprocess.run(
                    [
                        sys.executable,
                        "-P",
                        "-c",
                        f"import sys; sys.path.insert(0, {str(unpacked)!r})\n{GUARD}",
                        *arguments,
                    ],
                    capture_output=True,
                    text=True,
                    cwd=scratch,
                )
                print(process.stdout.strip() or f"{package}: {process.stderr.strip().splitlines()[-1]}")
                faults += process.returncode != 0
    print(f"{len(folders)} wheels, {faults} faults")
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main())
