"""`ft sweep RECIPE`: try settings of a recipe, each in a run of its own."""

from __future__ import annotations

import gc
import json
import math
import random
import shlex
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import click
import optuna
from finetooth_hooks import CommandContext, Evaluation, UserError
from finetooth_hooks.errors import EngineError, FinetoothError, StopRun
from finetooth_hooks.reports import Outcome
from finetooth_saving.runs.chart import chart, svg
from finetooth_saving.runs.closed_network import must_close, run_closed
from finetooth_toolbox.files.locks import FILE, FolderHeldError, lock_folder
from finetooth_toolbox.text.nearest import nearest
from optuna.storages.journal import JournalFileBackend

from finetooth_sweep import plugin
from finetooth_sweep.space import Sweep, key, read

STUDY = "sweep"
JOURNAL = "study.log"
"""Optuna's record of what was tried."""
State = optuna.trial.TrialState


@click.command("sweep")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--output", type=click.Path(path_type=Path), help="The sweep's folder; default: runs/NAME-sweep.")
@click.option("--trials", type=click.IntRange(min=1), help="Number of trials, instead of sweep.trials.")
@click.pass_obj
def command(
    obj: CommandContext, recipe: Path, overrides: tuple[str, ...], output: Path | None, trials: int | None
) -> int:
    """Try settings of RECIPE as its section `sweep` says, and show the best ones.

    Called again, it continues where it was. KEY=VALUE changes one setting of every trial.
    """
    settings = dict(obj.load(recipe, overrides))
    sweep = read(settings.pop("sweep", None))
    if must_close(settings):  # what is wrong with it is found before anything is tried
        return run_closed([sys.executable, "-m", "finetooth", *sys.argv[1:]])
    folder = output or Path("runs") / f"{recipe.stem}-sweep"
    there = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if folder.is_file() or (there - {FILE} and there.isdisjoint({JOURNAL, "sweep.json"})):
        raise UserError(f"--output: {folder} exists and holds no sweep", action="name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    again = shlex.join(["ft", "run", str(recipe), *overrides])
    try:
        with lock_folder(folder):
            return _sweep(obj, sweep, settings, folder, trials or sweep.trials, again)
    except FolderHeldError as error:
        raise UserError(
            f"{folder}: a sweep is under way there in process {error.who}",
            action="wait for it, or name another --output",
        ) from None


def _sweep(obj: CommandContext, sweep: Sweep, settings: dict[str, Any], folder: Path, trials: int, again: str) -> int:
    """The trials that are still to do, and what came of all of them; returns the exit code.

    Args:
        again: the command that trains what is swept, but for the settings of a trial.
    """
    study = _study(sweep, settings, folder)
    most = int(min(trials, sweep.size))
    if most < trials:
        click.echo(f"the space holds {most} settings: each is tried once")
    while (number := _tried(study)) < most:
        if not _try(obj, study, sweep, settings, folder, f"{number + 1} of {most}"):
            click.echo("interrupted; the same command continues")
            return 130
        _write(study, sweep, folder)
        gc.collect()  # a run's weights hang in cycles: those of the next trial would come on top of them
    _write(study, sweep, folder)
    click.echo(_table(study, sweep))
    return _tell_best(study, sweep, again, folder)


def _tell_best(study: optuna.Study, sweep: Sweep, again: str, folder: Path) -> int:
    """What failed and why, where the best is, and how to train with it; returns the exit code."""
    rows = _rows(study, sweep)
    for row in rows:
        if "problem" in row:
            click.echo(f"trial {row['trial']} failed: {row['problem']}")
    best = rows[0] if rows and rows[0]["value"] is not None else None
    if best is None:
        return 1
    settings = shlex.join(f"{name}={json.dumps(value)}" for name, value in best["settings"].items())
    drawn = f", all of them drawn in {folder / 'sweep.svg'}" if (folder / "sweep.svg").is_file() else ""
    click.echo(f"\nthe best is {folder / _name(best['trial'])}{drawn}")
    click.echo(f"the same settings again: {again} {settings}")
    return 0


def _name(trial: int | str) -> str:
    """Of the folder of a trial's run."""
    return f"trial-{trial}"


def _study(sweep: Sweep, recipe: dict[str, Any], folder: Path) -> optuna.Study:
    """The sweep's study, begun or opened again. What a process tried that was killed is to be tried again.

    Raises:
        UserError: its file is damaged, or its trials are of other settings: their values could not be compared.
    """
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3) if sweep.prune else optuna.pruners.NopPruner()
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))
        study = optuna.create_study(
            storage=storage, study_name=STUDY, load_if_exists=True, direction=sweep.direction, pruner=pruner
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / JOURNAL} cannot be read: {error}", action="name another --output") from error
    common = {name: value for name, value in recipe.items() if name not in ("output", "trackers")}
    tries = sweep.model_dump(mode="json", exclude={"trials"})
    made = {"recipe": json.loads(key(common)), "sweep": tries}
    before = study.user_attrs.get("made")
    if before is None:
        study.set_user_attr("made", made)
    elif before != made and not _tried(study) and not list(folder.glob(_name("*"))):
        (folder / JOURNAL).unlink()  # nothing was trained: a mistake in the recipe was corrected
        return _study(sweep, recipe, folder)
    elif before != made:
        name = _changed({**before["recipe"], "sweep": before["sweep"]}, {**made["recipe"], "sweep": tries})
        raise UserError(
            f"{name} is not what it was in the earlier trials of {folder}, so new ones could not be compared with them",
            action="undo the change, or name another --output",
        )
    study.sampler = optuna.samplers.TPESampler(seed=sweep.seed + len(study.trials))
    for trial in study.get_trials(states=(State.RUNNING,)):
        study.tell(trial.number, state=State.FAIL)
        study.enqueue_trial(trial.params)
    return study


def _changed(before: Any, now: Any, place: str = "") -> str:
    """The path of the first setting that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        if names:
            path = f"{place}.{names[0]}".lstrip(".")
            return _changed(before.get(names[0]), now.get(names[0]), path)
    return place


def _tried(study: optuna.Study) -> int:
    """Trials that came to an end of their own, failures among them: those that were cut off do not count."""
    cut = [trial for trial in study.trials if trial.state == State.FAIL and "problem" not in trial.user_attrs]
    waiting = study.get_trials(states=(State.WAITING,))
    return len(study.trials) - len(cut) - len(waiting)


def _try(
    obj: CommandContext,
    study: optuna.Study,
    sweep: Sweep,
    recipe: dict[str, Any],
    folder: Path,
    which: str,
) -> bool:
    """One trial; False if it was interrupted.

    Args:
        which: of how many, in words.

    Raises:
        UserError: a setting of the space is wrong, or nothing measures the metric: it would be so in every trial.
    """
    trial = study.ask()
    settings = sweep.drawn(trial)
    tried = {key(row["settings"]) for row in _rows(study, sweep)}
    if key(settings) in tried:  # it would train the same again
        study.tell(trial, state=State.FAIL)
        study.enqueue_trial(sweep.untried(tried, random.Random(f"{sweep.seed}/{trial.number}")))
        trial = study.ask()
        settings = sweep.drawn(trial)
    trial.set_user_attr("settings", settings)
    output = folder / _name(trial.number)
    click.echo(f"trial {trial.number} ({which}): " + ", ".join(f"{k} {_short(v)}" for k, v in settings.items()))
    history: list[float] = []
    measured: set[str] = set()

    def stepped() -> None:
        if sweep.metric.startswith("eval/") and measured and sweep.metric not in measured:
            raise StopRun(
                f"sweep: no evaluator and no step measures {sweep.metric}"
            )  # all evaluators have had their turn

    def tell(evaluation: Evaluation) -> None:
        values = {f"eval/{name}": value for name, value in evaluation.metrics.items()}
        measured.update(values)
        value = values.get(sweep.metric)
        if value is None or not math.isfinite(value):
            return
        trial.report(value, evaluation.step)
        if not evaluation.step:
            return  # of the model before it learnt: it says nothing of the settings
        history.append(value)
        if trial.should_prune():
            trial.set_user_attr("pruned", True)
            raise StopRun("sweep: worse than the median of the other trials at this evaluation")

    made = tuple(f"{name}={json.dumps(value)}" for name, value in settings.items())
    plugin.watching.append(tell)
    plugin.stepping.append(stepped)
    try:
        outcome = obj.run({**obj.load(recipe, made), "output": str(output)})
    except EngineError as error:  # these settings do not work; others may
        _fail(study, trial, str(error))
        return True
    except FinetoothError as error:
        study.tell(trial, state=State.FAIL)
        raise UserError(
            f"trial {trial.number}: {error}", action="fix the recipe or sweep.space, where step: 1 draws whole numbers"
        ) from error
    finally:
        plugin.watching.remove(tell)
        plugin.stepping.remove(stepped)
    measured.update(outcome.metrics)
    if outcome.status != "interrupted" and sweep.metric not in measured:
        study.tell(trial, state=State.FAIL)
        raise _unmeasured(sweep.metric, measured)
    return _end(study, trial, sweep, outcome, history)


def _unmeasured(metric: str, measured: Collection[str]) -> UserError:
    """The refusal of a metric that no trial will have."""
    held_out = sorted(name for name in measured if name.startswith("eval/"))
    near = nearest(metric, held_out)
    if near:
        action = f"did you mean {near}?"
    elif held_out:
        action = f"it measures {', '.join(held_out)}"
    else:
        action = "name held-out rows in data.eval"
    return UserError(f"sweep.metric: no evaluator and no step measures {metric}", action=action)


def _end(study: optuna.Study, trial: optuna.Trial, sweep: Sweep, outcome: Outcome, history: list[float]) -> bool:
    if outcome.status == "interrupted":
        study.tell(trial, state=State.FAIL)
        study.enqueue_trial(trial.params)
        return False
    last = outcome.metrics.get(sweep.metric, math.nan)
    best = (min if sweep.direction == "minimize" else max)(history) if history else last
    if trial.user_attrs.get("pruned"):
        study.tell(trial, state=State.PRUNED)
    elif math.isfinite(best):
        study.tell(trial, best)
    else:
        _fail(study, trial, f"no finite {sweep.metric}")
    return True


def _fail(study: optuna.Study, trial: optuna.Trial, problem: str) -> None:
    trial.set_user_attr("problem", problem)
    study.tell(trial, state=State.FAIL)


def _rows(study: optuna.Study, sweep: Sweep) -> list[dict[str, Any]]:
    """What was tried, the best first."""
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state == State.COMPLETE else None,
            **{key: trial.user_attrs[key] for key in ("settings", "problem") if key in trial.user_attrs},
        }
        for trial in study.trials
        if "settings" in trial.user_attrs and (trial.state != State.FAIL or "problem" in trial.user_attrs)
    ]
    sign = 1.0 if sweep.direction == "minimize" else -1.0
    return sorted(rows, key=lambda row: (row["value"] is None, sign * (row["value"] or 0.0), row["trial"]))


def _write(study: optuna.Study, sweep: Sweep, folder: Path) -> None:
    """sweep.json, and sweep.svg with the value of each trial and the best so far."""
    rows = _rows(study, sweep)
    (folder / "sweep.json").write_text(json.dumps({"metric": sweep.metric, "trials": rows}, indent=2) + "\n")
    done = sorted((row["trial"], row["value"]) for row in rows if row["value"] is not None)
    better = min if sweep.direction == "minimize" else max
    best = [(number, better(value for _, value in done[: index + 1])) for index, (number, _) in enumerate(done)]
    made = chart(sweep.metric, {"best so far": best, "each trial": done})
    if made is not None:
        (folder / "sweep.svg").write_text(svg(made), encoding="utf-8")


def _table(study: optuna.Study, sweep: Sweep) -> str:
    names = list(sweep.space)
    rows = [("trial", sweep.metric, *names)]
    for row in _rows(study, sweep):
        value = row["state"] if row["value"] is None else f"{row['value']:.4g}"
        rows.append((str(row["trial"]), value, *(_short(row["settings"].get(name)) for name in names)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
