"""Names possible causes of a number that is not finite: parts of other authors that the run computes with."""

from __future__ import annotations

from finetooth_hooks.errors import NotFinite

from finetooth_core.planning.context import RunContext

COMPUTES = ("optimizer", "kernel", "attention", "loss", "method", "quantizer", "adapter", "schedule", "backend")
"""Kinds of entries whose code computes numbers of a step."""


def with_suspects(error: Exception, context: RunContext) -> Exception:
    """The error; if a loss or a gradient is not finite, one that names the parts of other authors."""
    if not isinstance(error, NotFinite):
        return error
    used, index = context.builder.used, context.builder.catalog.index
    ours = {package for entries in index.values() for packages in entries.values() for package in packages}
    others = {
        f"{registered.entry.kind} {registered.entry.name!r} of {registered.distribution}": None
        for kind in COMPUTES
        for registered in used
        if registered.entry.kind == kind and registered.distribution not in ours
    }
    if not others:
        return error
    action = f"try without {'them' if len(others) > 1 else 'it'} first; {error.action}"
    named = NotFinite(f"{error.problem}; computed with {' and '.join(others)}", action=action, rows=error.rows)
    return named.with_traceback(error.__traceback__)
