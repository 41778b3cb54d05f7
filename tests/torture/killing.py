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
GRACE = 5.0
"""Seconds within which the other ranks of a run have ended once one was killed: the launcher's own limit."""
SLOWER = 3.0
"""Seconds more that a busy machine may take for it."""
HANGS = 300.0
"""Seconds after which a run over ranks hangs."""
EARLY = 0.15
"""Share of a run's time in which it reads recipe, data and weights, and has not trained yet."""
EARLY_SHARE = 0.25
"""So many of the kills at random moments come then."""


@dataclass
class Zygote:
    """Starts commands; see `zygote.py`."""

    environment: Mapping[str, str]
    slowest: float = 0.0
    """Seconds from the kill of a rank to the end of its run, the most of all."""

    def __post_init__(self) -> None:
        script = Path(__file__).with_name("zygote.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **self.environment},
        )

    def run(
        self, folder: Path, *arguments: str, kill_after: float | None = None, kill_at: str = "", rank: int | None = None
    ) -> int:
        """Run `ft` with the arguments; returns its exit code, -9 if it or one of its ranks was killed.

        Args:
            kill_after: seconds after which it is killed.
            kill_at: a point at which it kills itself.
            rank: which of the ranks that it starts is killed in its place.

        Raises:
            AssertionError: the ranks that were not killed trained on, or waited, for too long.
        """
        log = folder / "log.txt"
        before = log.stat().st_size if log.exists() else 0
        order = {
            "arguments": arguments,
            "log": str(log),
            "environment": {
                "FT_KILL_AT": kill_at, "FT_KILL_RANK": "" if rank is None else str(rank),
                "FT_CACHE": str(folder / "cache"),
            },
            "folder": str(folder),
            "ranks": rank is not None,
        }  # fmt: skip
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        pid, killed = self._answer()["pid"], list[float]()

        def kill() -> None:
            started = [pid] if rank is None else ranks_of(pid)
            if rank is None or rank < len(started):
                killed.append(time.monotonic())
                os.kill(started[rank or 0], signal.SIGKILL)

        timers = [threading.Timer(kill_after, kill)] if kill_after is not None else []
        if rank is not None:
            timers.append(threading.Timer(HANGS, os.kill, (pid, signal.SIGKILL)))
        for timer in timers:
            timer.start()
        status = self._answer()["status"]
        for timer in timers:
            timer.cancel()
        if rank is None:
            return status
        said = log.read_bytes()[before:].decode(errors="replace")
        assert status != -signal.SIGKILL, f"hung for {HANGS:.0f} s: {said[-600:]}"
        if killed:
            took = time.monotonic() - killed[0]
            self.slowest = max(self.slowest, took)
            assert took < GRACE + SLOWER, f"the others ended {took:.1f} s after rank {rank}: {said[-600:]}"
        by_signal = f"rank {rank} was ended by signal 9" in said if rank else status == 128 + signal.SIGKILL
        return -signal.SIGKILL if status and by_signal else status

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


def ranks_of(pid: int) -> list[int]:
    """Processes of the ranks that a process has started, in their order."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return sorted(map(int, children.read_text().split())) if children.exists() else []


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


def undisturbed(zygote: Zygote, folder: Path, recipe: Mapping[str, Any], *, ranks: int = 1) -> Ended:
    """Run the recipe to its end.

    Raises:
        AssertionError: it failed; with the end of its log.
    """
    folder.mkdir(parents=True)
    write_recipe(folder, recipe)
    begun = time.monotonic()
    code = zygote.run(folder, "run", "recipe.json", rank=0 if ranks > 1 else None)
    assert code == 0, f"exit code {code}: {tail(folder)}"
    return Ended(folder / "run", time.monotonic() - begun)


def disturbed(
    zygote: Zygote, folder: Path, recipe: Mapping[str, Any], draw: random.Random, kills: int, seconds: float,
    points: tuple[str, ...] = (), ranks: int = 1,
) -> Kills:  # fmt: skip
    """Run the recipe, kill it so many times, and go on until it is done.

    Args:
        seconds: that an undisturbed run takes: kills come at random within it, from its first millisecond on, some of
            them before it trains.
        points: instrumented points for the first kills.
        ranks: that the recipe starts; one of them is killed, and the launcher has to end the others.

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
        rank = draw.randrange(ranks) if ranks > 1 else None
        code = zygote.run(folder, *arguments, kill_after=after, kill_at=point, rank=rank)
        if code == -signal.SIGKILL:
            of = "" if rank is None else f" of rank {rank}"
            done.points.append((point or f"{after:.2f} s") + of)
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
    files = [*sorted(one for one in (last / "engine").rglob("*") if one.is_file()), *sorted(trained)]
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
        kept["metrics"] = {k: v for k, v in kept["metrics"].items() if not k.startswith(("memory", "diloco/sent"))}
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
