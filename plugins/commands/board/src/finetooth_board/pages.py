"""The board's pages as HTML. Whatever a row, a name or a path says is text: everything goes through `text`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from finetooth_saving.runs.advice import advice
from finetooth_saving.runs.chart import chart, svg
from finetooth_saving.runs.processes import is_free, output_of
from finetooth_saving.runs.recorded import Point, Recorded
from finetooth_toolbox.text.controls import escape_controls

MOST_CHARTS, MOST_ANSWERS = 8, 12
FIGURES = ("learning_rate", "grad_norm", "tokens_per_second")
MODEL = "smollm2-135m"


def text(value: object) -> str:
    """Any value as text of a page."""
    return escape(escape_controls(str(value)))


LINKS: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("links", default=())
"""Address and title of every page of another plugin; set for each request."""

NAMED = "required pattern='[A-Za-z0-9_][A-Za-z0-9_.+\\-]*'"
"""Attributes of a field that takes the name of a new run."""


def page(title: str, body: str) -> str:
    """A whole page."""
    more = "".join(f' <a href="{text(address)}">{text(named)}</a>' for address, named in LINKS.get())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{text(title)}</title><link rel="icon" href="/icon.svg"><link rel="stylesheet" href="/board.css">'
        '</head><body><header><a class="name" href="/">finetooth</a><nav><a href="/new">New run</a>'
        f"{more}</nav></header>"
        f'<main><h1>{text(title)}</h1>{body}</main><script src="/board.js"></script></body></html>\n'
    )


def url_of(name: str, more: str = "") -> str:
    """The address of a run's page."""
    return f"/runs/{quote(name)}{more}"


def run_list(runs: Sequence[tuple[str, Recorded]], left: int) -> str:
    """The table of runs, the newest first.

    Args:
        left: runs that are older and not in it.
    """
    if not runs:
        return '<p>No runs yet. <a href="/new">Begin one</a>, or type <code>ft run recipe.yaml</code> here.</p>'
    rows = (
        f'<tr><td><input type="checkbox" name="run" value="{text(name)}" aria-label="compare {text(name)}"></td>'
        f'<th scope="row"><a href="{text(url_of(name))}">{text(name)}</a></th><td>{_state(run)}</td>'
        f'<td class="n">{_steps(run)}</td><td class="n">{number(run.last.get("loss"))}</td>'
        f"<td>{text(_best(run))}</td><td>{text(run.model)}</td><td>{text(run.pick('method'))}</td>"
        f'<td class="n">{text(_moment(run.began))}</td></tr>'
        for name, run in runs
    )
    heads = ("compare", "run", "state", "steps", "loss", "best", "model", "method", "began")
    more = f'<p class="quiet">{left:,} older runs are not shown: ft runs list</p>' if left else ""
    return table(heads, rows) + more


def compare_form(listed: str) -> str:
    """The list of runs, some of which may be ticked to be compared."""
    return f'<form action="/compare">{listed}<p><button>Compare the ticked runs</button></p></form>'


def run_view(name: str, run: Recorded) -> str:
    """What is live of a run: state, curves, results, answers, what is wrong."""
    wrong = "".join(f"<li>{text(line)}</li>" for line in (*advice(run), *run.problems))
    return "".join(
        (
            f"<p>{_state(run)} {_progress(run)} <span class=quiet>{text(_facts(run))}</span></p>",
            f'<p class="problem">{text(run.reason)}</p>' if run.reason else "",
            f'<div class="charts">{"".join(_charts(run))}</div>',
            section("What to look at", f"<ul>{wrong}</ul>" if wrong else ""),
            section("Results", _results(run)),
            section("Answers", _answers(run)),
            section("Output", output(printed) if (printed := output_of(run.folder)) else ""),
        )
    )


def live(address: str, state: str, inside: str) -> str:
    """A part of a page that is asked for again and again.

    Args:
        state: of a run; the page is loaded again when it is another one.
    """
    return f'<div data-live="{text(address)}" data-state="{text(state)}" aria-live="off">{inside}</div>'


def starting(folder: Path) -> str:
    """What is shown of a run that has no folder yet, or never got one."""
    refused = "It did not begin. Go back, change the recipe, and press <b>Train</b> again:"
    return f"<p>{refused if is_free(folder) else 'It is starting:'}</p>{output(output_of(folder))}"


def run_page(name: str, run: Recorded, token: str, links: str) -> str:
    """The page of a run.

    Args:
        links: to its other pages, as HTML.
    """
    action = "stop" if run.status == "running" else "resume"
    button = (
        ""
        if run.status == "done"
        else f'<form class="row" method="post" action="{text(url_of(name, f"/{action}"))}">{hidden(token)}'
        f"<button>{action.capitalize()}</button></form>"
    )
    rows = f'<iframe title="Rows as the model sees them" loading="lazy" src="{text(url_of(name, "/rows"))}"></iframe>'
    recipe = section("Recipe", output(run.recipe) if run.recipe else "")
    reasons = [
        f'<tr><th scope="row">{text(decision.get("setting", ""))}</th><td>{text(decision.get("value", ""))}</td>'
        f"<td>{text(decision.get('reason', ''))}</td></tr>"
        for decision in run.plan.get("decisions", ())
        if isinstance(decision, Mapping)
    ]
    plan = section("Plan", table(("setting", "value", "reason"), reasons) if reasons else "")
    shown = live(url_of(name, "/live"), run.status, run_view(name, run))
    return page(name, f"{links}{button}{shown}{section('Rows, with what trains', rows)}{recipe}{plan}")


def new_page(token: str, form: Mapping[str, str], wrong: str = "") -> str:
    """The form of a new run: the questions of `ft init`."""
    fields = (
        ("data", "Rows: a file or folder in the board's folder, or a data set's id", form.get("data", ""), "required"),
        ("name", "Name of the run", form.get("name", ""), NAMED),
        ("model", "Base model", form.get("model", MODEL), "required"),
        ("prompt", "Column that asks (empty: found by its name)", form.get("prompt", ""), ""),
        ("completion", "Column that answers (empty: found by its name)", form.get("completion", ""), ""),
        ("system", "System message for all rows (empty: none)", form.get("system", ""), ""),
    )
    inputs = "".join(
        f'<label>{text(label)}<input name="{name}" value="{text(value)}" {more} autocomplete="off"></label>'
        for name, label, value, more in fields
    )
    passes = "".join(
        f'<option value="{value}"{" selected" if form.get("passes", "") == value else ""}>{label}</option>'
        for value, label in (
            ("", "as long as the rows need"), ("look", "a look, 20 steps"), ("1", "one pass"), ("3", "three passes"),
        )
    )  # fmt: skip
    return page(
        "New run",
        f'{problem(wrong)}<p>Or <a href="/settings">choose every setting</a>, or <a href="/import">bring the '
        'configuration of another tool</a>. <a href="/models">Which models fit this machine</a> comes first.</p>'
        f'<form class="tall" method="post" action="/new" data-wait="Looking at the rows ...">{hidden(token)}'
        '<label>Upload rows (CSV, JSON lines, Parquet ...)<input type="file"></label><span id="said" role="status">'
        f'</span>{inputs}<label>How long<select name="passes">{passes}</select></label>'
        "<button>Look at the rows and write a recipe</button></form>",
    )


def recipe_page(token: str, name: str, recipe: str, printed: str) -> str:
    """The recipe that was written, to be changed or taken."""
    return page(
        f"Recipe of {name}",
        f'{output(printed)}<form class="tall" method="post" action="/start" data-wait="Starting ...">'
        f"{hidden(token)}{hidden_field('name', name)}"
        f'<label>Recipe<textarea name="recipe" spellcheck="false">{text(recipe)}</textarea></label>'
        "<button>Train</button></form>",
    )


def error_page(title: str, wrong: str) -> str:
    """A page that says what is wrong."""
    return page(title, f'{problem(wrong)}<p><a href="/">All runs</a></p>')


def hidden(token: str) -> str:
    """The token of a form."""
    return hidden_field("token", token)


def hidden_field(name: str, value: str) -> str:
    """What a form sends without showing it."""
    return f'<input type="hidden" name="{text(name)}" value="{text(value)}">'


def table(heads: Iterable[str], rows: Iterable[str]) -> str:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        rows: as HTML.
    """
    headers = "".join(f'<th scope="col">{text(head)}</th>' for head in heads)
    return (
        f'<div class="wide" tabindex="0"><table><thead><tr>{headers}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def output(printed: str) -> str:
    """What a command printed."""
    return f'<pre tabindex="0">{text(printed)}</pre>'


def problem(wrong: str) -> str:
    """What is wrong; nothing if nothing is."""
    return f'<pre tabindex="0" class="problem" role="alert">{text(wrong)}</pre>' if wrong else ""


def section(title: str, content: str) -> str:
    """A part of a page below a heading; nothing where there is none."""
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _charts(run: Recorded) -> Iterable[str]:
    """Loss in training and held out together, other evaluations, metrics of the method, figures of the steps."""
    series = run.series()
    groups: dict[str, dict[str, list[Point]]] = {
        "loss": {name: series[name] for name in ("loss", "eval/loss") if name in series}
    }
    others = [name for name in series if name not in ("loss", "eval/loss")]
    others.sort(key=lambda name: (name in FIGURES, not name.startswith("eval/")))
    groups |= {name: {name: series[name]} for name in others}
    for title, curves in list(groups.items())[:MOST_CHARTS]:
        if curves and (made := chart(title, curves)) is not None:
            yield svg(made)


def _results(run: Recorded) -> str:
    if not run.evaluations:
        return ""
    rows = (
        f'<tr><td class="n">{text(evaluation.get("step", ""))}</td><td>{text(evaluation.get("name", ""))}</td>'
        f"<td>{text(_figures(evaluation.get('metrics')))}</td><td>{text(_figures(evaluation.get('baselines')))}</td></tr>"
        for evaluation in run.evaluations
    )
    return table(("step", "evaluator", "result", "baseline"), rows)


def _figures(values: Mapping[str, Any] | None) -> str:
    return ", ".join(f"{name} {number(value)}" for name, value in (values or {}).items())


def _answers(run: Recorded) -> str:
    """Questions with the answers of the first and of the last evaluation that kept some."""
    answered = [evaluation for evaluation in run.evaluations if evaluation.get("samples")]
    if not answered:
        return ""
    first, last = answered[0], answered[-1]
    before, after = answers_of(first), answers_of(last)
    heads = ("asked", "expected", *(f"answer at step {shown.get('step', 0)}" for shown in (first, last)))
    cells = (
        (row.get("prompt", ""), row.get("expected") or "", before.get(id_, {}).get("answer", ""), row.get("answer", ""))
        for id_, row in list(after.items())[:MOST_ANSWERS]
    )
    return table(heads, map(text_row, cells))


def answers_of(evaluation: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Samples that an evaluation kept, by their row's id."""
    samples = evaluation.get("samples")
    return {str(row.get("id")): row for row in samples if isinstance(row, Mapping)} if isinstance(samples, list) else {}


def text_row(cells: Iterable[object]) -> str:
    """A row of texts, whose lines stay as they are."""
    return "<tr>" + "".join(f'<td class="text">{text(cell)}</td>' for cell in cells) + "</tr>"


def _state(run: Recorded) -> str:
    return f'<span class="{text(run.status)}">{text(run.status)}</span>'


def _progress(run: Recorded) -> str:
    if run.status != "running" or not run.total_steps:
        return ""
    return f'<progress max="{int(run.total_steps)}" value="{int(run.step)}" aria-label="steps done"></progress>'


def _steps(run: Recorded) -> str:
    return f"{run.step:,}" + (f" of {int(run.total_steps):,}" if run.total_steps else "")


def _facts(run: Recorded) -> str:
    facts = [f"{_steps(run)} steps", run.model, run.pick("method"), f"began {_moment(run.began)}"]
    speed = run.series().get("tokens_per_second")
    if run.status == "running" and speed:
        facts.append(f"{speed[-1][1]:,.0f} tokens a second")
    if run.status == "running" and run.total_steps and run.step:
        facts.append(f"about {_duration(run.seconds / run.step * (run.total_steps - run.step))} left")
    elif run.seconds:
        facts.append(f"took {_duration(run.seconds)}")
    return " · ".join(filter(None, facts))


def _best(run: Recorded) -> str:
    return _figures(run.best)


def number(value: Any) -> str:
    """A figure of four digits; a dash for none."""
    return f"{value:.4g}" if isinstance(value, int | float) else "-"


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
