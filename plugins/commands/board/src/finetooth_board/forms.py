"""The board's forms, as HTML: settings made of the schema, uses of a run, chat."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from finetooth_board.pages import (
    MODEL,
    NAMED,
    hidden,
    hidden_field,
    output,
    page,
    problem,
    section,
    table,
    text,
    url_of,
)
from finetooth_board.settings import Field

LONGEST = 300
"""Characters of what a setting means; the reference has the rest."""


def field(label: str, name: str, value: str = "", more: str = "", hint: str = "") -> str:
    """A line to fill in.

    Args:
        more: further attributes, as HTML.
        hint: shown below the label.
    """
    return (
        f'<label>{text(label)}{_hint(hint)}<input aria-label="{text(label)}" aria-description="{text(hint)}" '
        f'name="{text(name)}" value="{text(value)}" {more} autocomplete="off"></label>'
    )


def choice(label: str, name: str, choices: Iterable[tuple[str, str]], value: str = "", hint: str = "") -> str:
    """A choice of values, each with what is shown for it."""
    options = "".join(
        f'<option value="{text(option)}"{" selected" if option == value else ""}>{text(shown)}</option>'
        for option, shown in choices
    )
    return (
        f'<label>{text(label)}{_hint(hint)}<select aria-label="{text(label)}" aria-description="{text(hint)}" '
        f'name="{text(name)}">{options}</select></label>'
    )


def _hint(hint: str) -> str:
    return f'<span class="quiet">{text(hint)}</span>' if hint else ""


def tick(label: str, name: str) -> str:
    """A box to tick."""
    return f'<label class="tick"><input type="checkbox" name="{name}" value="yes"> {text(label)}</label>'


def form(action: str, token: str, inside: str, button: str, wait: str = "") -> str:
    """A form that changes something.

    Args:
        wait: what the button says while it is answered.
    """
    waits = f' data-wait="{text(wait)}"' if wait else ""
    return (
        f'<form class="tall" method="post" action="{text(action)}"{waits}>{hidden(token)}{inside}'
        f"<button>{text(button)}</button></form>"
    )


def settings_page(
    token: str,
    picks: Mapping[str, Mapping[str, str]],
    picked: Mapping[str, str],
    fields: Mapping[str, Sequence[Field]],
    values: Mapping[str, str],
    wrong: str = "",
) -> str:
    """The form of all settings.

    Args:
        picks: what each section may pick, with what it does.
        picked: what was picked; it decides which options there are.
        fields: settings by section.
        values: what was filled in.
        wrong: what was wrong with it.
    """
    choose = "".join(
        choice(name, name, [("", "by itself"), *((entry, f"{entry}: {about}") for entry, about in entries.items())],
               picked.get(name, ""))
        for name, entries in picks.items()
    )  # fmt: skip
    keep = "".join(hidden_field(name, entry) for name, entry in picked.items())
    needed = (
        field("Name of the run", "name", values.get("name", ""), NAMED),
        field("Rows: a file or folder in the board's folder, or a data set's id", "data", values.get("data", ""),
              "required"),
        field("Base model", "model", values.get("model", MODEL), "required"),
    )  # fmt: skip
    sections = (
        f"<details{' open' if name in picked else ''}><summary>{text(name)}: {text(picked.get(name, ''))} "
        f'({len(inside)} settings)</summary><div class="inside">'
        f"{''.join(_setting(setting, values) for setting in inside)}</div></details>"
        for name, inside in fields.items()
    )
    body = (
        f'{problem(wrong)}<form class="tall" action="/settings">{choose}<button>Show their '
        "options</button></form><h2>Settings</h2><p>The plan decides every field that is left empty, and says "
        "why.</p>"
        + form("/settings", token, keep + "".join((*needed, *sections)), "Write and check the recipe", "Checking ...")
    )
    return page("Recipe by settings", body)


def _setting(setting: Field, values: Mapping[str, str]) -> str:
    name, value, about = setting.name, values.get(setting.name, ""), setting.about
    about = about if len(about) <= LONGEST else f"{about[:LONGEST]}..."
    if setting.choices:
        empty = f"default: {setting.default}" if setting.default else "default"
        return choice(name, name, [("", empty), *((each, each) for each in setting.choices)], value, about)
    return field(name, name, value, f'placeholder="{text(setting.default)}"', about)


def import_page(token: str, values: Mapping[str, str], wrong: str = "") -> str:
    """The form that names another tool's configuration."""
    fields = (
        '<label>Upload it (YAML, JSON, a script or a notebook)<input type="file"></label><span id="said" role="status">'
        "</span>",
        field("The file, in the board's folder", "data", values.get("data", ""), "required"),
        field("Name of the run", "name", values.get("name", ""), NAMED),
    )
    return page(
        "Recipe of another tool's configuration",
        problem(wrong) + form("/import", token, "".join(fields), "Read it and write a recipe", "Reading ..."),
    )


def use_forms(name: str, token: str, exporters: Mapping[str, str]) -> str:
    """The forms to merge, export and push a run."""
    action = url_of(name, "/use")
    named = [(exporter, f"{exporter}: {about}") for exporter, about in exporters.items()]
    merge = form(action, token, hidden_field("what", "merge"), "Merge")
    export = form(
        action, token,
        hidden_field("what", "export") + choice("For", "to", named)
        + field("Options (KEY=VALUE, with spaces between them)", "options")
        + tick("do not measure what was written", "unmeasured"),
        "Export",
    )  # fmt: skip
    push = form(
        action, token,
        hidden_field("what", "push") + field("Repository", "to", "", "required placeholder='hf:OWNER/NAME'")
        + choice("As", "as", [("", "the adapter alone, or the model"), *named])
        + tick("make it public", "public"),
        "List what would be sent", "Listing ...",
    )  # fmt: skip
    return "".join(
        (
            section("Merge", f"<p>One model for transformers and other tools, without an adapter.</p>{merge}"),
            section("Export", export),
            section("Push to a hub", f"<p>Nothing is sent before you have seen the list of files.</p>{push}"),
        )
    )


def push_form(name: str, token: str, values: Mapping[str, str], printed: str, *, sends: bool) -> str:
    """What a push would send, and the button that sends it.

    Args:
        sends: whether it can.
    """
    if not sends:
        return problem(printed)
    keep = "".join(hidden_field(key, values[key]) for key in ("what", "to", "as", "public") if values.get(key))
    seen = hidden_field("seen", "yes")
    return output(printed) + form(url_of(name, "/use"), token, keep + seen, "Push")


def chat_page(
    name: str,
    token: str,
    models: Sequence[str],
    history: Mapping[str, Sequence[Mapping[str, str]]],
    others: Sequence[str],
    other: str,
    wrong: str = "",
) -> str:
    """A conversation with several models at once.

    Args:
        models: as the server calls them, the base first.
        history: messages so far, by model.
        others: runs that may answer too.
        other: the one that does; empty for none.
        wrong: why nobody answered.
    """
    turns = len(history.get(models[0], ())) // 2
    rows = []
    for turn in range(turns):
        question = history[models[0]][2 * turn]["content"]
        cells = "".join(f'<td class="text">{text(history[model][2 * turn + 1]["content"])}</td>' for model in models)
        rows.append(f'<tr><th scope="row" class="text">{text(question)}</th>{cells}</tr>')
    address = url_of(name, "/chat")
    choose = choice("Another run that answers too", "with", [("", "none"), *((run, run) for run in others)], other)
    picker = f'<form class="tall" action="{text(address)}">{choose}<button>Begin to chat</button></form>'
    keep = hidden_field("with", other) + hidden_field("said", json.dumps(history))
    fields = '<label>Your message<textarea class="short" name="text" required autofocus></textarea></label>'
    fields += field("Tokens of an answer, at most", "tokens", "256", "type=number min=1 max=4096")
    heads = ("you", *models)
    return page(
        f"Chat with {name}",
        problem(wrong)
        + (table(heads, rows) if rows else "")
        + form(address, token, keep + fields, "Ask", "Answering; the first time loads the models ...")
        + picker,
    )
