"""Trials: one run that is killed several times, compared with one that is not."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cases import CHOICES, Case, pairwise  # type: ignore[import-not-found]
from killing import Ended, Zygote, differences, disturbed, left, undisturbed  # type: ignore[import-not-found]
from method_cases import METHOD_CASES, ONLINE_CASES, STAND_IN, MethodCase  # type: ignore[import-not-found]
from s3 import BUCKET  # type: ignore[import-not-found]

MOST: dict[str, int] = {"rename": 6, "replace": 12, "fsync": 30, "unlink": 12}
"""Calls at which a process may be killed, and up to which of them."""
MOST_SENT = 24
MOST_INSIDE: dict[str, int] = {
    "sample": 6,
    "token": 40,
    "mlx_token": 40,
    "score": 6,
    "put": 6,
    "post": 24,
    "sum": 9,
    "gather": 24,
}


@dataclass(frozen=True)
class Trial:
    """What is to be tried.

    Attributes:
        number: of the trial; decides when the kills come.
        points: instrumented points of the first kills; the others come at random moments.
        remote: checkpoints go to object storage too.
    """

    number: int
    case: Case | MethodCase
    kills: int
    points: tuple[str, ...]
    remote: bool


@dataclass(frozen=True)
class Result:
    """What came of it.

    Attributes:
        kills: where or when each kill came.
        different: in what the runs differ; empty if in nothing.
        slowest: seconds from the kill of a rank at a random moment to the end of its run, the most of them.
    """

    number: int
    case: str
    remote: bool
    kills: tuple[str, ...]
    resumed: int
    different: tuple[str, ...]
    seconds: float
    slowest: float = 0.0

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def cases(seed: int = 0) -> list[Case | MethodCase]:
    """Every pair of choices, over every schedule and optimizer that is installed; then the other methods."""
    from finetooth_core.plugins import manager

    catalog = manager.start().catalog
    standard = {
        kind: tuple(sorted(r.entry.name for r in catalog.all(kind) if r.distribution == package))
        for kind, package in (("schedule", "finetooth-schedules"), ("optimizer", "finetooth-standard"))
    }
    return [*pairwise(seed, **{**CHOICES, **standard}), *METHOD_CASES, *ONLINE_CASES]


def trials(
    count: int, kills: int, *, instrumented: int, seed: int = 0, every: Sequence[Case | MethodCase] = ()
) -> Iterator[Trial]:
    """So many trials, going round the cases.

    Args:
        kills: in each of them.
        instrumented: of these, at points inside saving, renaming and sending.
        every: the cases; those of torch if none are given.
    """
    every = every or cases(seed)
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        remote = number % 4 == 3
        case = every[number % len(every)]
        kinds = [*MOST, *(["send"] * 2 if remote and case.ranks == 1 else [])]
        if isinstance(case, MethodCase):
            kinds += [*case.inside] * 3  # as likely as those of files
        points = []
        for _ in range(instrumented):
            kind = draw.choice(kinds)
            most = {**MOST, **MOST_INSIDE}.get(kind, MOST_SENT)
            points.append(f"{kind}:{draw.randint(1, most)}:{draw.choice(('before', 'after'))}")
        yield Trial(number, case, kills, tuple(points), remote)


class Arena:
    """Runs trials.

    Args:
        folder: for everything that is written; holds the data.
        model: a folder with a tiny model.
        vllm: address of the stand-in of a vLLM server.
    """

    def __init__(self, zygote: Zygote, folder: Path, model: Path, vllm: str) -> None:
        self._zygote, self._folder, self._model, self._vllm = zygote, folder, model, vllm
        self._undisturbed: dict[str, Ended] = {}

    def run(self, trial: Trial) -> Result:
        """
        Raises:
            AssertionError: a run or a resume failed.
        """
        begun = time.monotonic()
        case = trial.case
        recipe = json.loads(
            json.dumps(case.recipe(self._folder, self._model, Path("run"))).replace(STAND_IN, self._vllm)
        )
        if case.name not in self._undisturbed:
            quiet = self._folder / "undisturbed" / case.name
            shutil.rmtree(quiet, ignore_errors=True)
            self._undisturbed[case.name] = undisturbed(self._zygote, quiet, recipe, ranks=case.ranks)
        expected = self._undisturbed[case.name]
        if remote := trial.remote and case.ranks == 1:
            stores = ["disk", {"name": "s3", "url": f"s3://{BUCKET}/trial-{trial.number}", "part_bytes": 5 * 2**20}]
            recipe = {**recipe, "checkpoint": {**recipe["checkpoint"], "stores": stores}}
        place = self._folder / f"trial-{trial.number}"
        shutil.rmtree(place, ignore_errors=True)
        kills = disturbed(
            self._zygote, place, recipe, random.Random(trial.number), trial.kills, expected.seconds, trial.points,
            ranks=case.ranks,
        )  # fmt: skip
        different = differences(left(expected.folder), left(place / "run"))
        if not different:
            shutil.rmtree(place)
        return Result(
            trial.number, case.name, remote, tuple(kills.points), kills.resumed, tuple(different),
            time.monotonic() - begun, self._zygote.slowest,
        )  # fmt: skip


def table(results: Sequence[Result]) -> list[str]:
    """Lines of Markdown: how often runs were killed where, and how many came out different."""
    kinds: dict[str, list[int]] = {}
    for result in results:
        for kill in result.kills:
            name = f"at a call of `{kill.partition(':')[0]}`" if ":" in kill else "at a random moment"
            if kill.endswith("(never came)"):
                continue
            row = kinds.setdefault(name, [0, 0])
            row[0] += 1
            row[1] += bool(result.different)
    lines = ["| Killed | Kills | Runs that came out different |", "|---|---|---|"]
    return lines + [f"| {name} | {kills} | {bad} |" for name, (kills, bad) in sorted(kinds.items())]
