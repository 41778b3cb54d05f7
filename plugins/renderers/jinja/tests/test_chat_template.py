"""The sandbox against renderings that transformers made of every shared template."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from finetooth_jinja.template import ChatTemplate, TemplateRefused
from finetooth_toolbox.messages import bounded_jinja
from finetooth_toolbox.messages.chat_templates import render_template
from jinja2.sandbox import ImmutableSandboxedEnvironment

NOW = datetime(2026, 1, 15, 12)
REASONING = ("reasoning_content", "thinking", "reasoning")


def as_transformers_passes(message: dict[str, Any]) -> dict[str, Any]:
    """Reasoning under every name that templates read."""
    said = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if said is None else {"thinking": said, **message, "reasoning_content": said}


@pytest.mark.slow
def test_renders_as_transformers_does(shared: Path) -> None:
    counts: Counter[str] = Counter()
    templates: dict[tuple[str, str], ChatTemplate] = {}
    for line in (shared / "golden/chat_renderings.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        name = row["template"]
        variables = {key: row[key] for key in ("bos_token", "eos_token") if row.get(key) is not None}
        variables |= row.get("kwargs", {})
        key = (name, json.dumps(variables))
        if key not in templates:
            templates[key] = ChatTemplate((shared / name).read_text(encoding="utf-8"), NOW, variables)
        template = templates[key]
        messages = [as_transformers_passes(message) for message in row["messages"]]
        try:
            rendered = template.render(messages, row.get("tools") or (), prompt=row["add_generation_prompt"])
        except TemplateRefused:
            assert "expected_error" in row, (name, row["case"])
            counts["refused"] += 1
            continue
        assert rendered.text == row.get("expected"), (name, row["case"])
        counts["rendered"] += 1
        if "assistant_spans" in row:
            assert [list(span) for span in rendered.generated] == row["assistant_spans"], (name, row["case"])
            counts["spans"] += 1
    assert counts == {"rendered": 379, "refused": 28, "spans": 75}


def test_the_date_is_the_given_one() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", NOW, {})
    assert template.render([]).text == "15 Jan 2026"


def test_private_use_characters_of_a_row_are_kept() -> None:
    source = "{% for m in messages %}[{% generation %}{{ m.content }}{% endgeneration %}]{% endfor %}"
    text = "".join(map(chr, range(0xE000, 0xE010)))
    rendered = ChatTemplate(source, NOW, {}).render([{"role": "assistant", "content": text}])
    assert rendered.text == f"[{text}]"
    assert rendered.generated == ((1, 1 + len(text)),)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% set _ = messages.append(1) %}",
        "{{ strftime_now.__self__.__class__.__mro__ }}",
    ],
)
def test_the_sandbox_holds(source: str) -> None:
    with pytest.raises(TemplateRefused):
        ChatTemplate(source, NOW, {}).render([{"role": "user", "content": "a"}])


@pytest.mark.parametrize("source", ["{% for %}", "{{ raise_exception('no') }}", "{{ messages[9].content.x }}"])
def test_failures_are_refusals(source: str) -> None:
    with pytest.raises(TemplateRefused):
        ChatTemplate(source, NOW, {}).render([{"role": "user", "content": "a"}])


BOMBS = {
    "division": "{{ 1/0 }}",
    "macro": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "calls": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "loops": "{% set l = range(100000)|list %}{% for a in l %}{% for b in l %}{% endfor %}{% endfor %}",
    "text": "{{ 'x' * 5000000000 }}",
    "doubled": "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "list": "{% set n = namespace(x=['x']) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "wide": "{{ 'x'.rjust(10000000000) }}",
    "power": "{{ 9 ** 9 ** 9 }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_template_that_does_not_end_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_jinja, "MOST_STEPS", 200_000)
    with pytest.raises(TemplateRefused):
        ChatTemplate(BOMBS[name], datetime(2020, 1, 1), {}).render([{"role": "user", "content": "a"}])
    assert render_template(BOMBS[name], [{"role": "user", "content": "a"}]) is None


def test_bounds_change_nothing_of_what_ends() -> None:
    source = (
        "{% for m in messages if m.role != 'system' %}{{ loop.index ~ '/' ~ loop.length ~ m.role ~ loop.last }}"
        "{% else %}none{% endfor %}{% for x in nowhere %}{% endfor %}{% for k, v in {'a': 1}.items() %}{{ k ~ v }}"
        "{% endfor %}{{ ['b'] + ['c'] }}{{ '-' * 3 }}{{ 7 % 4 }}{{ '%s' % 'd' }}"
    )
    messages = [{"role": role, "content": "x"} for role in ("system", "user", "assistant")]
    plain = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    assert ChatTemplate(source, datetime(2020, 1, 1), {}).render(messages).text == plain.render(messages=messages)
