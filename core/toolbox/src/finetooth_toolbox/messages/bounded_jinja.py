"""Jinja for untrusted templates: a sandbox that refuses endless templates.

A template can repeat loops and calls, and make texts or lists longer. The sandbox counts loops and calls during
rendering, and checks each longer value before it is made; it measures no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 4_000_000
"""Largest number of loop iterations and calls in a rendering; ten thousand messages need a tenth of it."""

A_CALL = 10
"""Number of iterations that a call counts for."""

LONGEST = 2**26
"""Largest length of an operator's result, in characters or elements."""

MOST_WIDE = 2**20
"""The largest numeric argument of a text's method, such as a width."""

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
"""Exceptions of rendering a template."""

_steps: ContextVar[list[int]] = ContextVar("_steps")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Counts the work of its templates inside `counted`."""

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
        """A call from a template; counts it."""
        _step(A_CALL)
        owner = getattr(function, "__self__", None)
        wide = (number for number in (*arguments, *named.values()) if isinstance(number, int))
        if isinstance(owner, str | list) and any(abs(number) > MOST_WIDE for number in wide):
            raise TemplateError(f"the template makes a text of more than {MOST_WIDE:,} characters")
        return super().call(context, function, *arguments, **named)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator; refuses a result that would be too long."""
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
    """The text of a template of a `BoundedEnvironment` with variables.

    Raises:
        TemplateError: the template does too much work, or makes a value that is too long.
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
