"""Records the numbers of small runs, and says later which of them moved: for a change that should move none.

    python tests/bits/record.py --write before.json      # on the code before the change
    python tests/bits/record.py --compare before.json    # on the code after it: exit code 1 if anything differs

The code that is examined is the one that this interpreter finds: `ft` beside it is run. Only what users see is used
(recipes, commands, HTTP, files of run folders), so that the same script runs on code whose inside is another. To
compare two versions, give each an environment of its own and take this folder from one of them.

Recorded are, for each recipe of `cases.py`, a SHA-256 of every tensor of the artifact, every value of every step
(losses, gradient norms, learning rates, counts) and every evaluation, to the last bit; what `ft merge` and `ft score`
make of two of them; a run that went on from a checkpoint; and the answers of `ft serve` to the Python client, to plain
HTTP and to the public Tinker client (if it is installed). Times, speeds and memory are left out.

Numbers are promised to be the same to the bit for one version of torch, one kind of processor and one number of
threads. The record names them, and comparing warns where they differ: then a difference may be the machine's.

`--only NAME` takes one case. `--set KEY=VALUE` changes a setting of every recipe. It is there to see that a change is
noticed: `--compare before.json --only sft-lora --set optimizer.learning_rate=5.001e-3` has to fail.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from cases import CASES
from running import LIMITS, CommandFailed, Found, environment, run_case
from serving import run_service
from tiny import write_model, write_rows

SERVICE = "service"
PACKAGES = ("torch", "transformers", "numpy", "tokenizers", "tinker")
VECTORS = ("avx", "amx", "fma", "sse4", "sve", "asimd")
"""Beginnings of a processor's flags that decide which instructions a sum is done with."""


def main() -> int:
    """Run the cases; 0 if they are written or the same, 1 if something differs or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", type=Path, metavar="FILE", help="record into this file")
    mode.add_argument("--compare", type=Path, metavar="FILE", help="run again and compare with this record")
    parser.add_argument("--only", metavar="NAME", choices=[*(case.name for case in CASES), SERVICE])
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    before = json.loads(given.compare.read_text()) if given.compare else None
    found = record(given.only, given.overrides)
    here = machine()
    if before is None:
        failed = [f"{name}: {case['failed']}" for name, case in found.items() if "failed" in case]
        if not failed:
            given.write.write_text(json.dumps({"machine": here, "cases": found}, indent=1, sort_keys=True) + "\n")
        print(*failed or [f"written: {given.write}"], sep="\n")
        return 1 if failed else 0
    for name, value in sorted(before["machine"].items()):
        if value != here.get(name):
            print(f"warning: {name} was {value} and is {here.get(name)}: differences may come from that")
    expected = before["cases"]
    lines = differences({given.only: expected.get(given.only, {})} if given.only else expected, found)
    print(*lines or ["the same"], sep="\n")
    return 1 if lines else 0


def record(only: str | None, overrides: Sequence[str]) -> dict[str, Found]:
    """What each case has come to, one after the other in a scratch folder that is removed."""
    scratch = Path(tempfile.mkdtemp(prefix="bits-")).resolve()
    todo: dict[str, Callable[[], Found]] = {
        case.name: lambda case=case: run_case(case, scratch, overrides)  # type: ignore[misc]
        for case in CASES
    }
    todo[SERVICE] = lambda: run_service(scratch, overrides)
    found: dict[str, Found] = {}
    try:
        write_model(scratch / "model")
        write_model(scratch / "wide", head_size=16)  # which compiled attention takes, too
        write_rows(scratch)
        for name in [only] if only else todo:  # the first one compiles the kernels, which the others then find
            begun = time.monotonic()
            try:
                found[name] = todo[name]()
            except (CommandFailed, subprocess.TimeoutExpired) as error:
                found[name] = {"failed": str(error)}
            print(f"{name}: {len(found[name])} values, {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(scratch)
    return found


def differences(expected: Mapping[str, Found], found: Mapping[str, Found]) -> list[str]:
    """A line for every value that moved, is gone or is new."""
    lines = []
    for case in sorted(expected.keys() | found.keys()):
        before, now = expected.get(case, {}), found.get(case, {})
        if "failed" in now:
            lines.append(f"{case}: failed: {now['failed']}")
            continue
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                lines.append(f"{case}: {name}: {before.get(name, 'nothing')} -> {now.get(name, 'nothing')}")
    return lines


def machine() -> dict[str, str]:
    """What numbers may depend on, beside the code."""
    facts = {"python": platform.python_version(), "cpu": platform.processor() or platform.machine(), "vectors": ""}
    about = Path("/proc/cpuinfo")
    for line in about.read_text().splitlines() if about.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            facts["cpu"] = value.strip()
        elif name.strip() in ("flags", "Features"):
            facts["vectors"] = " ".join(sorted(flag for flag in value.split() if flag.startswith(VECTORS)))
    facts |= {name: os.environ.get(name, "not set") for name in LIMITS}
    facts["threads"] = environment(Path())["OMP_NUM_THREADS"]
    compiler = shutil.which("c++")
    said = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False) if compiler else None
    facts["compiler"] = said.stdout.partition("\n")[0] if said else "none"
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


if __name__ == "__main__":
    sys.exit(main())
