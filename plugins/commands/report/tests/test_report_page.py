"""The page of a run: everything in it, nothing from elsewhere, and no text that becomes markup."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from finetooth_hooks import DataReport, Sample, UserError
from finetooth_report.command import command
from finetooth_report.plugin import ft_run_end
from finetooth_saving.runs.chart import chart, svg

HOSTILE = '</td><script>alert("x")</script><img src=x onerror=alert(1)>\x1b[2J&amp;'


class Page(HTMLParser):
    """Elements, attributes and text of a page; what a browser would make of it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def ended(run, report, evaluation, outcome):
    """A run that ends with hostile text wherever text comes from outside."""
    sample = Sample("1", HOSTILE, HOSTILE, HOSTILE, 0.5)
    (run.folder / "run.json").write_text('{"id": "1"}')
    (run.folder / "recipe.yaml").write_text(f"model: toy\n# {HOSTILE}\n")
    decision = {"setting": "train.precision", "value": HOSTILE, "reason": HOSTILE}
    plan = {"recipe": {"model": HOSTILE}, "picks": {"method": "acme:sft"}, "total_steps": 60, "decisions": [decision]}
    (run.folder / "plan.json").write_text(json.dumps(plan))
    data = DataReport("train", 24, 20, dropped={HOSTILE: 4}, tokens=1234, trained_tokens=99, longest=31)
    ended = replace(
        outcome,
        reason=HOSTILE,
        history=tuple(report(step, loss=2.0 / step, metrics={HOSTILE: 0.1}) for step in range(1, 61)),
        evaluations=(evaluation, replace(evaluation, step=60, metrics={"exact_match": 0.75}, samples=(sample,))),
        data=(data,),
        environment={"torch": "2.13.0", "device": HOSTILE},
    )
    return run, ended


def test_nothing_that_a_run_says_becomes_markup(ended):
    run, outcome = ended
    ft_run_end(run, outcome)
    text = (run.folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "img" not in page.tags and "\x1b" not in text
    assert not [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action "
            "'none'") in page.attributes  # fmt: skip
    shown = "".join(page.text)
    assert shown.count(HOSTILE.replace("\x1b", "\\x1b")) >= 9


def test_the_page_holds_curves_answers_data_plan_environment_and_recipe(ended):
    run, outcome = ended
    ft_run_end(run, outcome)
    page = Page((run.folder / "report.html").read_text(encoding="utf-8"))
    shown = "\n".join(page.text)
    for heading in ("Curves", "Results", "Answers", "Data", "Plan", "Environment", "Recipe"):
        assert heading in page.text
    assert page.tags.count("svg") == 7  # loss, two of the evaluation, the hostile metric, three figures
    assert "1,234" in shown and "24" in page.text and "2.13.0" in page.text and "60 of 60 steps" in shown
    (line,) = [value for name, value in page.attributes if name == "points" and value.count(",") == 60][:1]
    xs = [float(point.split(",")[0]) for point in line.split()]
    assert xs == sorted(xs)


def test_the_curves_are_a_picture_where_pillow_is(ended, monkeypatch):
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    run, outcome = ended
    ft_run_end(run, outcome)
    with image.open(run.folder / "curves.png") as picture:
        assert picture.format == "PNG" and picture.size == (2 * 2 * 460, 4 * 2 * 240)
        assert len(picture.convert("RGB").getcolors(100_000)) > 5
    (run.folder / "curves.png").unlink()
    monkeypatch.setitem(sys.modules, "PIL", None)
    ft_run_end(run, outcome)
    assert not (run.folder / "curves.png").exists() and (run.folder / "report.html").exists()


def test_an_old_run_gets_its_page_from_its_folder(ended):
    run, _ = ended
    lines = [{"event": "step", "step": step, "loss": 1.0 / step, "metrics": {}} for step in (1, 2)]
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "nonsense\n")
    counts = {"split": "train", "rows": 24, "used": 20, "tokens": 1234, "trained_tokens": 99, "longest": 31,
              "dropped": {"too long": 4}}  # fmt: skip
    result = {"status": "failed", "reason": "broken", "steps": 2, "rows": [counts],
              "data": {"data.train.sha256": "fb"}}  # fmt: skip
    (run.folder / "result.json").write_text(json.dumps(result))
    done = CliRunner().invoke(command, [str(run.folder)], standalone_mode=False, catch_exceptions=False)
    assert str(run.folder / "report.html") in done.output and "metrics.jsonl: 1 line" in done.output
    shown = Page((run.folder / "report.html").read_text()).text
    assert "failed" in shown and "1,234" in shown and "4 left out: too long" in shown
    with pytest.raises(UserError, match="none: no run has this name"):
        CliRunner().invoke(command, ["none"], standalone_mode=False, catch_exceptions=False)


def test_a_page_replaces_a_page_and_nothing_else(ended, tmp_path):
    """`--output rows.jsonl` replaced the rows; seen when every command was given wrong files."""
    folder = str(ended[0].folder)
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    for file in (rows, page):
        file.write_text("mine")
    with pytest.raises(UserError, match=r"rows.jsonl exists and is not a page \(name a new file"):
        CliRunner().invoke(command, [folder, "--output", str(rows)], standalone_mode=False, catch_exceptions=False)
    CliRunner().invoke(command, [folder, "--output", str(page)], standalone_mode=False, catch_exceptions=False)
    assert rows.read_text() == "mine" and page.read_text() != "mine"


def test_a_page_over_nothing_is_a_page(run, outcome):
    ft_run_end(run, replace(outcome, status="failed", reason="no memory", steps=0, metrics={}, best={}))
    assert "no memory" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("value", [1e30, -1e30, 1e-300, 0.0])
def test_a_curve_of_one_value_is_drawn_however_large(value):
    made = chart("loss", {"loss": [(1, value), (2, value), (3, value)]})
    assert made is not None and "polyline" in svg(made)


def test_two_measurements_are_two_points_and_no_trend():
    made = chart("loss", {"loss": [(1, 3.0), (2, 2.0)]})
    assert made is not None and svg(made).count("<circle") == 2 and "polyline" not in svg(made)
