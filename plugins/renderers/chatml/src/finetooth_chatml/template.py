"""Reading a model's own chat template: its default system message, and whether it is ChatML at all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SYSTEM = re.compile(r"<\|im_start\|>system\n(.*?)<\|im_end\|>\n", re.DOTALL)

PROBES: tuple[tuple[Mapping[str, str], ...], ...] = (
    ({"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Quite."},
    ),
)
"""Conversations on which a template is compared with ChatML."""


def render(template: str, messages: Sequence[Mapping[str, str]], *, prompt: bool = False) -> str | None:
    """What the template makes of messages, None if it cannot.

    Args:
        prompt: end where the assistant begins to speak.
    """
    # the two trim settings are the ones chat templates are written for
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    try:
        return str(environment.from_string(template).render(messages=list(messages), add_generation_prompt=prompt))
    except (TemplateError, TypeError, ValueError, LookupError):
        return None


def default_system(template: str | None) -> str:
    """The system message a ChatML template adds when the conversation has none; empty if it adds none."""
    if template is None:
        return ""
    rendered = render(template, [{"role": "user", "content": "Hello?"}])
    match = _SYSTEM.match(rendered or "")
    return match.group(1) if match else ""
