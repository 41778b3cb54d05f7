"""One page of HTML about a run: everything in it, nothing from elsewhere, no script.

Whatever a row, a model or a path says is text on the page: it goes through `html.escape`, and a policy in the page's
head forbids scripts and requests, should anything have slipped through.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from finetooth_saving.runs.advice import advice
from finetooth_saving.runs.chart import Chart, chart, svg
from finetooth_saving.runs.recorded import Point, Recorded
from finetooth_toolbox.text.controls import escape_controls

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{margin:0}h2{margin:2rem 0 .5rem;border-bottom:1px solid #8886}
table{border-collapse:collapse;width:100%;font-size:.9em}
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;border-bottom:1px solid #8883}
td{overflow-wrap:anywhere}
td.text{white-space:pre-wrap}pre{overflow:auto;padding:1rem;background:#8881}
.charts{display:flex;flex-wrap:wrap;gap:1rem}.charts svg{max-width:100%;height:auto}
.done{color:#2ca02c}.failed,.interrupted{color:#d62728}.quiet{opacity:.7}
"""
FIGURES = ("learning_rate", "grad_norm", "tokens_per_second")
MOST_CHARTS = 12
MOST_SAMPLES = 12


def page(run: Recorded) -> str:
    """The page of a run."""
    sections = (
        ("Curves", _curves(run)),
        ("Results", _results(run)),
        ("Answers", _answers(run)),
        ("Data", _data(run)),
        ("What happened", _happened(run)),
        ("Plan", _plan(run)),
        ("Environment", _environment(run)),
        ("Recipe", f"<pre>{_text(run.recipe)}</pre>" if run.recipe else ""),
    )
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections if content)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(run.name)}</title><style>{STYLE}</style></head>"
        f"<body>{_head(run)}{body}</body></html>\n"
    )


def pictures(run: Recorded) -> list[Chart]:
    """The charts of a run: loss in training and held out together, other evaluations, metrics of the method, figures of
    the steps."""
    series = run.series()
    groups: dict[str, dict[str, list[Point]]] = {}
    if "loss" in series:
        groups["loss"] = {"loss": series["loss"]}
        if "eval/loss" in series:
            groups["loss"]["eval/loss"] = series["eval/loss"]
    shown = {"loss", "eval/loss"} if "loss" in groups else set()
    ordered = [name for name in series if name.startswith("eval/")]
    ordered += [name for name in series if not name.startswith("eval/") and name not in FIGURES]
    for name in (*ordered, *(name for name in FIGURES if name in series)):
        if name not in shown:
            groups[name] = {name: series[name]}
    made = (chart(title, curves) for title, curves in list(groups.items())[:MOST_CHARTS])
    return [picture for picture in made if picture is not None]


def _head(run: Recorded) -> str:
    total = f" of {run.total_steps}" if run.total_steps is not None else ""
    facts = [
        f'<b class="{escape(run.status)}">{_text(run.status)}</b>',
        f"{run.step}{total} step{'' if run.step == 1 and not total else 's'}",
        _duration(run.seconds),
        *(_text(fact) for fact in (run.model, run.pick("method"), run.pick("adapter")) if fact),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(run.began)) if run.began else "",
    ]
    reason = f"<p>{_text(run.reason)}</p>" if run.reason else ""
    problems = "".join(f'<p class="failed">{_text(problem)}</p>' for problem in run.problems)
    return f"<h1>{_text(run.name)}</h1><p>{' · '.join(filter(None, facts))}</p>{reason}{problems}"


def _curves(run: Recorded) -> str:
    charts = "".join(svg(picture) for picture in pictures(run))
    return f'<div class="charts">{charts}</div>' if charts else ""


def _results(run: Recorded) -> str:
    series, best = run.series(), run.best
    rows = []
    for name, points in series.items():
        if name == "loss" or name.startswith("eval/"):
            rows.append((name, _number(points[0][1]), _number(points[-1][1]), _number(best.get(name))))
    baselines = {
        f"{name}": value
        for evaluation in run.evaluations
        for name, value in (evaluation.get("baselines") or {}).items()
    }
    rows += [(name, "", _number(value), "") for name, value in baselines.items()]
    return _table(("metric", "first", "last", "best"), rows)


def _answers(run: Recorded) -> str:
    """Of each evaluator the answers of its first and its last evaluation; of a method that samples, its last ones."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for evaluation in run.evaluations:
        if evaluation.get("samples"):
            by_name.setdefault(str(evaluation["name"]), []).append(evaluation)
    parts = []
    for name, own in by_name.items():
        before = {sample["id"]: sample for sample in own[0]["samples"]} if len(own) > 1 else {}
        rows = [
            (
                sample.get("prompt", ""),
                before.get(sample["id"], {}).get("answer", ""),
                sample.get("answer", ""),
                sample.get("expected", ""),
                _number(sample.get("score")),
            )
            for sample in own[-1]["samples"][:MOST_SAMPLES]
        ]
        headers = (
            "question",
            f"step {own[0]['step']}" if before else "",
            f"step {own[-1]['step']}",
            "expected",
            "score",
        )
        parts.append(f"<h3>{_text(name)}</h3>{_table(headers, rows, text=True)}")
    sampled = next((report for report in reversed(run.steps) if report.get("samples")), None)
    if sampled is not None:
        learned = [(s.get("prompt", ""), s.get("answer", ""), _number(s.get("score"))) for s in sampled["samples"]]
        parts.append(f"<h3>step {sampled['step']}</h3>{_table(('prompt', 'answer', 'reward'), learned, text=True)}")
    return "".join(parts)


def _data(run: Recorded) -> str:
    rows = []
    for report in run.result.get("rows") or ():
        dropped = [f"{count} left out: {reason}" for reason, count in (report.get("dropped") or {}).items()]
        changed = [f"{count} changed: {reason}" for reason, count in (report.get("changed") or {}).items()]
        rows.append(
            (
                report.get("split", ""),
                *(f"{report.get(name) or 0:,}" for name in ("rows", "used", "tokens", "trained_tokens", "longest")),
                "; ".join((*dropped, *changed, *report.get("notes", ()))),
            )
        )
    return _table(("split", "rows", "used", "tokens", "trained tokens", "longest", "left out or changed"), rows)


def _happened(run: Recorded) -> str:
    lines = [*advice(run)]
    lines += [f"resumed: {json.dumps(event)}" for event in run.result.get("resumed") or ()]
    lines += [f"bad step: {json.dumps(event)}" for event in run.result.get("bad_steps") or ()]
    return "".join(f"<p>{_text(line)}</p>" for line in lines)


def _plan(run: Recorded) -> str:
    decisions = [
        (decision.get("setting", ""), _value(decision.get("value")), decision.get("reason", ""))
        for decision in run.plan.get("decisions", ())
    ]
    memory = run.plan.get("memory", {}).get("parts", {})
    parts = [_table(("setting", "value", "because"), decisions)]
    if memory:
        parts.append(f"<h3>Memory at the peak, estimated</h3>{_table(('part', 'takes'), _sizes(memory))}")
    parts += [f"<p>{_text(note)}</p>" for note in run.plan.get("notes", ())]
    return "".join(parts)


def _environment(run: Recorded) -> str:
    rows = list((run.result.get("environment") or {}).items())
    rows += [(name, version) for name, version in (run.result.get("plugins") or {}).items()]
    return _table(("what", "version"), rows)


def _sizes(parts: Mapping[str, float]) -> list[tuple[str, str]]:
    return [(name, f"{taken / 1e6:,.1f} MB") for name, taken in parts.items() if taken]


def _table(headers: Sequence[str], rows: Iterable[Sequence[Any]], *, text: bool = False) -> str:
    """A table; empty without rows. All cells are text."""
    rows = list(rows)
    if not rows:
        return ""
    cell = '<td class="text">' if text else "<td>"
    head = "".join(f"<th>{_text(header)}</th>" for header in headers)
    body = "".join(f"<tr>{''.join(f'{cell}{_text(value)}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _text(value: Any) -> str:
    """Text of the page, whatever it spells."""
    return escape(escape_controls(str(value)))


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
