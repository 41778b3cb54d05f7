"""Write which tests take over half a second, so that `make test` leaves them to `make slow`.

    python tools/time_tests.py REPORT

REPORT is what pytest wrote with --junitxml in a run of the tests that are not slow (`make times`). A case that was
listed and was not run stays. Tests of the whole house (layout, pages, messages) are not listed: each change can break
them. The first case of a file pays for imports and shared fixtures, which the next one would pay for in its place: it
is listed above three seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
LIST = ROOT / "tests/slow_cases.txt"
MOST, MOST_OF_FIRST = 0.5, 3.0
"""Seconds that a case may take, and the first of its file."""
WHOLE_HOUSE = ("tests/layout/", "tests/docs/", "tests/plugins/test_messages_name_what_exists.py")


def main(report: str) -> int:
    """Write the list; a case that is gone from its file is dropped with the file."""
    before = LIST.read_text(encoding="utf-8").splitlines()
    listed = {case for case in before if (ROOT / case.partition("::")[0]).is_file()}
    seen: set[str] = set()
    for case in ElementTree.parse(report).iter("testcase"):
        *folders, last = case.attrib["classname"].split(".")
        inner = []
        while folders and not (file := ROOT.joinpath(*folders, f"{last}.py")).is_file():
            inner.insert(0, last)
            *folders, last = folders
        if not folders:
            continue
        path = file.relative_to(ROOT).as_posix()
        name = "::".join([path, *inner, case.attrib["name"]])
        most = MOST if path in seen else MOST_OF_FIRST
        seen.add(path)
        if float(case.attrib["time"]) > most and not path.startswith(WHOLE_HOUSE):
            listed.add(name)
    LIST.write_text("".join(f"{case}\n" for case in sorted(listed)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
