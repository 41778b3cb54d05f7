"""Curves of a model's versions: a metric by step, the kept step, and the minimum by size of corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.errors import UserError
from finetooth_saving.run_folder import RECIPE, RESULT, RUN
from finetooth_saving.runs.chart import chart, svg
from finetooth_saving.runs.recorded import METRICS, Point, read_run

from finetooth_registry import records
from finetooth_registry.anywhere import AnyRegistry, Version, files_of


@dataclass(frozen=True)
class Curve:
    """The curve of one version's training.

    Attributes:
        version: `bot@v3`.
        status: of the version: registered, failed, reverted.
        points: values by step.
        step: of the lowest value.
        minimum: that value.
        kept: step of the artifact; None: no artifact, or unknown.
        rows, tokens: of the training data; 0: unknown.
    """

    version: str
    status: str
    points: tuple[Point, ...]
    step: int
    minimum: float
    kept: int | None
    rows: int
    tokens: int

    @property
    def selected(self) -> bool:
        """Whether the artifact is from the step with the lowest value."""
        return self.kept == self.step

    @property
    def mark(self) -> Point | None:
        """The kept step with its value; None without a measurement there."""
        return next((point for point in self.points if point[0] == self.kept), None)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "selected": self.selected}


def curves(registry: AnyRegistry, model: str, metric: str, newest: int = 0) -> list[Curve]:
    """A curve of each version that measured a metric while it trained, the oldest first.

    Args:
        metric: by its name in a run, `eval/loss`; lower is better.
        newest: only this many versions; 0: all.

    Raises:
        UserError: no version measured it.
    """
    versions = registry.versions(model, newest)
    made, others = [], set[str]()
    for version in versions:
        by_metric = _read(registry, version)
        others |= by_metric.keys() - {metric}
        if metric in by_metric:
            made.append(by_metric[metric])
    if not made:
        known = ", ".join(sorted(name for name in others if name.startswith("eval/"))) or "nothing"
        what = (
            f"no version of {model} measured {metric} while it trained" if versions else f"no model is called {model}"
        )
        raise UserError(what, action=f"they measured {known}" if versions else "ft registry list shows them")
    return made


def _read(registry: AnyRegistry, version: Version) -> dict[str, Curve]:
    """Curves of a version by metric, from the files that were registered with it."""
    files = files_of(records.read(registry.record(version)))
    with tempfile.TemporaryDirectory() as place:
        for name in {METRICS, RESULT, RUN, RECIPE} & files.keys():
            registry.blobs.copy(files[name], Path(place) / name)
        run = read_run(Path(place))
    data = [split for split in run.result.get("rows") or () if split.get("split") == "train"]
    rows, tokens = (sum(int(split.get(name) or 0) for split in data) for name in ("used", "tokens"))
    artifact_step = run.result.get("artifact_step")
    made = {}
    for metric, points in run.series().items():
        step, minimum = min(points, key=lambda point: (point[1], point[0]))
        about = (tuple(points), step, minimum, artifact_step, rows, tokens)
        made[metric] = Curve(version.called, version.status, *about)
    return made


def pictures(made: Sequence[Curve], metric: str) -> dict[str, str]:
    """Two charts as SVG by file name; the second only if the sizes of the corpora are known."""
    marks = [curve.mark for curve in made if curve.mark is not None]
    by_step = chart(f"{metric} by step, the kept one ringed", {c.version: c.points for c in made}, marks=marks)
    sizes = sorted((curve.rows, curve.minimum) for curve in made if curve.rows)
    by_corpus = chart(f"minimum of {metric} by training rows", {"minimum": sizes})
    drawn = {"by-step.svg": by_step, "by-corpus.svg": by_corpus}
    return {name: svg(each) for name, each in drawn.items() if each is not None}
