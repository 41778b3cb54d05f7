"""Runs in Trackio: a dashboard on this machine, in a Space, or at a server of one's own."""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import Any

from finetooth_hooks import Context, Outcome, Run
from finetooth_saving.runs.service import SampleOptions, ServiceTracker, shown_recipe
from finetooth_saving.runs.values import COLUMNS, TABLE


class TrackioOptions(SampleOptions):
    """Options of `trackio`."""

    project: str = "finetooth"
    """The run's project, created if needed. `trackio show --project NAME` opens its dashboard."""
    run_name: str | None = None
    """The run's name there. Default: that of its folder."""
    space: str | None = None
    """A Space, `USER/NAME`, that stores and shows the project. Default: this machine (TRACKIO_DIR)."""


class TrackioTracker(ServiceTracker):
    """`train/...` for steps and `eval/...` for evaluations, each at its step, and the recipe as the run's config.

    A resumed run writes to the same run. Steps between the checkpoint and the moment at which an earlier process
    was killed are there twice, with the same values.
    """

    service = "trackio"

    def __init__(self, options: TrackioOptions, context: Context) -> None:
        super().__init__(context, options)
        self._options = options
        self._run: Any = None

    def open(self, run: Run, known: str | None) -> str:
        """Begin a run of the project, or continue the known one."""
        import trackio

        name = known or self._options.run_name or run.id
        with redirect_stdout(io.StringIO()):  # it prints what to do next; `ft` says it in its own guide
            self._run = trackio.init(
                project=self._options.project,
                name=name,
                space_id=self._options.space,
                config=shown_recipe(run.plan.recipe),
                resume="allow" if known else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        return str(self._run.name)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        self._run.log(dict(values), step=step)

    def write_samples(self, step: int, rows: list[list[Any]]) -> None:
        """Record answers of a step as one of the dashboard's tables."""
        import trackio

        self._run.log({TABLE: trackio.Table(columns=COLUMNS, data=rows)}, step=step)

    def close(self, outcome: Outcome) -> None:
        """Write what is left."""
        with redirect_stdout(io.StringIO()):
            self._run.finish()
        self._run = None


def build(options: TrackioOptions, context: Context) -> TrackioTracker:
    """Builder of the tracker `trackio`."""
    import trackio  # noqa: F401  - that it is missing is found here, and not when the run has begun

    return TrackioTracker(options, context)
