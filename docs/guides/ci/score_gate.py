"""Fails a run that ends below an agreed score, and stops one that cannot be saved any more."""

from __future__ import annotations

import json

from finetooth_hooks import Options, StopRun, hookimpl


class GateOptions(Options):
    """What the pipeline asks for."""

    metric: str = "eval/exact_match"
    """Which metric is judged."""
    min_score: float
    """The command fails (exit code 4) if the last value of the metric is below it."""
    max_loss: float = 20.0
    """A training loss above it ends the run at once (exit code 3)."""


plugin_options = GateOptions


@hookimpl
def ft_run_start(run):
    run.state["scores"] = []  # a plugin's state is part of every checkpoint


@hookimpl
def ft_step(run, report):
    if report.loss > run.options.max_loss:
        raise StopRun(f"loss {report.loss:.1f} at step {report.step}", exit_code=3)


@hookimpl
def ft_evaluated(run, evaluation):
    value = run.metrics.get(run.options.metric)
    if value is not None:
        run.state.setdefault("scores", []).append([evaluation.step, value])


@hookimpl
def ft_promote(run, candidate):
    if candidate.metrics.get("loss", 0.0) > run.options.max_loss:
        return f"its loss is {candidate.metrics['loss']:.1f}"
    return None


@hookimpl
def ft_checkpoint_saved(run, path):
    run.state["saved"] = str(path)


@hookimpl
def ft_run_end(run, outcome):
    report = {"scores": run.state.get("scores", []), "saved": run.state.get("saved")}
    (run.folder / "gate.json").write_text(json.dumps(report, indent=2) + "\n")
    score = outcome.metrics.get(run.options.metric)
    if outcome.status != "done":
        return  # its own exit code already says what happened
    if score is None:
        raise StopRun(f"nothing measured {run.options.metric}", exit_code=4)
    if score < run.options.min_score:
        raise StopRun(f"{run.options.metric} is {score:.3f}, below {run.options.min_score:.3f}", exit_code=4)
