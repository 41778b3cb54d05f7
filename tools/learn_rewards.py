"""Reward models and preferences on real data: what they reach on held-out prompts, with intervals, beside what length
alone would.

    python tools/learn_rewards.py SHARED OUTPUT [TASK ...] [--estimate] [--page] [-- KEY=VALUE ...]

SHARED holds `data/preference` and `data/process`. A task is named, or how its name begins: `shorter`, `polite-rm`,
`kto`. Each is a run of its own in OUTPUT/runs, and writes OUTPUT/TASK.json when it is done; a task that has its result
is not run again, so that an interrupted call can be repeated. `--estimate` only says how long everything would take,
from four steps of each. Settings behind `--` go to every run: `-- train.max_steps=100`.

`--page` only draws docs/learning.md and its charts from the results in tests/bench/results/learning; with that folder
as OUTPUT the results are where the page takes them from.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from learning.page import FOLDER, ROOT, draw
from learning.running import estimate, estimate_text, fingerprint, learn
from learning.tasks import Task, pick


def is_done(file: Path, task: Task, overrides: Sequence[str]) -> bool:
    """Whether the result is there, of the same settings."""
    if not file.exists():
        return False
    return bool(json.loads(file.read_text(encoding="utf-8"))["fingerprint"] == fingerprint(task, overrides))


def run(tasks: Sequence[Task], data: Path, output: Path, overrides: Sequence[str]) -> None:
    """Run what has no result yet."""
    for task in tasks:
        file = output / f"{task.name}.json"
        if is_done(file, task, overrides):
            print(f"{task.name}: done before", flush=True)
            continue
        began = time.monotonic()
        found = learn(task, data, output / "runs" / task.name, overrides)
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps(found) + "\n", encoding="utf-8")
        beside.replace(file)
        shutil.rmtree(output / "runs" / task.name)
        reached = {
            name: round(value, 3) if isinstance(value, float) else value for name, value in found["reached"].items()
        }
        print(f"{task.name}: {(time.monotonic() - began) / 60:.1f} min, {json.dumps(reached)}", flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run the tasks that are named, or all."""
    given, _, overrides = " ".join(arguments).partition(" -- ")
    words = [word for word in given.split() if not word.startswith("--")]
    if "--page" in given.split():
        draw(FOLDER, ROOT / "docs")
        return 0
    if len(words) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    data, output = Path(words[0]) / "data", Path(words[1])
    try:
        tasks = pick(words[2:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    output.mkdir(parents=True, exist_ok=True)
    if "--estimate" in given.split():
        left = [task for task in tasks if not is_done(output / f"{task.name}.json", task, overrides.split())]
        alike = {task.part_of or task.name: task for task in reversed(left)}  # runs of a comparison take as long
        each = {name: estimate(task, data, output / "runs/estimate", overrides.split()) for name, task in alike.items()}
        print(estimate_text({task.name: each[task.part_of or task.name] for task in left}))
        return 0
    run(tasks, data, output, overrides.split())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
