"""Checks the values that plugins return to the core: type, shape, count, finite numbers.

Otherwise the code that uses a wrong value would raise the error. The message here names the plugin that returned it,
with the line of its code. No check reads numbers on a device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from inspect import getattr_static
from numbers import Integral, Real
from pathlib import Path
from types import new_class
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from finetooth_hooks import protocols
from finetooth_hooks.compute.losses import Contribution, LossResult, Per
from finetooth_hooks.compute.strategies import Rank
from finetooth_hooks.context import Registered
from finetooth_hooks.data.examples import Parsed, Rendered, Row
from finetooth_hooks.data.sources import Portion
from finetooth_hooks.environments import Answer, Observation
from finetooth_hooks.errors import DataError, PluginError
from finetooth_hooks.exporters import Exported
from finetooth_hooks.releases import Verdict
from finetooth_hooks.reports import DataReport, Evaluation, Prepared, StepReport
from finetooth_hooks.rollouts import Sampled
from finetooth_toolbox import blame


@dataclass(frozen=True)
class Called:
    """A function of a plugin, for messages.

    Attributes:
        of: the entry.
        name: of the method; empty: the builder returned a function.
        code: the function itself.
    """

    of: Registered
    name: str
    code: Any

    def wrong(self, value: Any, wanted: str) -> PluginError:
        """The refusal of a returned value.

        Args:
            wanted: the required value, `an Evaluation`.
        """
        return self.refused(f"returned {blame.shown(value)} not {wanted}", f"return {wanted}")

    def refused(self, problem: str, action: str) -> PluginError:
        """See `wrong`."""
        entry = self.of.entry
        method = f": {self.name}()" if self.name else ""
        return PluginError(
            self.of.distribution,
            f"{entry.kind} {entry.name!r}{method} {problem}{blame.where(self.code)}",
            action=action,
        )


Check = Callable[[Called, Any, tuple[Any, ...]], Any]
"""Returns the value to pass on, from a plugin's value and arguments; raises an error if the value is wrong."""


def a(*types: type, wanted: str = "") -> Check:
    """Checks that a value has one of some types; `type(None)` allows None."""
    text = wanted or " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)

    def check(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
        if not isinstance(value, types):
            raise called.wrong(value, text)
        return value

    return check


def something(wanted: str, *attributes: str) -> Check:
    """Checks that a value is an object of a framework, so neither None nor a plain value, and has some attributes."""

    def check(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
        plain = value is None or isinstance(value, str | int | float | list)
        if plain or not all(hasattr(value, name) for name in attributes):
            raise called.wrong(value, wanted)
        return value

    return check


def each(*types: type, wanted: str, look: Callable[[Called, Any], None] | None = None) -> Check:
    """Checks that a value is an iterable, and checks its items while they are consumed.

    Args:
        look: raises an error for a wrong item.
    """

    def check(called: Called, value: Any, arguments: tuple[Any, ...]) -> Iterator[Any]:
        if not isinstance(value, Iterable):
            raise called.wrong(value, f"an iterator over {wanted}")

        def values() -> Iterator[Any]:
            try:
                for yielded in value:
                    if not isinstance(yielded, types):
                        raise called.refused(f"yielded {blame.shown(yielded)} not {wanted}", f"yield {wanted}")
                    if look is not None:
                        look(called, yielded)
                    yield yielded
            finally:
                if isinstance(value, Generator):
                    value.close()

        return values()

    return check


def number(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """A finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise called.wrong(value, "a finite number")
    return value


def finite(*types: type) -> Check:
    """Checks that a value has one of some types, that its numbers and those of its parts are finite, and that pairs
    have two items."""
    of_type = a(*types)

    def check(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
        if fault := _not_finite(of_type(called, value, arguments)):
            raise called.refused(f"returned a {type(value).__name__} whose {fault}", "give a finite number")
        for name, hint in get_type_hints(type(value)).items():
            sizes, part = get_args(hint), getattr(value, name)
            if get_origin(hint) is tuple and Ellipsis not in sizes and len(part) != len(sizes):
                problem = f"returned a {type(value).__name__} whose {name} is {part!r}"
                raise called.refused(problem, f"give {len(sizes)} values")
        return value

    return check


def _not_finite(value: Any) -> str:
    """The first part of a dataclass or a mapping that is NaN or infinite: `report.length_deviation is nan`."""
    fields = {name: getattr(value, name) for name in getattr(value, "__dataclass_fields__", ())}
    for name, part in (value if isinstance(value, Mapping) else fields).items():
        if isinstance(part, float) and not math.isfinite(part):
            return f"{name} is {part}"
        if fault := _not_finite(part):
            return f"{name}.{fault}"
    return ""


def hardware(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """Checks for hardware facts with at least one device."""
    if not finite(protocols.HardwareFacts)(called, value, arguments).devices:
        raise called.refused("returned a HardwareFacts without devices", "give one, or say in missing() why not")
    return value


def stepped(called: Called, value: Any) -> None:
    """Checks the report of a step: its loss is a number, and finite unless the optimizer was not applied."""
    for name, part in {"loss": value.loss, **value.metrics}.items():
        if not isinstance(part, Real) or (name == "loss" and not value.skipped and not math.isfinite(part)):
            raise called.refused(f"yielded a StepReport whose {name} is {part!r}", "report a finite number")


def ids(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """Token ids."""
    if not isinstance(value, Sequence) or not all(isinstance(token, Integral) for token in value[:1]):
        raise called.wrong(value, "a tuple of token ids")
    return value


def read_row(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """Checks for an example, a `LeftOut`, or several of them."""
    if not hasattr(value, "__dataclass_fields__") and not (isinstance(value, list | tuple) and value):
        raise called.wrong(value, "an example, or a list of them")
    return value


def rendered(called: Called, value: Any, arguments: tuple[Any, ...]) -> Rendered:
    """Checks for tokens, each with a finite weight."""
    if not isinstance(value, Rendered):
        raise called.wrong(value, "a Rendered")
    if len(value.weights) != len(value.tokens):
        raise called.refused(
            f"returned {len(value.weights)} weights for {len(value.tokens)} tokens", "give each token a weight"
        )
    if not math.isfinite(sum(value.weights)):
        raise called.refused("returned weights that are not finite", "weight each token by a finite number")
    return value


def measured(called: Called, value: Any, arguments: tuple[Any, ...]) -> Evaluation:
    """Checks that metrics and baselines are finite numbers, since rules on metrics cannot judge others."""
    if not isinstance(value, Evaluation):
        raise called.wrong(value, "an Evaluation")
    for kind, numbers in (("metric", value.metrics), ("baseline", value.baselines)):
        for name, metric in numbers.items():
            if not isinstance(metric, Real):
                raise called.refused(f"returned {blame.shown(metric)} as {kind} {name!r}", f"make each {kind} a number")
            if not math.isfinite(metric):
                raise called.refused(f"returned {metric} as {kind} {name!r}", f"leave out a {kind} that has no value")
    return value


def contributions(called: Called, value: Any, arguments: tuple[Any, ...]) -> LossResult:
    """Checks the contributions of a loss: scalars, each with a known normalizer."""
    if not isinstance(value, LossResult):
        raise called.wrong(value, "a LossResult")
    for name, part in value.contributions.items():
        if not isinstance(part, Contribution):
            raise called.refused(f"returned {blame.shown(part)} as {name!r}", "make each a Contribution")
        if shape := tuple(getattr(part.total, "shape", ())):
            raise called.refused(
                f"returned a total of {name!r} of shape {shape}", "add it up to a scalar, over what counts"
            )
        if part.per not in get_args(Per):
            raise called.refused(f"returned {name!r} per {part.per!r}", f"take one of {', '.join(get_args(Per))}")
    return value


def attended(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """Checks the shape (rows, heads, positions, value size), and the query's type."""
    query, _, values = arguments[:3]
    wanted = (*query.shape[:3], values.shape[-1])
    if getattr(value, "shape", None) != wanted or value.dtype != query.dtype:
        shape = getattr(value, "shape", None)
        what = blame.shown(value) if shape is None else f"{value.dtype} of shape {tuple(shape)},"
        raise called.refused(f"returned {what} not {query.dtype} of shape {tuple(wanted)}", "return what it must")
    return value


def sampled(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """Checks the requested number of rollouts."""
    if not isinstance(value, Sampled):
        raise called.wrong(value, "a Sampled")
    _, prompts, sampling = arguments[:3]
    if len(value.rollouts) != len(prompts) * sampling.n:
        raise called.refused(
            f"returned {len(value.rollouts)} rollouts for {len(prompts)} prompts, {sampling.n} each",
            "return `sampling.n` of each prompt, in their order",
        )
    return value


def answered(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """Checks for an answer whose reward and metrics are numbers; a NaN reward later fails only its episode."""
    a(Answer)(called, value, arguments)
    scored = {} if value.reward is None else {"reward": value.reward}
    for name, number in {**value.metrics, **scored}.items():
        if not isinstance(number, Real):
            raise called.refused(f"returned {number!r} as {name}", "return a number")
    return value


def wrote(inner: Check) -> Check:
    """Checks a value with `inner`, and that the folder among the arguments is no longer empty."""

    def check(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
        folder = next((argument for argument in arguments if isinstance(argument, Path)), None)
        if folder is not None and folder.is_dir() and not any(folder.iterdir()):
            raise called.refused("wrote no file", "write what was trained into the folder that it is given")
        return inner(called, value, arguments)

    return check


def episode(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """Checks for an episode, and adds checks to its methods."""
    something("an Episode, with begin(), answer() and close()", "begin", "answer", "close")(called, value, arguments)
    return checked(value, EPISODE, called.of)


def has_run(called: Called, value: Any, arguments: tuple[Any, ...]) -> None:
    """Checks for None from a function that has run: a coroutine or a generator would never run its body."""
    if isinstance(value, Coroutine | Generator):
        value.close()
        raise called.refused(f"returned a {type(value).__name__}, whose body never runs", "make it a plain function")


def application(called: Called, value: Any, arguments: tuple[Any, ...]) -> Any:
    """Checks for an ASGI application and its context manager."""
    if not (isinstance(value, tuple) and len(value) == 2 and callable(value[0]) and hasattr(value[1], "__aenter__")):
        raise called.wrong(value, "an ASGI application and an asynchronous context manager")
    return value


EPISODE: Mapping[str, Check] = {"begin": a(Observation), "answer": answered}
NONE = type(None)
METHODS: Mapping[str, Mapping[str, Check]] = {
    "adapter": {
        "trained_parameters": a(Integral, wanted="a number of parameters"),
        "apply": something("the model"),
        "low_rank": a(protocols.LowRank, NONE),
        "rate_shares": a(Mapping),
        "after_step": a(Mapping),
        "export": wrote(a(object)),
        **dict.fromkeys(("held_bytes", "kept_bytes", "token_bytes", "beginning_bytes", "rate_factor"), number),
    },
    "attention": {"": attended},
    "backend": {"plan": finite(protocols.BackendPlan), "engine": something("an engine")},
    "environment": {"episode": episode},
    "evaluator": {"prepare": a(DataReport, NONE), "evaluate": measured},
    "exporter": {"export": wrote(a(Exported))},
    "face": {"app": application, "refusal": a(Mapping)},
    "family": {"facts": finite(protocols.ModelFacts)},
    "format": {"detect": a(str, NONE), "read": read_row},
    "gate": {"check": lambda called, value, given: value},  # a result that is not text is a refusal of the checkpoint
    "kernel": {},
    "hardware": {"missing": a(str), "facts": hardware},
    "launcher": {"rank": a(Rank, NONE), "start": a(Integral, wanted="the exit code of the run")},
    "loader": {
        "describe": a(protocols.ModelInfo),
        "sketch": a(protocols.ModelInfo),
        "load": something("the model"),
    },
    "loss": {"": contributions},
    "method": {
        "prepare": finite(Prepared),
        "steps": each(StepReport, wanted="a StepReport", look=stepped),
        "state": a(Mapping),
    },
    "optimizer": {"create": something("an optimizer")},
    "page": {"app": something("an ASGI application")},
    "processor": {"place": a(protocols.MediumPlace), "inputs": a(Mapping)},
    "quantizer": {"takes": a(bool, np.bool_, wanted="True or False"), "linear": something("the module in its place")},
    "release_gate": {"judge": a(Verdict)},
    "renderer": {"render": rendered, "prompt": ids, "parse": a(Parsed)},
    "sampler": {"sample": sampled},
    "schedule": {"factor": number},
    "source": {
        "rows": each(Row, wanted="a Row"),
        "portions": each(Portion, wanted="a Portion"),
        "read": each(Row, DataError, wanted="a Row, or a DataError"),
    },
    "store": {"names": a(list, tuple), "manifest": a(bytes)},
    "strategy": {
        "open": something("a Collective", "rank", "world", "sum", "gather", "broadcast"),
        "wrap": something("the model"),
        "spread": something("an engine"),
        "digest": a(str),
    },
    "tracker": dict.fromkeys(("start", "resume", "step", "evaluated", "end"), has_run),
}
"""Checks by kind and method; with an empty name the builder's result is itself the function."""


def checked(built: Any, methods: Mapping[str, Check], registered: Registered) -> Any:
    """A builder's result with checks around its methods, or around itself if it is a function.

    Raises:
        PluginError: the result can have no methods.
    """
    if "" in methods:
        if not callable(built):
            raise _builder(registered).wrong(built, f"a function that computes the {registered.entry.kind}")
        return _function(built, methods[""], Called(registered, "", built))
    if registered.entry.kind == "kernel":
        if not isinstance(built, protocols.Kernel):
            raise _builder(registered).wrong(built, "a finetooth_hooks.protocols.Kernel")
        return built
    if built is None or isinstance(built, str | int | float | list | tuple | dict):
        raise _builder(registered).wrong(built, f"an object with {', '.join(f'{name}()' for name in methods)}")
    own = vars(built) if hasattr(built, "__dict__") else {}
    for name in methods.keys() & own.keys():
        object.__setattr__(built, name, _function(own[name], methods[name], Called(registered, name, own[name])))
    with suppress(TypeError):  # an object whose class cannot change stays unchecked
        object.__setattr__(built, "__class__", _class_of(type(built), methods, registered))  # for frozen objects
    return built


def _builder(registered: Registered) -> Called:
    module, _, function = registered.entry.build.partition(":")
    return Called(registered, function, getattr(sys.modules.get(module), function, None))


def _class_of(kind: type, methods: Mapping[str, Check], registered: Registered) -> type:
    """A subclass of the same name with checks around some methods."""
    if getattr(kind, CHECKED, False):
        return kind
    key = kind, registered.full_name, tuple(methods)
    if key not in _classes:
        body: dict[str, Any] = {
            name: _function(_current(kind, name, code), check, Called(registered, name, code), skip=1)
            for name, check in methods.items()
            if callable(code := getattr(kind, name, None))
        }
        about = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
        body |= {**about, "__slots__": (), CHECKED: True}
        _classes[key] = new_class(kind.__name__, (kind,), exec_body=lambda space: space.update(body))
    return _classes[key]


def _current(kind: type, name: str, code: Any) -> Callable[..., Any]:
    """Looks up the method in its class at each call: it may be replaced there, and checked classes are permanent."""

    @wraps(code)
    def function(*arguments: Any, **named: Any) -> Any:
        own = getattr_static(kind, name)  # static methods and class methods take no object
        return (own.__get__(arguments[0], kind) if hasattr(own, "__get__") else own)(*arguments[1:], **named)

    return function


def _function(code: Any, check: Check, called: Called, skip: int = 0) -> Callable[..., Any]:
    """
    Args:
        skip: number of leading arguments that the check does not get: `self`.
    """

    @wraps(code)
    def function(*arguments: Any, **named: Any) -> Any:
        return check(called, code(*arguments, **named), (*arguments[skip:], *named.values()))

    return function


CHECKED = "_finetooth_checked"
_classes: dict[tuple[type, str, tuple[str, ...]], type] = {}
"""Classes with checks, one per process, like all classes."""
