"""What the plan and the end of a run look like."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.cli import render
from finetooth_core.cli.run import suggestions
from finetooth_hooks import (
    Command,
    DataReport,
    Decision,
    Evaluation,
    MemoryEstimate,
    Method,
    Outcome,
    Plan,
    Sample,
    ScalarHead,
    TrainSettings,
)
from finetooth_rows.report_table import data_table
from finetooth_saving.runs.summary import summary_parts
from finetooth_toolbox.cli.tables import duration, show, table
from finetooth_toolbox.text.measures import size
from rich.console import Console, Group

TRAIN = TrainSettings(1.0, None, 8, 512, "drop", 0, True, "fp32", 64, False, 1.0)
OUTCOME = Outcome("done", 0, "", 60, {}, {}, Path("runs/a/artifact"), "ab" * 32, 125.0)


def shown(*parts: Any, terminal: bool = False, width: int = 100) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, no_color=True, highlight=False)
    show(console, *(part(console) for part in parts))
    output: str = console.file.getvalue()  # type: ignore[attr-defined]
    return output


def evaluation(step: int, score: float, **more: Any) -> Evaluation:
    samples = tuple(Sample(f"id{i}", f"Q{i}?", f"E{i}", f"A{i}-{step}", float(step > 0 and i > 1)) for i in range(5))
    given = {"baselines": {"majority answer": 0.25}, "samples": samples, "rows": 300, **more}
    return Evaluation("exact_match", step, {"exact_match": score, "other": 1.0}, **given)


@pytest.mark.parametrize("terminal", [True, False])
def test_the_plan_shows_settings_values_and_reasons(terminal: bool) -> None:
    plan = Plan(
        recipe={},
        picks={},
        options={},
        train=TRAIN,
        decisions=(Decision("train.precision", "bf16", "a [bold] reason"), Decision("trackers", ["a"], "the defaults")),
        memory=MemoryEstimate({"weights": 300_000_000, "logits": 0, "overhead": 1_250_000_000}),
        total_steps=60,
        hash="0123456789abcdef",
        notes=("mind this",),
    )
    text = shown(lambda console: Group(*render.plan_parts(console, plan, detail="all")), terminal=terminal)
    for expected in ("train.precision", "bf16", "a [bold] reason", '["a"]', "300 MB", "1.55 GB", "60 optimizer steps"):
        assert expected in text
    assert "note: mind this" in text
    assert "0123456789ab" in text
    assert "logits" not in text  # takes nothing


def test_lines_of_a_pipe_are_neither_wrapped_nor_padded() -> None:
    reason = "because " * 40
    plan = Plan({}, {}, {}, TRAIN, (Decision("a", "b", reason.strip()),), MemoryEstimate({}))
    lines = shown(lambda console: render.plan_parts(console, plan, detail="all")[0], width=80).splitlines()
    assert lines[2] == f"  a        b      {reason.strip()}"
    assert all(line == line.rstrip() for line in lines)


def test_the_data_table_names_what_was_left_out() -> None:
    report = DataReport(
        "train",
        rows=1200,
        used=1190,
        dropped={"longer than train.max_length": 10},
        dropped_ids={"longer than train.max_length": ("a:1", "a:2")},
        changed={"truncated": 3},
        tokens=67118,
        trained_tokens=3408,
        longest=74,
        notes=("one note",),
    )
    line = shown(lambda console: data_table(console, [report])).splitlines()[2]
    assert line.split()[:6] == ["train", "1,200", "1,190", "67,118", "3,408", "74"]
    assert "10 left out: longer than train.max_length (a:1, a:2, ...); 3 changed: truncated; one note" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_the_summary_shows_before_after_and_the_baseline(terminal: bool) -> None:
    evaluations = [
        evaluation(0, 0.0),
        Evaluation("loss", 0, {"loss": 2.5}, rows=300, higher_is_better=False),
        evaluation(30, 0.2),
        evaluation(60, 0.445),
        Evaluation("loss", 60, {"loss": 1.25}, rows=300, higher_is_better=False),
    ]
    parts = lambda console: Group(*summary_parts(console, OUTCOME, evaluations))  # noqa: E731
    text = shown(parts, terminal=terminal)
    lines = [line.split() for line in text.splitlines()]
    assert [
        "exact_match",
        "0.0",
        "%",
        "44.5",
        "%",
        "+44.5",
        "points",
        "300",
        "majority",
        "answer",
        "25.0",
        "%",
    ] in lines
    assert ["loss", "2.500", "1.250", "-1.250", "300", "-"] in lines
    for expected in ("Q2?", "A2-0", "A2-60", "E2", "done after 60 steps in 2 min 5 s"):
        assert expected in text
    assert text.count("-60") == 3  # answers
    assert "A0-60" not in text  # what changed comes first


def test_a_summary_without_evaluations_or_without_one_before() -> None:
    stopped = Outcome("stopped", 3, "too good", 4, {}, {}, None, "", 2.0)
    assert shown(lambda console: Group(*summary_parts(console, stopped, []))) == (
        "stopped after 4 steps in 2.0 s: too good\n\n"
    )
    only = [evaluation(60, 0.5)]
    lines = shown(lambda console: summary_parts(console, OUTCOME, only)[0]).splitlines()
    assert lines[2].split()[:5] == ["exact_match", "-", "50.0", "%", "-"]


def loss(step: int, value: float) -> Evaluation:
    return Evaluation("loss", step, {"loss": value}, rows=300, higher_is_better=False)


def summary(outcome: Outcome, *evaluations: Evaluation) -> list[str]:
    parts = lambda console: Group(*summary_parts(console, outcome, evaluations))  # noqa: E731
    return shown(parts).strip().splitlines()


def test_the_result_is_that_of_the_artifact() -> None:
    """Step 2 was chosen by its loss: what the last step would have had is of no model that anybody gets."""
    lines = summary(replace(OUTCOME, steps=8, artifact_step=2), loss(0, 3.1), loss(2, 3.008), loss(8, 3.476))
    assert lines[2].split() == ["loss", "3.100", "3.008", "-0.092", "300", "-"]
    assert lines[-1] == "done after 8 steps in 2 min 5 s, the artifact is of step 2"


def test_what_was_measured_at_another_step_than_that_of_the_artifact_says_so() -> None:
    lines = summary(replace(OUTCOME, steps=30, artifact_step=30), loss(0, 3.1), loss(20, 2.5))
    assert lines[2].split() == ["loss", "3.100", "2.500", "(step", "20)", "-0.600", "300", "-"]
    assert lines[-1] == "done after 30 steps in 2 min 5 s"


def test_what_was_measured_before_the_first_step_is_never_the_result() -> None:
    interrupted = replace(OUTCOME, status="interrupted", steps=3, artifact_step=3)
    lines = summary(interrupted, evaluation(0, 0.25), loss(0, 3.1))
    assert lines[2].split() == ["exact_match", "25.0", "%", "-", "-", "300", "majority", "answer", "25.0", "%"]
    assert lines[3].split() == ["loss", "3.100", "-", "-", "300", "-"]
    assert "Answers" not in lines


def test_two_evaluators_of_one_name_have_a_line_each() -> None:
    judged = Evaluation("exact_match", 0, {"judge": 0.5}, rows=300)
    lines = summary(OUTCOME, evaluation(0, 0.25), judged, evaluation(60, 0.5), replace(judged, step=60))
    assert [line.split()[0] for line in lines[2:4]] == ["exact_match", "exact_match"]
    assert lines[3].split()[1:7] == ["judge", "50.0", "%", "50.0", "%", "+0.0"]


def plan_of(*decided: str) -> Plan:
    decisions = tuple(Decision(setting, f"<{setting}>", "why") for setting in decided)
    memory = MemoryEstimate({"weights": 3e8, "logits": 0, "overhead": 1.25e9, "cache": 1e6, "gradients": 2e6})
    return Plan({}, {}, {}, TRAIN, decisions, memory, total_steps=60, hash="0123456789abcdef", notes=("mind this",))


def test_only_the_choices_that_matter_are_shown_unless_more_is_asked_for() -> None:
    plan = plan_of("model", "data.train.sha256", "optimizer", "trackers", "kernels.rms_norm")
    usual = shown(lambda console: Group(*render.plan_parts(console, plan)))
    assert [line.split()[0] for line in usual.splitlines()[2:4]] == ["model", "optimizer"]
    assert "3 more decisions: -v shows all" in usual and "sha256" not in usual
    assert "memory at the peak, estimated: 1.55 GB (overhead 1.25 GB, weights 300 MB, gradients 2 MB)\n" in usual
    assert "60 optimizer steps · plan 0123456789ab\nnote: mind this\n" in usual
    whole = shown(lambda console: Group(*render.plan_parts(console, plan, detail="all")))
    assert all(decision.setting in whole for decision in plan.decisions) and "more decision" not in whole


def test_a_quiet_plan_is_one_line() -> None:
    report = DataReport("train", rows=1200, used=1190, tokens=67118, trained_tokens=3408, longest=74)
    text = shown(lambda console: Group(*render.plan_parts(console, plan_of("model"), [report], "line")))
    said = "1,190 of 1,200 rows of train · 60 optimizer steps · 1.55 GB at the peak, estimated · plan 0123456789ab"
    assert text.splitlines() == [said, ""]
    sampled = DataReport("train", rows=30, used=240, examples=30)
    text = shown(lambda console: Group(*render.plan_parts(console, plan_of("model"), [sampled], "line")))
    assert text.startswith("240 data of 30 rows of train · ")


@pytest.mark.parametrize(("number", "text"), [(1, "1 optimizer step ·"), (2, "2 optimizer steps ·")])
def test_one_step_is_singular(number: int, text: str) -> None:
    plan = Plan({}, {}, {}, TRAIN, (Decision("a", "b", "c"),), MemoryEstimate({}), total_steps=number, hash="0" * 64)
    assert text in shown(lambda console: Group(*render.plan_parts(console, plan)))
    outcome = Outcome("done", 0, "", number, {}, {}, None, "", 2.0)
    ended = text.replace(" optimizer", "").replace(" ·", "")
    assert f"done after {ended} in 2.0 s" in shown(lambda console: summary_parts(console, outcome, [])[0])


def test_a_score_that_is_no_share_is_a_number() -> None:
    evaluations = [evaluation(0, 0.5, baselines={}), evaluation(9, 1.5, baselines={})]
    line = shown(lambda console: summary_parts(console, OUTCOME, evaluations)[0]).splitlines()[2]
    assert line.split() == ["exact_match", "0.500", "1.500", "+1.000", "300", "-"]


def test_a_long_question_is_shown_from_its_end() -> None:
    sample = Sample("a", "context " * 200 + "the question?", "yes", "", 0.0)
    last = Evaluation("e", 1, {"e": 0.0}, samples=(sample,))
    text = shown(lambda console: summary_parts(console, OUTCOME, [last])[1])
    assert "the question?" in text
    assert len(text) < 400
    assert "(nothing)" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_answers_reach_no_terminal_as_escapes(terminal: bool) -> None:
    """They would clear the screen, set its title, or hide what stands before."""
    nasty = "\x1b[2Jgone\x1b]0;title\x07\r\x9b1mover"
    sample = Sample("a", f"Q{nasty}", f"E{nasty}", f"A{nasty}", 0.0)
    parts = summary_parts(Console(width=300, force_terminal=terminal), OUTCOME, [
        Evaluation("e", step, {"e": 0.0}, samples=(sample,)) for step in (0, 1)])  # fmt: skip
    console = Console(width=300, file=io.StringIO(), force_terminal=terminal, color_system=None)
    console.print(parts[1])
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert not set("\x1b\x07\r\x9b") & set(text)
    assert text.count("\\x1b[2Jgone\\x1b]0;title\\x07\\r\\x9b1mover") == 4


@pytest.mark.parametrize(
    ("taken", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "2 kB"), (3e8, "300 MB"), (1.5e9, "1.50 GB"), (2e12, "2.00 TB")],
)
def test_size(taken: float, text: str) -> None:
    assert size(taken) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.000123, "0.12 ms"),
        (0.0499, "50 ms"),
        (0.05, "0.1 s"),
        (0.4, "0.4 s"),
        (59.4, "59.4 s"),
        (61, "1 min 1 s"),
        (7260, "2 h 1 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_suggestions_come_from_the_catalog() -> None:
    quiet = Command(name="score-it", build="a:b", after_scalar_run="{run} ROWS")
    entry = Command(name="merge-it", build="a:b", after_run="{run} --all")
    methods = {
        "a:words": Method(name="words", build="a:b"),
        "a:judge": Method(name="judge", build="a:b", head=ScalarHead()),
    }
    catalog = SimpleNamespace(
        all=lambda kind: [SimpleNamespace(entry=quiet), SimpleNamespace(entry=entry)],
        get=lambda kind, name: SimpleNamespace(entry=methods[name]),
    )
    picks = {"method": "a:words"}
    session: Any = SimpleNamespace(
        folder=Path("my runs/a"), plugins=SimpleNamespace(catalog=catalog), plan=SimpleNamespace(picks=picks)
    )
    assert suggestions(session, OUTCOME) == ["ft chat 'my runs/a'", "ft merge-it 'my runs/a' --all"]
    picks["method"] = "a:judge"  # there is nobody to talk to
    assert suggestions(session, OUTCOME) == ["ft score-it 'my runs/a' ROWS", "ft merge-it 'my runs/a' --all"]
    nothing = Outcome("failed", 1, "", 0, {}, {}, None, "", 1.0)
    assert suggestions(session, nothing) == []


def test_a_table_that_a_narrow_terminal_has_no_room_for_is_paragraphs() -> None:
    """No word is cut in two, and nothing that it says is lost."""
    headers = ("split", "rows", "trained tokens", "left out or changed")
    rows = [("train", "1,200", "34,567", "-"), ("eval", "12", "345", "3 rows were longer than train.max_length")]

    def made(console: Console) -> Any:
        return table(console, "Data", headers, rows, numbers=2)

    title, *lines = shown(made, terminal=True, width=40).splitlines()
    assert "Data" in title and [line.rstrip() for line in lines if line.strip()] == [
        "train", "  rows: 1,200", "  trained tokens: 34,567",
        "eval", "  rows: 12", "  trained tokens: 345",
        "  left out or changed: 3 rows were", "  longer than train.max_length",
    ]  # fmt: skip
    assert "rows: " not in shown(made, terminal=True, width=80)
    assert len(shown(made, width=40).strip().splitlines()) == 4, "a file has lines as long as they like"
