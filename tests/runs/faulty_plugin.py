"""A local plugin around an entry of another package, one of whose functions goes wrong. A test writes `CASE` in."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from finetooth_core.plugins.builders import options_model
from finetooth_hooks import Attention, AttentionServes, Claim, Entry, NoOptions, Reward, hookimpl

CASE = SimpleNamespace(**json.loads("""CASE"""))
"""The module of the other package's hooks, the hook, the kind and the name of its entry; the function that goes wrong
(`build`, a method, empty for what is a function itself), and how."""
RAISED = {
    "json": lambda: json.loads("{"),
    "stop": lambda: next(iter(())),
    "exit": lambda: exit("of the plugin"),
    "file": lambda: Path("/nowhere/missing.json").read_text(),
    "key": lambda: {}["missing"],
    "import": lambda: import_module("not_there_at_all"),
}
"""Ways to raise, most of them deep inside of a library."""


def letters(options: NoOptions, context: Any) -> Any:
    return lambda prompts, completions, columns: [float(sum(c in "aeiou" for c in text)) for text in completions]


def rows(options: NoOptions, context: Any) -> Any:
    import torch

    def attend(query: Any, key: Any, value: Any, *, scale: float, lengths: Any, causal: bool, **more: Any) -> Any:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        cached, done = key.shape[2] - query.shape[2], []
        for row, sequences in enumerate(lengths):
            owner = torch.tensor([n for n, length in enumerate(sequences) for _ in range(length)])
            place = torch.arange(len(owner))
            seen = owner[cached:, None] == owner
            seen = seen & (place <= place[cached:, None]) if causal else seen
            scores = query[row] @ key[row].transpose(1, 2) * scale
            done.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[row])
        return torch.stack(done)

    return attend


SERVES = AttentionServes(devices=frozenset({"cpu"}), precisions=frozenset({"fp32"}), fused=False)
PLAIN = {
    "reward": Reward(name="letters", build=f"{__name__}:letters"),
    "attention": Attention(name="rows", build=f"{__name__}:rows", serves=SERVES),
}
"""Entries that no package has so simple."""


def sound() -> Entry:
    if CASE.kind in PLAIN:
        return PLAIN[CASE.kind]
    return next(entry for entry in getattr(import_module(CASE.module), CASE.hook)() if entry.name == CASE.name)


def listed() -> Iterator[Entry]:
    changes: dict[str, Any] = {"name": "acme", "build": f"{__name__}:build", "default": False}
    if CASE.kind == "loader":
        changes["claims"] = lambda reference: Claim(9, "it takes every model")
    if CASE.kind == "source":
        changes["claims"] = None
    yield dataclasses.replace(sound(), **changes)


globals()[CASE.hook] = hookimpl(globals().pop("listed"))
if CASE.hook != "ft_rewards":

    @hookimpl
    def ft_rewards() -> Iterator[Entry]:
        yield PLAIN["reward"]


def wrong(value: Callable[[], Any]) -> Any:
    """What the function answers instead of what it would."""
    if CASE.fault in RAISED:
        return RAISED[CASE.fault]()
    return None if CASE.fault == "none" else spoiled(value()) if CASE.fault == "nan" else value()


def spoiled(value: Any) -> Any:
    """The same with NaN in the place of every number that could be one."""
    import torch

    if isinstance(value, float) or (isinstance(value, torch.Tensor) and value.is_floating_point()):
        return value * float("nan")
    if isinstance(value, tuple | list):
        return type(value)(map(spoiled, value))
    if isinstance(value, dict):
        return {name: spoiled(one) for name, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(value, **{name: spoiled(getattr(value, name)) for name in fields})
    return value


def misled(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a kernel is given, so that the gradient of the first is none, zero, of a wrong shape or NaN."""
    import torch

    class Misled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.view_as(x)

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return GRADIENTS[CASE.fault](grad)

    return (Misled.apply(given[0]), *given[1:])  # type: ignore[no-untyped-call]


GRADIENTS: dict[str, Callable[[Any], Any]] = {
    "no gradient": lambda grad: None,
    "gradient of zeros": lambda grad: 0 * grad,
    "gradient of another shape": lambda grad: grad[..., :-1],
    "gradient of NaN": lambda grad: grad * float("nan"),
}


def around(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def answer(*given: Any, **named: Any) -> Any:
        given = misled(given) if CASE.fault in GRADIENTS else given
        return wrong(lambda: function(*given, **named)) if name == CASE.function else function(*given, **named)

    return answer


def build(options: Any, context: Any) -> Any:
    module, _, name = sound().build.partition(":")
    builder = getattr(import_module(module), name)
    given = {"options": options, "context": context}
    given = {name: given[name] for name in inspect.signature(builder).parameters if name in given}
    if CASE.function == "build":
        return wrong(lambda: builder(**given))
    made = builder(**given)
    if CASE.kind == "kernel":
        return dataclasses.replace(made, functions={n: around(f, n) for n, f in made.functions.items()})
    if CASE.function == "":
        return around(made, "")
    static = isinstance(inspect.getattr_static(type(made), CASE.function), staticmethod | classmethod)
    code = around(getattr(type(made), CASE.function), CASE.function)

    def method(self: Any, *given: Any, **named: Any) -> Any:
        return code(*(given if static else (self, *given)), **named)

    made_wrong = type(type(made).__name__, (type(made),), {CASE.function: method, "__slots__": ()})
    object.__setattr__(made, "__class__", made_wrong)  # frozen: no other way
    return made


build.__annotations__["options"] = options_model(sound())
