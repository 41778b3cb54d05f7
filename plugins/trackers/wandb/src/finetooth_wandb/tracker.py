"""Runs at Weights & Biases, sent as they go or written into the run folder to be sent later."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from finetooth_hooks import Context, Outcome, Run
from finetooth_saving.runs.service import SampleOptions, ServiceTracker, plain, shown_recipe
from finetooth_saving.runs.values import COLUMNS, TABLE

PATIENCE = 30
"""Seconds given to the service to answer when a run begins."""


class WandbOptions(SampleOptions):
    """Options of `wandb`."""

    project: str = "finetooth"
    """The run's project, created if needed."""
    entity: str | None = None
    """Owner of the project: a user or a team. Default: yours."""
    run_name: str | None = None
    """The run's name there. Default: that of its folder."""
    run_id: str | None = None
    """Id of an existing run to continue there. Default: a new run. A resumed run finds its own."""
    group: str | None = None
    """Name of a group of runs."""
    tags: list[str] = []  # noqa: RUF012 - pydantic copies it
    """Tags to find the run by."""
    log_model: bool = False
    """Whether to upload the artifact (the trained model's folder) as a model when the run ends. Checkpoints stay in the
    run folder and its stores."""
    mode: Literal["auto", "online", "offline"] = "auto"
    """`offline` writes into `wandb` in the run folder, and `wandb sync` uploads it. `auto` is online if you are logged
    in (`wandb login`, or WANDB_API_KEY) and WANDB_MODE does not say otherwise."""


class WandbTracker(ServiceTracker):
    """`train/...` for steps and `eval/...` for evaluations, each at its step, and the recipe as the run's config.

    A resumed run writes to the same run of the service. Steps that it has already are dropped there, so none is
    twice.
    """

    service = "wandb"

    def __init__(self, options: WandbOptions, context: Context) -> None:
        super().__init__(context, options)
        self._options = options
        self._run: Any = None

    def open(self, run: Run, known: str | None) -> str:
        """Begin or continue; offline where nobody is logged in or the service does not answer, which is said."""
        import wandb

        folder = run.folder / "wandb"
        mode = self._mode()
        if mode == "online" and not _key(wandb):  # asked here: the client would ask on the terminal, and wait
            self._say(f"nobody is logged in; the records are in {folder}, and wandb sync sends them")
            mode = "offline"
        try:
            self._run = self._begin(run, known, mode)
        except Exception as error:
            if mode == "offline":
                raise
            self._say(f"{plain(error)}; the records are in {folder}, and wandb sync sends them")
            wandb.teardown()
            self._run = self._begin(run, known, "offline")
        return str(self._run.id)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers of a step."""
        self._run.log(dict(values), step=step)

    def write_samples(self, step: int, rows: list[list[Any]]) -> None:
        """Record answers of a step as one of the service's tables."""
        import wandb

        self._run.log({TABLE: wandb.Table(columns=[*COLUMNS], data=rows)}, step=step)

    def close(self, outcome: Outcome) -> None:
        """Say how the run ended, and send what is left."""
        self._run.summary.update({"status": outcome.status, **{f"best/{k}": v for k, v in outcome.best.items()}})
        if self._options.log_model and outcome.artifact is not None:
            self._store(outcome.artifact, outcome.artifact_step)
        self._run.finish(exit_code=outcome.exit_code)
        self._run = None

    def _store(self, folder: Path, step: int | None) -> None:
        """The artifact as a model of the service's run."""
        import wandb

        model = wandb.Artifact(f"model-{self._run.id}", type="model", metadata={"step": step})
        model.add_dir(str(folder))
        self._run.log_artifact(model)

    def _mode(self) -> Literal["online", "offline"]:
        if self._options.mode != "auto":
            return self._options.mode
        mode = os.environ.get("WANDB_MODE", "online").lower()
        return "online" if mode in ("online", "run") else "offline"

    def _begin(self, run: Run, known: str | None, mode: Literal["online", "offline"]) -> Any:
        import wandb

        options = self._options
        settings = wandb.Settings(
            silent=True,
            console="off",  # what the terminal shows is not sent
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,  # nor the command line, which may hold a key
            init_timeout=PATIENCE,
        )
        return wandb.init(
            project=options.project,
            entity=options.entity,
            name=options.run_name or run.id,
            group=options.group,
            tags=options.tags or None,
            id=known or options.run_id,
            resume="allow" if known or options.run_id else None,
            mode=mode,
            dir=str(run.folder),
            config=shown_recipe(run.plan.recipe),
            settings=settings,
        )

    def _say(self, text: str) -> None:
        self._context.note(f"tracker wandb: {text}")


def _key(wandb: Any) -> str | None:
    """Of who is logged in. The client's newer question, `login(prompt=False)`, talks of keys on the terminal, and the
    one that all versions answer says that there is a newer one: neither is for who trains."""
    with contextlib.redirect_stderr(io.StringIO()):
        key: str | None = wandb.api.api_key
    return key


def build(options: WandbOptions, context: Context) -> WandbTracker:
    """Builder of the tracker `wandb`."""
    import wandb  # noqa: F401  - that it is missing is found here, and not when the run has begun

    return WandbTracker(options, context)
