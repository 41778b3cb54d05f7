"""Reads the folder of a run, running, done or broken, for tables, reports and views.

It reads only files that trainers and trackers of the run wrote (`run.json`, `recipe.yaml`, `plan.json`, `result.json`,
`metrics.jsonl`), as JSON and text. An unreadable file counts as missing, and `Recorded.problems` names it.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_toolbox.files.locks import FILE as LOCK

METRICS = "metrics.jsonl"
BEGUN = ("run.json", "recipe.yaml")
"""Files in every folder of a run that has begun."""
PLAIN_NAME = re.compile(r"[\w][\w.+-]*")
"""A name that cannot be a path."""

Point = tuple[int, float]
"""A step with a value."""


@dataclass(frozen=True)
class Recorded:
    """The information about a run in its folder.

    Attributes:
        folder: of the run.
        status: `done`, `stopped`, `interrupted` or `failed`, from result.json; `running` while a process holds the
            folder; `unfinished` for a killed run.
        reason: the reason for its end, one line.
        began: time of the folder's first file, seconds since 1970.
        recipe: the text of recipe.yaml.
        plan, result: contents of the files; empty if missing.
        steps: reports of the steps from metrics.jsonl.
        evaluations: likewise.
        problems: files that cannot be read, one line each.
    """

    folder: Path
    status: str
    reason: str
    began: float
    recipe: str
    plan: Mapping[str, Any]
    result: Mapping[str, Any]
    steps: tuple[Mapping[str, Any], ...]
    evaluations: tuple[Mapping[str, Any], ...]
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        last = int(self.steps[-1]["step"]) if self.steps else 0
        return int(self.result.get("steps") or last) if self.status != "running" else last

    @property
    def total_steps(self) -> int | None:
        """Planned optimizer steps; None if unknown."""
        return self.plan.get("total_steps")

    @property
    def model(self) -> str:
        """The base model's name."""
        model = self.plan.get("recipe", {}).get("model", "")
        return str(model.get("name", "") if isinstance(model, Mapping) else model)

    def pick(self, kind: str) -> str:
        """Short name of the picked entry of a kind; empty if unknown."""
        return str(self.plan.get("picks", {}).get(kind, "")).rpartition(":")[2]

    @property
    def seconds(self) -> float:
        """Time of the run in all its processes."""
        recorded = self.result.get("seconds")
        if recorded is not None:
            return float(recorded)
        return sum(float(report.get("seconds") or 0) for report in self.steps)

    @property
    def last(self) -> dict[str, float]:
        """The last value of each metric, `loss` and `eval/NAME`, from metrics.jsonl, else from result.json."""
        recorded = {name: value for name, value in (self.result.get("metrics") or {}).items() if value is not None}
        recorded |= {name: points[-1][1] for name, points in self.series().items()}
        return {name: value for name, value in recorded.items() if name == "loss" or name.startswith("eval/")}

    @property
    def best(self) -> Mapping[str, float]:
        """The best value of each evaluator's first metric, from result.json, else from the evaluations."""
        recorded = self.result.get("best")
        if recorded:
            return {name: value for name, value in recorded.items() if value is not None}
        values: dict[str, float] = {}
        for evaluation in self.evaluations:
            name, value = next(iter(evaluation.get("metrics", {}).items()), ("", None))
            if value is not None:
                better = max if evaluation.get("higher_is_better", True) else min
                values[f"eval/{name}"] = better(value, values.get(f"eval/{name}", value))
        return values

    def series(self) -> dict[str, list[Point]]:
        """Values by step: figures of the steps under their names, `eval/NAME` of evaluations. Values that are not
        finite are only in metrics.jsonl."""
        points: dict[str, list[Point]] = {}
        for report in self.steps:
            step = int(report["step"])
            for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
                _put(points, name, step, report.get(name))
            for name, value in (report.get("metrics") or {}).items():
                _put(points, name, step, value)
        for evaluation in self.evaluations:
            for name, value in (evaluation.get("metrics") or {}).items():
                _put(points, f"eval/{name}", int(evaluation["step"]), value)
        return points


def _put(series: dict[str, list[Point]], name: str, step: int, value: Any) -> None:
    if isinstance(value, int | float) and math.isfinite(value):
        series.setdefault(name, []).append((step, float(value)))


def plain_name(name: str, argument: str) -> str:
    """Check a name of a run or a recipe from an external caller, which must not reach another folder.

    Args:
        argument: the caller's argument, for the message.

    Raises:
        UserError: the name could be a path.
    """
    if not PLAIN_NAME.fullmatch(name):
        raise UserError(
            f"{argument}: {name!r} is not a plain name", action="letters, digits, and - _ . + inside; no slashes"
        )
    return name


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder."""
    return all((folder / name).is_file() for name in BEGUN)


def runs_below(folder: Path) -> list[Path]:
    """Folders of runs in a folder, in the order of their beginning."""
    try:
        runs = [path for path in folder.iterdir() if path.is_dir() and is_run(path)]
    except OSError:
        return []
    return sorted(runs, key=lambda path: (_began(path), path.name))


def groups_below(folder: Path) -> dict[Path, list[Path]]:
    """Folders in a folder that contain runs and are not runs, such as that of a sweep, with their runs."""
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir() and not is_run(path))
    except OSError:
        return {}
    return {path: runs for path in inside if (runs := runs_below(path))}


def read_run(folder: Path) -> Recorded:
    """The current information in the folder of a run."""
    problems: list[str] = []
    plan, result = (_json(folder / name, problems) for name in ("plan.json", "result.json"))
    steps, evaluations = [], []
    for line in _lines(folder / METRICS, problems):
        if line.get("event") == "step":
            steps.append(line)
        elif line.get("event") == "evaluation":
            evaluations.append(line)
    running = is_running(folder)
    status = "running" if running else str(result.get("status", "unfinished"))
    return Recorded(
        folder,
        status,
        "" if running else str(result.get("reason") or ""),
        _began(folder),
        _text(folder / "recipe.yaml", problems),
        plan,
        result,
        tuple(steps),
        tuple(evaluations),
        tuple(problems),
    )


def is_running(folder: Path) -> bool:
    """Whether a process of this machine, or of another one that shares the disk, holds the folder of a run."""
    try:
        import fcntl

        with (folder / LOCK).open() as file:
            holder = file.read().strip()
            if holder.isdecimal() and not _lives(int(holder)):
                return False  # this check must never make a new run fail
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
            return False
    except (ImportError, OSError):
        return False


def size_of(folder: Path) -> dict[str, int]:
    """Bytes that each thing in a folder takes, by its name; a link counts with its own size."""
    sizes = {}
    for path in sorted(folder.iterdir()):
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
        sizes[path.name] = sum(file.lstat().st_size for file in inside if file.is_symlink() or file.is_file())
    return sizes


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a folder of another user
        return True
    return True


def _began(folder: Path) -> float:
    try:
        return (folder / "run.json").stat().st_mtime
    except OSError:
        return 0.0


def _text(path: Path, problems: list[str]) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror}")
        return ""


def _json(path: Path, problems: list[str]) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problems.append(f"{path.name}: {error}")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path.name}: not a mapping")
        return {}
    return content


def _lines(path: Path, problems: list[str]) -> Iterator[Mapping[str, Any]]:
    """Lines of metrics.jsonl; an incomplete last line is still being written, and is skipped."""
    if not path.exists():
        return
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        problems.append(f"{path.name}: {error.strerror}")
        return
    broken = 0
    for line in lines[:-1]:
        try:
            record = json.loads(line)
            ok = isinstance(record, dict) and isinstance(record.get("step"), int)
        except ValueError:
            ok = False
        if ok:
            yield record
        else:
            broken += 1
    if broken:
        problems.append(f"{path.name}: {broken} line{'s' if broken > 1 else ''} that cannot be read")


def find_run(reference: str, below: Path = Path("runs")) -> Path | None:
    """The folder of a reference to a run: a path, or a name under `runs/`, such as that of a trial,
    `recipe-sweep/trial-3`; None if it is not a run. The run may have been killed before its plan was written."""
    try:
        path = Path(reference).expanduser()
        places = [path] if path.is_absolute() or ".." in path.parts else [path, below / path]
        return next((place for place in places if is_run(place)), None)
    except (OSError, RuntimeError, ValueError):  # too long for a path, or ~ of an unknown user
        return None
