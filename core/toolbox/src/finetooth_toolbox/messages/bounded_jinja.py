"""Jinja for templates that strangers wrote: a sandbox in which whatever runs without end is refused.

What a template can do again and again is go round a loop, call something, and make a text or a list longer. The first
two are counted while it is rendered, the third is looked at where it happens; nothing is judged by time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 4_000_000
"""Rounds of loops and calls of a rendering; a conversation of ten thousand messages takes a tenth of it."""

A_CALL = 10
"""Rounds that a call counts for."""

LONGEST = 2**26
"""Characters or elements of what an operator makes."""

MOST_WIDE = 2**20
"""The largest number that a method of a text is given, such as a width."""

FAILURES = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
    MemoryError,
)
"""What rendering a template may raise."""

_steps: ContextVar[list[int]] = ContextVar("_steps")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Counts what its templates do, within `counted`."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals["_counted"] = _counted
        self.globals["_joined"] = _joined

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _call("_counted", cast(nodes.Expr, loop.iter))
        for joined in list(tree.find_all(nodes.Concat)):
            joined.nodes = [_call("_joined", *joined.nodes)]
        return tree

    def call(self, context: Any, function: Any, *arguments: Any, **named: Any) -> Any:
        """Of a sandbox's template; counted."""
        _step(A_CALL)
        owner = getattr(function, "__self__", None)
        wide = (number for number in (*arguments, *named.values()) if isinstance(number, int))
        if isinstance(owner, str | list) and any(abs(number) > MOST_WIDE for number in wide):
            raise TemplateError(f"the template makes a text of more than {MOST_WIDE:,} characters")
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator; what would become too long is not made."""
        if operator == "**" and any(isinstance(side, int | float) and abs(side) > 1024 for side in (left, right)):
            raise TemplateError("the template makes a number that is too large")
        sized = [len(side) for side in (left, right) if isinstance(side, str | bytes | list | tuple)]
        times = [abs(side) for side in (left, right) if isinstance(side, int)]
        if operator == "*" and sized and times and sized[0] * times[0] > LONGEST:
            raise TemplateError(f"the template makes a text of more than {LONGEST:,} characters")
        if operator == "+":
            _check_length(sum(sized))
        return super().call_binop(context, operator, left, right)


def counted(render: Callable[..., str], **variables: Any) -> str:
    """What a template of a `BoundedEnvironment` makes of variables.

    Raises:
        TemplateError: it does not come to an end, or makes what is too long.
    """
    token = _steps.set([0])
    try:
        return render(**variables)
    finally:
        _steps.reset(token)


def _step(count: int = 1) -> None:
    steps = _steps.get(None)
    if steps is not None:
        steps[0] += count
        if steps[0] > MOST_STEPS:
            raise TemplateError(f"the template does not end within {MOST_STEPS:,} rounds of its loops")


def _counted(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        _step()
        yield value


def _joined(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    _check_length(sum(map(len, texts)))
    return "".join(texts)


def _check_length(length: int) -> None:
    if length > LONGEST:
        raise TemplateError(f"the template makes a text of more than {LONGEST:,} characters")


def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
    line = arguments[0].lineno
    of = nodes.Name(name, "load", lineno=line)
    call = nodes.Call(of, list(arguments), [], None, None, lineno=line)
    if arguments[0].environment is not None:
        call.set_environment(arguments[0].environment)
    return call


__all__ = ["FAILURES", "BoundedEnvironment", "counted"]
