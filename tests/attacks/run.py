"""`make attacks`: attack a server of our own, and write docs/attacks.md; exit code 1 if it did not hold.

python tests/attacks/run.py [--short] [--busy] [--only WORD ...] [--group FOLDER] [--output FILE]
"""

from __future__ import annotations

import argparse
import datetime
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "bench")]

from attacking import campaign, judges, page  # noqa: E402
from harness.machine import machine  # type: ignore[import-not-found]  # noqa: E402

OUTPUT = Path(__file__).parents[2] / "docs" / "attacks.md"


def main() -> int:
    """Attack, and say how it went."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="the short form alone, which takes two minutes")
    parser.add_argument("--busy", action="store_true", help="the machine does other work: only what hangs is too slow")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="attacks whose name holds a word")
    parser.add_argument("--group", type=Path, help="a control group's folder below which one may be made")
    parser.add_argument("--output", type=Path, help="default is docs/attacks.md, if all of them ran")
    given = parser.parse_args()
    attacks = campaign.chosen(given.short, given.only)
    if not attacks:
        parser.error(f"no attack is named by {given.only}")
    with tempfile.TemporaryDirectory(prefix="finetooth-attacks-") as folder:
        limits = judges.BUSY if given.busy else judges.QUIET
        found = campaign.run(
            Path(folder), attacks, group=given.group, say=lambda line: print(line, flush=True), limits=limits
        )
    output = given.output or (OUTPUT if attacks == campaign.chosen(False) and not given.busy else None)
    if output is not None:
        output.write_text(page.render(found, machine(), datetime.date.today().isoformat()), encoding="utf-8")
    for one in found.wrong:
        print(one)
    print(f"{len(found.failed)} of {len(attacks)} attacks failed; {found.restarts} restarts; {found.seconds:.0f} s")
    print(f"memory: {found.level / 2**20:.0f} MiB, then {found.end / 2**20:.0f}, {found.peak / 2**20:.0f} at most")
    return 1 if found.failed or found.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
