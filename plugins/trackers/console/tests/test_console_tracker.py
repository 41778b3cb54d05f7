"""What the console shows, on a terminal and in a pipe."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from finetooth_console.tracker import ConsoleOptions, ConsoleTracker, build, duration, evaluation_line, step_line
from finetooth_hooks import Method
from rich.console import Console


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def tracker(terminal=False, width=100, encoding="utf-8", headline=(), **options):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding, newline="")
    console = Console(file=out, force_terminal=terminal, width=width, legacy_windows=False, color_system=None)

    def shown():
        out.flush()
        return raw.getvalue().decode(encoding)

    clock = Clock()
    return ConsoleTracker(ConsoleOptions(**options), console, clock, lambda method: headline), shown, clock


def test_step_line_says_what_a_watcher_wants(report):
    line = step_line(report(12, loss=1.23456), 60, 2.0)
    assert line == "step 12/60 · loss 1.2346 · 320 tok/s · ETA 1:36 · 2.15 GB · lr 1.00e-03"
    assert " · 320 tok/s (41% MFU) · ETA" in step_line(report(12, mfu=0.412), 60, 2.0)
    assert step_line(report(12, skipped=True, memory=0), None, 2.0) == (
        "step 12 · loss 1.5000 · 320 tok/s · lr 1.00e-03 · skipped (overflow)"
    )


def test_a_method_says_what_to_watch_beside_the_loss(run, report, outcome):
    made, shown, _ = tracker(headline=("reward", "kl"))
    made.start(run)
    made.step(run, report(1, loss=0.0, metrics={"kl": 0.01, "reward": 0.53125}))
    made.step(run, report(60, loss=0.0, metrics={"kl": 0.02, "reward": 0.75}))
    lines = shown().splitlines()
    assert [line.split(" · ")[1:3] for line in lines] == [
        ["loss 0.0000", "reward 0.5312"],
        ["loss 0.0000", "reward 0.75"],
    ]
    made.end(run, outcome)
    titles = [line for line in shown().splitlines() if line in ("training loss", "reward", "kl")]
    assert titles == ["training loss", "reward"]
    again, shown, _ = tracker(headline=("reward",))
    again.resume(run, [report(1, metrics={"reward": 0.1}), report(2, metrics={"reward": 0.2})])
    again.end(run, outcome)
    assert "reward" in shown().splitlines()


def test_arrows_say_which_way_metrics_should_move(report):
    seen = report(3, metrics={"felt/gap": 4.0, "felt/near": 0.25, "plain": 1.0})
    line = step_line(seen, 60, 2.0, ("absent ↑", "felt/near ↑", "plain", "felt/gap ↓"))
    assert line.split(" · ")[2:4] == ["felt/near 0.25 ↑", "felt/gap 4 ↓"] and "plain" not in line
    assert step_line(seen, 60, 2.0, ("plain", "felt/gap ↓")).split(" · ")[2:4] == ["plain 1", "felt/gap 4 ↓"]


def test_without_a_headline_the_loss_stands_alone(run, report):
    made, shown, _ = tracker()
    made.start(run)
    made.step(run, report(1, metrics={"reward": 0.5}))
    assert "reward" not in shown()
    assert step_line(report(1), 60, 2.0, ("reward",)) == step_line(report(1), 60, 2.0)


def test_evaluation_line_has_the_baseline_beside_the_score(evaluation):
    assert evaluation_line(evaluation) == (
        "eval at step 0 · exact_match 0.25, unfinished 0 (majority answer 0.125; 300 rows)"
    )
    assert "mine: kl 2 (" in evaluation_line(replace(evaluation, name="mine", metrics={"kl": 2.0}))


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.4, "1:01"), (3723, "1:02:03"), (-1, "0:00")])
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("total", "every", "expected"), [(60, 0, 21), (60, 25, 4), (7, 0, 7), (1000, 0, 21), (None, 0, 3)]
)
def test_a_pipe_gets_few_whole_lines(run, report, total, every, expected):
    run.total_steps = total
    made, shown, _ = tracker(every=every)
    made.start(run)
    for step in range(1, (total or 100) + 1):
        made.step(run, report(step))
    lines = shown().splitlines()
    assert len(lines) == expected
    assert lines[0].startswith("step 1") and lines[-1].startswith(f"step {total or 100}")
    assert "\x1b" not in shown() and "\r" not in shown()


def test_a_narrow_pipe_does_not_break_lines(run, report, evaluation):
    made, shown, _ = tracker(width=20)
    made.start(run)
    made.step(run, report(1))
    made.evaluated(run, evaluation)
    assert len(shown().splitlines()) == 2


def test_a_terminal_gets_one_live_line_drawn_at_most_ten_times_a_second(run, report, outcome):
    made, shown, clock = tracker(terminal=True)
    made.start(run)
    for step in range(1, 60):
        clock.now += 0.01
        made.step(run, report(step))
    drawn = set(re.findall(r"step (\d+)/60", shown()))
    assert 5 <= len(drawn) <= 7
    made.step(run, report(60))  # the last one is drawn whenever it comes
    made.end(run, outcome)
    assert "step 60/60" in shown()
    assert "ETA 0:00" in shown()


def test_a_slow_terminal_is_drawn_to_less_often(run, report):
    made, shown, clock = tracker(terminal=True)
    made.start(run)
    flush = made._progress.refresh

    def slow():
        clock.now += 0.05  # what drawing takes
        flush()

    made._progress.refresh = slow
    begun = clock.now
    for step in range(1, 60):
        clock.now += 1.0
        made.step(run, report(step))
    drawn = len(set(re.findall(r"step (\d+)/60", shown())))
    assert 3 <= drawn <= 7  # at most every 10 s
    assert drawn * 0.05 / (clock.now - begun) <= 0.01


def test_brackets_in_metrics_are_text(run, evaluation):
    made, shown, _ = tracker()
    made.start(run)
    made.evaluated(run, replace(evaluation, name="[bold]x[/nope]"))
    assert "[bold]x[/nope]" in shown()


def test_the_curve_comes_at_the_end(run, report, outcome):
    for options, encoding, there in (({}, "utf-8", True), ({"curve": False}, "utf-8", False), ({}, "iso8859-1", False)):
        made, shown, _ = tracker(encoding=encoding, **options)
        made.start(run)
        for step in range(1, 61):
            made.step(run, report(step, loss=3 / step))
        made.end(run, outcome)
        assert ("training loss" in shown()) == there
        assert any("\u2800" <= c <= "\u28ff" for c in shown()) == there


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_that_goes_on_says_so_and_shows_its_whole_curve(run, report, evaluation, outcome, terminal):
    """Resumed after step 40 by another process, and rolled back to 50 in its middle."""
    made, shown, clock = tracker(terminal=terminal)
    run.step = 40
    made.resume(run, [evaluation, *(report(step, loss=3.0) for step in range(1, 41))])
    assert shown().count("resuming after step 40 of 60") == 1
    for step in range(41, 56):
        clock.now += 1.0
        run.step = step
        made.step(run, report(step, loss=1.0))
    assert "step 41/60" in shown()
    run.step = 50
    made.resume(run, [report(step, loss=3.0) for step in range(1, 51)])
    assert shown().count("resuming after step 50 of 60") == 1
    for step in range(51, 61):
        clock.now += 1.0
        made.step(run, report(step, loss=3.0))
    assert (made._steps, made._losses) == (list(range(1, 61)), [3.0] * 60)
    made.end(run, outcome)
    *_, last = [line for line in shown().splitlines() if line.strip().startswith("step 1 ")]
    assert last.split() == ["step", "1", "60"]  # below the curve


def test_a_run_that_had_saved_nothing_begins_anew(run, report):
    made, shown, _ = tracker()
    made.resume(run, [])
    made.step(run, report(1))
    assert shown().splitlines() == [shown().strip()] and shown().startswith("step 1/60")


def test_a_run_that_fails_early_ends_quietly(run, outcome):
    made, shown, _ = tracker()
    made.end(run, outcome)
    made.start(run)
    made.end(run, outcome)
    assert shown() == ""


def test_built_tracker_prints_to_standard_output(run, report, evaluation, capsys):
    method = Method(name="mine", build="acme:build", headline=("reward",))
    catalog = SimpleNamespace(all=lambda kind: (SimpleNamespace(entry=method, full_name="acme:mine"),))
    made = build(ConsoleOptions(), SimpleNamespace(catalog=catalog))
    made.start(run)
    made.step(run, report(1, metrics={"reward": 0.5}))
    made.evaluated(run, evaluation)
    said = capsys.readouterr().out
    assert "exact_match 0.25" in said and " · reward 0.5 · " in said
