"""Time the first hour of three people in an environment that has finetooth's wheels alone: docs/benchmarks/people.md.

    python tools/time_people.py [--dist dist] [--page]

Builds the wheels if the folder has none, installs them into a fresh environment, and types tests/people there. With
`--page` the times are written to the page.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path

from make_dist import ROOT, build, install

PAGE = ROOT / "docs/benchmarks/people.md"
TESTS = "tests/people/test_people_first_hour.py"
HEAD = """# The first hour of three people

`make people` builds every wheel, installs them into a fresh environment, and types what a hobbyist, an engineer and a
researcher type there at a terminal, with a model of two layers, so that what is timed is finetooth and not the
training. [What is typed and what must come back](../../{tests}). Nobody
reads or thinks in these times.

| what they do | seconds |
|---|---|
"""


def main() -> int:
    """Install, type and write; the exit code of the tests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="the folder of the wheels")
    parser.add_argument("--page", action="store_true", help="write the times to the page")
    chosen = parser.parse_args()
    uv = str(Path(sys.executable).with_name("uv"))
    chosen.dist.mkdir(parents=True, exist_ok=True)
    wheels = sorted(chosen.dist.glob("*.whl")) or build(chosen.dist, uv)
    print(f"{len(wheels)} wheels in {chosen.dist}")
    with tempfile.TemporaryDirectory() as scratch:
        place, report = Path(scratch) / "environment", Path(scratch) / "report.xml"
        begun = time.monotonic()
        install(chosen.dist.resolve(), sys.executable, uv, place, "nbconvert", "ipykernel")
        times = {"an environment is made, finetooth and torch are installed": time.monotonic() - begun}
        print(f"installed in {time.monotonic() - begun:.0f} s")
        typed = [sys.executable, "-m", "pytest", TESTS, "-m", "slow", "-n0", "-p", "no:cacheprovider"]
        environment = {**os.environ, "FT_PEOPLE": str(place / "bin/ft")}
        ended = subprocess.run([*typed, f"--junit-xml={report}"], cwd=ROOT, env=environment, check=False)
        for case in ElementTree.parse(report).iter("testcase"):
            if not list(case):
                named = case.attrib["name"].removeprefix("test_").rstrip("]").replace("[", ": ")
                times[named.replace("_", " ")] = float(case.attrib["time"])
    if chosen.page and ended.returncode == 0:
        table = "".join(f"| {what} | {seconds:.0f} |\n" for what, seconds in times.items())
        machine = f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}, Python {platform.python_version()}"
        measured = f"Measured on {machine}, {date.today():%d %B %Y}."
        PAGE.write_text(f"{HEAD.format(tests=TESTS)}{table}\n{measured}\n", encoding="utf-8")
    return ended.returncode


if __name__ == "__main__":
    raise SystemExit(main())
