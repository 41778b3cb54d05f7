"""What a small model learns by reward alone: each task with several seeds, held-out figures with intervals, curves.

    python tools/learn_online.py SHARED OUTPUT [TASK ...] [--seeds N] [--page] [-- KEY=VALUE ...]

SHARED holds the folder `data`. Every task and seed is a run, or several, in OUTPUT/runs, and writes
OUTPUT/TASK-SEED.json when it is done; what has its result is not run again, so that an interrupted call can be
repeated. Settings behind `--` go to every run: `-- train.max_steps=4`. `--page` only draws docs/benchmarks/rl.md and
its charts from tests/bench/results/rl.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from learning.online_page import draw
from learning.online_running import fingerprint, learn
from learning.online_tasks import ROOT, OnlineTask, pick


def is_done(file: Path, task: OnlineTask, seed: int, data: Path, folder: Path, overrides: Sequence[str]) -> bool:
    """Whether the result is there, of the same settings."""
    if not file.exists():
        return False
    told = fingerprint(task.runs(data, folder, seed), folder, overrides)
    return bool(json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == told)


def main(arguments: Sequence[str]) -> int:
    """Run the tasks that are named, or all."""
    given, _, overrides = " ".join(arguments).partition(" -- ")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, nargs="?", help="folder that holds `data`")
    parser.add_argument("output", type=Path, nargs="?", help="folder of the results")
    parser.add_argument("tasks", nargs="*", help="by name; default all")
    parser.add_argument("--seeds", type=int, default=1, help="how many, from 0")
    parser.add_argument("--page", action="store_true", help="only draw the page")
    told = parser.parse_args(given.split())
    if told.page:
        draw(ROOT / "docs")
        return 0
    if told.output is None:
        parser.error("give SHARED and OUTPUT")
    try:
        tasks = pick(told.tasks)
    except ValueError as error:
        parser.error(str(error))
    told.output.mkdir(parents=True, exist_ok=True)
    data = (told.shared / "data").absolute()
    for seed in range(told.seeds):  # one seed of everything before the second of anything
        for task in tasks:
            file = told.output / f"{task.name}-{seed}.json"
            folder = (told.output / "runs" / file.stem).absolute()
            if is_done(file, task, seed, data, folder, overrides.split()):
                print(f"{file.stem}: done before", flush=True)
                continue
            found = learn(task, seed, data, folder, overrides.split())
            beside = file.with_suffix(".new")
            beside.write_text(json.dumps(found) + "\n", encoding="utf-8")
            beside.replace(file)
            shutil.rmtree(folder)
            ends = {name: run.get("after", {}).get("share") for name, run in found["runs"].items()}
            print(f"{file.stem}: {json.dumps(ends)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
