"""Checks of trackers and evaluators: they look at a run and change nothing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from finetooth_hooks.reports import DataReport, Evaluation, Outcome, Sample, StepReport

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, expect_instance
from finetooth_kit.fake_context import FakeContext
from finetooth_kit.fake_engine import FakeEngine
from finetooth_kit.fake_run import FakeRun
from finetooth_kit.kinds_of_rows import prepared_on_any

_STEP = StepReport(
    1, 0.5, 2.5, 100, 40, 4, 1e-3, 0.7, metrics={"accuracy": 0.5}, seconds=0.1, tokens_per_second=1e3,
    samples=(Sample("row:1", "2 + 2 =", "", "4", 1.0),),
)  # fmt: skip
_EVALUATION = Evaluation("check", 0, {"exact_match": 0.25, "loss": 1.5}, {"majority answer": 0.2}, rows=4)
_OUTCOME = Outcome("done", 0, "", 3, {"loss": 2.0}, {"exact_match": 0.5}, None, "0" * 64, 1.0)


@check_for("tracker")
def tracker_lives_through_a_run(case: EntryCase) -> None:
    """Start, evaluations, steps (one with a NaN, one skipped), end: no exception, for any outcome, with or without a
    known end."""
    for total, status in ((3, "done"), (None, "interrupted"), (3, "failed")):
        folder = case.folder / f"run-{total}-{status}"
        folder.mkdir()
        run = FakeRun(folder, total_steps=total)
        tracker = case.build()
        tracker.start(run)
        tracker.evaluated(run, _EVALUATION)
        for step in range(1, 4):
            run.step = step
            loss = math.nan if step == 2 else 2.5 / step
            tracker.step(run, replace(_STEP, step=step, loss=loss, metrics={"odd": math.inf}, skipped=step == 2))
        tracker.evaluated(run, replace(_EVALUATION, step=3, metrics={"exact_match": math.nan}))
        tracker.end(run, replace(_OUTCOME, status=status, reason="" if status == "done" else "why"))  # type: ignore[arg-type]
        _check_state(run)


def _check_state(run: FakeRun) -> None:
    """What a tracker keeps in `run.state` comes back from a checkpoint as it was."""
    try:
        same = json.loads(json.dumps(dict(run.state))) == run.state
    except (TypeError, ValueError):
        same = False
    expect(same, "run.state after a tracker", run.state, "numbers, text, lists and dictionaries with text keys")


@check_for("tracker")
def tracker_continues_a_resumed_run(case: EntryCase) -> None:
    """A second tracker that starts in a folder with the first one's files, as a resumed run does, raises nothing and
    deletes none of them."""
    run = FakeRun(case.folder)
    first = case.build()
    first.start(run)
    first.step(run, _STEP)
    first.end(run, replace(_OUTCOME, status="interrupted", reason="Ctrl-C"))
    before = {path.name for path in case.folder.rglob("*") if path.is_file()}
    second = case.build()
    run.step = 1
    second.start(run)
    second.step(run, replace(_STEP, step=2))
    second.end(run, _OUTCOME)
    deleted = before - {path.name for path in case.folder.rglob("*") if path.is_file()}
    expect(not deleted, "start(run) of a resumed run", f"deleted {sorted(deleted)}", "files of the first part kept")


@check_for("tracker")
def tracker_goes_on_from_a_history(case: EntryCase) -> None:
    """`resume` in a folder with files of steps that do not count, in an empty one, and while the tracker is open, as
    when a run rolls back: no exception, and steps continue."""
    history = (_EVALUATION, _STEP, replace(_STEP, step=2))
    for name in ("used", "empty"):
        folder = case.folder / name
        folder.mkdir()
        run, first = FakeRun(folder), case.build()
        going: Any = case.build()
        if "resume" not in going.capabilities:
            raise CheckSkipped("it has no resume")
        if name == "used":  # and was killed: it never came to its end
            first.start(run)
            for step in (1, 2, 3):
                first.step(run, replace(_STEP, step=step))
        for _ in range(2):
            run.step = 2
            going.resume(run, tuple(history))
            run.step = 3
            going.step(run, replace(_STEP, step=3))
            going.evaluated(run, replace(_EVALUATION, step=3))
        going.end(run, _OUTCOME)
        if name == "used":
            first.end(run, _OUTCOME)


@check_for("evaluator")
def evaluation_is_repeatable_and_harmless(case: EntryCase) -> None:
    """Prepared once, it gives the same finite numbers twice, no metric that it has not declared, names its step, and
    trains nothing."""

    def make() -> tuple[FakeContext, Any]:
        context = case.context()
        return context, case.build(context)

    context, evaluator, report = prepared_on_any(make)
    engine = FakeEngine(context.tokenizer, context.renderer.stop_ids)
    expect_instance(report, (DataReport, type(None)), "prepare()")
    first, second = (evaluator.evaluate(engine, 7) for _ in range(2))
    expect_instance(first, Evaluation, "evaluate(engine, 7)")
    expect(first.step == 7, "evaluate(engine, 7).step", first.step, "7")
    expect(first.metrics and first.rows > 0, "evaluate(engine, 7)", first, "metrics over at least one row")
    if evaluator.metrics is not None:
        expect(first.metrics.keys() <= evaluator.metrics, "evaluate(engine, 7).metrics", sorted(first.metrics),
               f"of those that `metrics` names: {sorted(evaluator.metrics)}")  # fmt: skip
    finite = all(math.isfinite(value) for value in (*first.metrics.values(), *first.baselines.values()))
    expect(finite, "evaluate(engine, 7).metrics", dict(first.metrics), "finite numbers")
    same = (first.metrics, first.baselines, first.samples) == (second.metrics, second.baselines, second.samples)
    expect(same, "evaluate(engine, 7), a second time", second, f"the same as before: {first}")
    trained = {"forward_backward", "backward", "step", "load"} & set(engine.calls)
    expect(not trained, "evaluate(engine, 7)", f"called {sorted(trained)}", "only forward, logprobs and generate")
