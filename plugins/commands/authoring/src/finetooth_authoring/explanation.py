"""Lines of `ft plugins explain`: where an entry comes from, its options, and when it is chosen."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks import CommandContext, Entry
from finetooth_hooks.context import Catalog, Registered

_SHOWN_ELSEWHERE = (
    "name",
    "build",
    "summary",
    "default",
    "example",
    "example_files",
    "example_rows",
    "claims",
    "expected_failures",
)

_CHOSEN = {
    "kernel": "for each operation that it can serve where none ranks higher, or that the recipe gives it: "
    "kernels: {OPERATION: NAME}",
    "loader": "when model.loader is auto, by its claim on the reference in 'model': the strongest claim wins",
    "source": "by its claim on the text in data.train or data.eval, or by name: {name: NAME, ...}",
    "format": "when data.format is auto, by the columns of each source's first row; formats are asked in order of rank",
    "family": "when model.family is auto, by the model's type; the default family takes the rest",
    "renderer": "when data.renderer is auto, by the model's family",
    "processor": "in data.processor, when a row has an image, sound or video",
    "strategy": "in scale.strategy, where several ranks train",
    "launcher": "in scale.launcher, or when it started this process",
    "hardware": "when hardware is auto, if it is there: the one with the highest rank wins",
    "attention": "when attention of the backend is auto, if it serves the model and the device: the highest rank wins",
    "tracker": "in the list 'trackers'",
    "evaluator": "in the list evaluate.evaluators",
    "exporter": "in the list 'export', or by name when a run is exported",
    "face": "by name, when a server is started",
    "release_gate": "by the policy of a registry",
    "page": "by ft board, which has every installed one",
    "command": "as a command of ft",
    "loss": "by a method's option, or by a method that asks for it by name",
    "reward": "by a method's or an evaluator's option",
    "environment": "by a method's option",
    "sampler": "by a method's option",
}
"""When a recipe does not simply name the entry in the section of its kind."""


def explain_lines(context: CommandContext, catalog: Catalog, text: str) -> Iterator[str]:
    """Everything about the entries that `text` may mean.

    Raises:
        PluginError: there is none of that name, or its builder cannot be imported.
    """
    for position, registered in enumerate(catalog.find(text)):
        if position:
            yield ""
        yield from _explain(context, catalog, registered)


def choice_lines(catalog: Catalog, text: str, decisions: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """Why a plan chose an entry, or what it chose of the same kind.

    Args:
        text: as for `explain_lines`.
        decisions: setting, value and reason of every decision of the plan.
    """
    for registered in catalog.find(text):
        alike = [decision for decision in decisions if _kind(decision[0]) == registered.entry.kind]
        # a local file is named as the recipe named it, which the recipe of a run folder does in full
        name = f"{Path(registered.distribution).name}:{registered.entry.name}"
        own = [decision for decision in alike if name in decision[1]]
        others = [] if own else alike
        for setting, value, reason in own or others:
            verb = "chosen here" if own else "not chosen here"
            yield f"{verb}: {setting} is {value}, because: {reason}"
        if not own and not others:
            yield f"not chosen here: the plan decides no {registered.entry.kind} of that name"


def _kind(setting: str) -> str:
    """The kind of entry a setting picks: `model.loader` a loader, `data.train.0` a source, `trackers` trackers."""
    parts = [part for part in setting.split(".") if not part.isdigit()]
    if "attention" in parts:  # of one kind of layer
        return "attention"
    if parts[0] == "export":
        return "exporter"
    if parts[0] == "data" and parts[-1] in ("train", "eval"):
        return "source"
    return parts[-1].removesuffix("s") if parts[-1] in ("trackers", "evaluators") else parts[-1]


def _explain(context: CommandContext, catalog: Catalog, registered: Registered) -> Iterator[str]:
    entry = registered.entry
    yield f"{registered.entry.kind}:{entry.name}" + (f" - {entry.summary}" if entry.summary else "")
    yield f"full name  {registered.full_name}"
    yield f"source     {registered.distribution} {registered.version}".rstrip() + f", {registered.file}"
    yield f"builder    {entry.build}"
    for name, value in _declared(entry):
        yield f"{name:10} {value}"
    for check, reason in entry.expected_failures.items():
        yield f"fails      {check}, on purpose: {reason}"
    yield f"chosen     {_chosen(catalog, registered)}"
    if registered.entry.kind != "command":
        yield from option_lines(context.options_model(registered))


def _declared(entry: Entry) -> Iterator[tuple[str, str]]:
    for field in fields(entry):
        value = getattr(entry, field.name)
        if field.name not in _SHOWN_ELSEWHERE and value not in (None, "", frozenset(), ()):
            yield field.name, _value(value)


def _value(value: Any) -> str:
    """A declared value; of one with fields those that say something."""
    if is_dataclass(value):
        values = {field.name: getattr(value, field.name) for field in fields(value)}
        stated = {
            name: content for name, content in values.items() if content not in (None, False, "", frozenset(), ())
        }
        return "; ".join(name if content is True else f"{name} {_value(content)}" for name, content in stated.items())
    return ", ".join(sorted(map(str, value))) if isinstance(value, (frozenset, tuple)) else str(value)


def _chosen(catalog: Catalog, registered: Registered) -> str:
    rivals = [
        r for r in catalog.all(registered.entry.kind) if r.entry.name == registered.entry.name and r != registered
    ]
    name = registered.full_name if rivals else registered.entry.name
    parts = [_CHOSEN.get(registered.entry.kind, f"when the recipe names it, {registered.entry.kind}: {name}")]
    if registered.entry.kind == "attention" and getattr(registered.entry, "rank", 0) is None:
        parts = [f"when the recipe names it in its backend, attention: {name}"]
    if registered.entry.default:
        others = [r for r in catalog.all(registered.entry.kind) if r.entry.default and r != registered]
        also = f"; {', '.join(r.full_name for r in others)} says so too" if others else ""
        parts.append(f"it is the default, taken when the recipe leaves the choice open{also}")
    if rivals:
        parts.append(f"the bare name is ambiguous, {', '.join(r.full_name for r in rivals)} has it too")
    return "; ".join(parts)


def option_lines(model: type[Any], prefix: str = "") -> Iterator[str]:
    """Options with type, default and documentation; nested models are indented by their path."""
    if not model.model_fields:
        if not prefix:
            yield "options    none"
        return
    if not prefix:
        yield "options"
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else f"= {_default(field.get_default(call_default_factory=True))}"
        yield f"  {prefix}{name}: {type_text(field.annotation)} {default}"
        if field.description:
            yield f"      {' '.join(field.description.split())}"
        for nested in _nested(field.annotation):
            yield from option_lines(nested, f"{prefix}{name}.")


def type_text(annotation: Any) -> str:
    """A type as a user reads it: `float`, `'drop' | 'raise'`, `list[str]`."""
    if annotation is None or annotation is type(None):
        return "null"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(repr(argument) for argument in arguments)
    if origin is typing.Annotated:
        return type_text(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " | ".join(type_text(argument) for argument in arguments)
    if arguments:
        inner = ", ".join("..." if argument is ... else type_text(argument) for argument in arguments)
        return f"{getattr(origin, '__name__', str(origin))}[{inner}]"
    return getattr(annotation, "__name__", str(annotation).replace("typing.", ""))


def _default(value: Any) -> str:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    return json.dumps(value, default=str)


def _nested(annotation: Any) -> Iterator[type[Any]]:
    if isinstance(annotation, type) and hasattr(annotation, "model_fields"):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _nested(argument)
