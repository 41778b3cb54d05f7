"""Kill a run, resume it, kill it again, and compare it bit for bit with one that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEASURED = ("seconds", "tokens_per_second", "memory", "memory_now", "flops_per_second", "mfu")
"""Values of a step that no two runs share."""
MOST_ATTEMPTS = 40
EARLY = 0.15
"""Share of a run's time in which it reads recipe, data and weights, and has not trained yet."""
EARLY_SHARE = 0.25
"""So many of the kills at random moments come then."""


@dataclass
class Zygote:
    """Starts commands; see `zygote.py`."""

    environment: Mapping[str, str]

    def __post_init__(self) -> None:
        script = Path(__file__).with_name("zygote.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **self.environment},
        )

    def run(self, folder: Path, *arguments: str, kill_after: float | None = None, kill_at: str = "") -> int:
        """Run `ft` with the arguments; returns its exit code, -9 if it was killed.

        Args:
            kill_after: seconds after which it is killed.
            kill_at: a point at which it kills itself.
        """
        order = {
            "arguments": arguments,
            "log": str(folder / "log.txt"),
            "environment": {"FT_KILL_AT": kill_at, "FT_CACHE": str(folder / "cache")},
            "folder": str(folder),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid = self._answer()["pid"]
        timer = threading.Timer(kill_after, os.kill, (pid, signal.SIGKILL)) if kill_after is not None else None
        if timer is not None:
            timer.start()
        status = self._answer()["status"]
        if timer is not None:
            timer.cancel()
        return status

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the zygote is gone")
        return json.loads(line)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Ended:
    """What a run that is done has left.

    Attributes:
        seconds: that it took.
    """

    folder: Path
    seconds: float


@dataclass
class Kills:
    """How a run was disturbed.

    Attributes:
        points: where or when each kill came.
        resumed: commands that went on with it.
    """

    points: list[str] = field(default_factory=list)
    resumed: int = 0


def undisturbed(zygote: Zygote, folder: Path, recipe: Mapping[str, Any]) -> Ended:
    """Run the recipe to its end.

    Raises:
        AssertionError: it failed; with the end of its log.
    """
    folder.mkdir(parents=True)
    write_recipe(folder, recipe)
    begun = time.monotonic()
    code = zygote.run(folder, "run", "recipe.json")
    assert code == 0, f"exit code {code}: {tail(folder)}"
    return Ended(folder / "run", time.monotonic() - begun)


def disturbed(
    zygote: Zygote, folder: Path, recipe: Mapping[str, Any], draw: random.Random, kills: int, seconds: float,
    points: tuple[str, ...] = (),
) -> Kills:  # fmt: skip
    """Run the recipe, kill it so many times, and go on until it is done.

    Args:
        seconds: that an undisturbed run takes: kills come at random within it, from its first millisecond on, some of
            them before it trains.
        points: instrumented points for the first kills.

    Raises:
        AssertionError: a resume failed; with the end of its log.
    """
    folder.mkdir(parents=True)
    write_recipe(folder, recipe)
    done = Kills()
    for _ in range(MOST_ATTEMPTS):
        begun = (folder / "run" / "recipe.yaml").is_file()  # all that a run needs to be resumed
        arguments = ("resume", "run") if begun else ("run", "recipe.json")
        done.resumed += begun
        after: float | None = None
        point = ""
        if len(done.points) < kills:
            waiting = points[len(done.points) :]
            point = waiting[0] if waiting else ""
            early = draw.random() < EARLY_SHARE
            after = None if point else draw.uniform(0.0, EARLY * seconds if early else seconds)
        code = zygote.run(folder, *arguments, kill_after=after, kill_at=point)
        if code == -signal.SIGKILL:
            done.points.append(point or f"{after:.2f} s")
            continue
        assert code == 0, f"{' '.join(arguments)}: exit code {code}: {tail(folder)}"
        if point:  # the process had fewer such calls: nothing was killed
            done.points.append(f"{point} (never came)")
        return done
    raise AssertionError(f"not done after {MOST_ATTEMPTS} attempts: {tail(folder)}")


def write_recipe(folder: Path, recipe: Mapping[str, Any]) -> None:
    """As a file with the run folder beside it."""
    (folder / "recipe.json").write_text(json.dumps({**recipe, "output": "run"}))


def left(run: Path) -> dict[str, Any]:
    """Everything that must be the same: hashes of the last state, of the artifact and of what was drawn in each step,
    and what was reported."""
    last = max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name.partition("-")[2]))
    trained = (one for one in (run / "artifact").rglob("*") if one.is_file())
    files = [*sorted((last / "engine").iterdir()), *sorted(trained)]
    for folder in ("rollouts", "rounds"):  # which prompts came when, and what was said to them
        files += sorted((run / folder).glob("*.jsonl"))
    hashes = {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "manifest.json"
    }
    state = json.loads((last / "state.json").read_text())
    kept = {key: state[key] for key in ("step", "epoch", "method", "plugins", "best", "evaluated_at", "random")}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    told = [plain(line) for line in lines if line["event"] in ("step", "evaluation")]
    return {"hashes": hashes, "state": kept, "told": told}


def rewound(run: Path, step: int) -> Path:
    """Make a run that has ended what it was right behind the checkpoint of a step, to be resumed.

    Returns:
        A copy beside it, called `whole`, of what it was.
    """
    whole = run.with_name("whole")
    shutil.copytree(run, whole)
    for kept in (run / "checkpoints").iterdir():
        if kept.is_dir() and kept.name.startswith("step-") and int(kept.name.partition("-")[2]) > step:
            shutil.rmtree(kept)
    shutil.rmtree(run / "artifact")
    (run / "result.json").unlink()
    return whole


def plain(line: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics without what was measured."""
    kept = {key: value for key, value in line.items() if key not in MEASURED}
    if isinstance(kept.get("metrics"), dict):
        kept["metrics"] = {k: v for k, v in kept["metrics"].items() if not k.startswith("memory")}
    return kept


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """In what two runs differ, one line each."""
    lines = []
    for name in sorted(expected["hashes"].keys() | found["hashes"].keys()):
        if expected["hashes"].get(name) != found["hashes"].get(name):
            lines.append(f"{name} differs")
    for name, value in expected["state"].items():
        if found["state"][name] != value:
            lines.append(f"state.json, {name}: {str(value)[:80]} and {str(found['state'][name])[:80]}")
    one, other = expected["told"], found["told"]
    if len(one) != len(other):
        lines.append(f"{len(one)} lines of metrics and {len(other)}: {order(one)} and {order(other)}")
    lines += [f"metrics: {a} and {b}" for a, b in zip(one, other, strict=False) if a != b][:2]
    return lines


def order(told: list[dict[str, Any]]) -> str:
    """`s1 s2 e2`: which steps and evaluations, in order."""
    return " ".join(f"{line['event'][0]}{line['step']}" for line in told)


def tail(folder: Path) -> str:
    """The end of a run's output."""
    log = folder / "log.txt"
    return log.read_text(errors="replace")[-1500:] if log.exists() else "no output"


def tidy(folder: Path) -> None:
    """Remove a run that was compared."""
    shutil.rmtree(folder, ignore_errors=True)
