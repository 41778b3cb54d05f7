"""Measure the board's first paint over many runs, in a headless Chromium.

    python tools/measure_board.py [--runs 1000] [--rounds 5] [--page]

Prints milliseconds from the request to the first contentful paint, for a board that has read no run yet and for one
that has. Nothing is asserted: the figures are of this machine. `--page` writes them to docs/benchmarks/board.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

PAGE = Path(__file__).resolve().parents[1] / "docs/benchmarks/board.md"
HEAD = """# The board over many runs

How long a browser waits until it paints the list of `ft board`, where `runs/` holds {runs:,} runs of 200 steps:
`python tools/measure_board.py --page`. The newest 100 are listed.

| first contentful paint | median, ms | most, ms |
|---|---|---|
"""
PAINTED = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def make_runs(count: int) -> None:
    """Folders of runs of 200 steps below `runs`."""
    for number in range(count):
        folder = Path(f"runs/r{number:04}")
        folder.mkdir(parents=True)
        (folder / "run.json").write_text('{"id": "1"}')
        (folder / "recipe.yaml").write_text("model: toy\n")
        plan = {"recipe": {"model": "toy"}, "picks": {"method": "a:sft"}, "total_steps": 200}
        (folder / "plan.json").write_text(json.dumps(plan))
        steps = ({"event": "step", "step": step, "loss": 1 / step, "seconds": 1.0} for step in range(1, 201))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
        (folder / "result.json").write_text('{"status": "done", "steps": 200}')


def painted(page: Page, address: str) -> float:
    """Milliseconds until something is seen."""
    page.goto(address)
    while page.evaluate(PAINTED) is None:  # `wait_for_function` evaluates a text, which the board's policy forbids
        time.sleep(0.05)
    return float(page.evaluate(PAINTED))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", action="store_true", help="write the figures to the page")
    chosen = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as place, sync_playwright() as playwright:
        os.chdir(place)
        make_runs(chosen.runs)
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        times: dict[str, list[float]] = {"first request of a board": [], "second request": []}
        for _ in range(chosen.rounds):
            command = [sys.executable, "-m", "finetooth", "board", "--port", "0"]
            board = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert board.stdout is not None
            found = re.search(r"at (http\S+)", board.stdout.readline())
            assert found is not None
            page = browser.new_page()
            for told in times.values():
                told.append(painted(page, found[1]))
            board.terminate()
            board.wait()
        browser.close()
    load = os.getloadavg()[0]
    rows = "".join(f"| {name} | {statistics.median(each):.0f} | {max(each):.0f} |\n" for name, each in times.items())
    here = f"{os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, {date.today():%d %B %Y}"
    if chosen.page:
        PAGE.write_text(f"{HEAD.format(runs=chosen.runs)}{rows}\n{chosen.rounds} rounds on {here}.\n", encoding="utf-8")
    for name, values in times.items():
        print(f"{name}, {chosen.runs:,} runs: median {statistics.median(values):.0f} ms, most {max(values):.0f} ms")


if __name__ == "__main__":
    main()
