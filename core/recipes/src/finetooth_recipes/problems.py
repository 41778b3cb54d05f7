"""Turns pydantic's errors into lines for the user: setting, problem, nearest valid name, action."""

from __future__ import annotations

import json
import math
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from finetooth_hooks.errors import RecipeError
from finetooth_toolbox.text.nearest import form, nearest, nearest_slip
from pydantic import BaseModel, ValidationError
from typing_extensions import is_typeddict

from finetooth_recipes.names_elsewhere import almost, meaning_of
from finetooth_recipes.yaml_slips import instead
from finetooth_recipes.yaml_text import Path, dotted, plain

Model = TypeVar("Model", bound=BaseModel)
Detail = Mapping[str, Any]
"""One entry of `ValidationError.errors()`."""

INVALID = "invalid"
"""Type of a `PydanticCustomError` whose context holds the `action`; its message is the problem."""

LETTER = 0.9
"""Similarity of two names of which one lacks a letter, from 0 to 1."""

IN_WORDS = {"model": ", or on a command line --model MODEL"}
"""Other ways to give a required setting."""


class RecipeProblems(RecipeError):
    """Several errors of a recipe, one line each.

    Attributes:
        problems: at least two.
    """

    def __init__(self, problems: Sequence[RecipeError]) -> None:
        super().__init__(problems[0].setting, "")
        self.problems = tuple(problems)
        self.problem = "\n".join(str(problem) for problem in problems)


def raise_problems(problems: Sequence[RecipeError]) -> None:
    """Raise the only problem, or all of them in one error; nothing without problems."""
    problems = [part for problem in problems for part in parts_of(problem)]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise RecipeProblems(problems)


def parts_of(error: RecipeError) -> tuple[RecipeError, ...]:
    """The single problems of an error."""
    return error.problems if isinstance(error, RecipeProblems) else (error,)


def plain_data(value: Any, path: Path) -> Any:
    """A copy of `value` as plain data for YAML and JSON; tuples become lists, paths become text.

    Raises:
        RecipeError: `value` has another type, a number that is not finite, or a key that is not text; names the
            setting.
    """
    if isinstance(value, str):
        if any("\ud800" <= character <= "\udfff" for character in value):
            raise RecipeError(dotted(path), f"{value!a} is not valid Unicode text", action="rename it in UTF-8")
        return str(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecipeError(dotted(path), f"must be a finite number, got {value}", action="write a finite number")
        return float(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise RecipeError(dotted(path), f"the key {key!r} is not a text", action="write the key as a text")
        return {key: plain_data(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(item, (*path, index)) for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return plain_data(os.fspath(value), path)
    kind = type(value).__name__
    raise RecipeError(
        dotted(path), f"is a {kind}, which a recipe cannot hold", action="give texts, numbers, lists, mappings"
    )


def validate(
    model: type[Model],
    value: Mapping[str, Any],
    *,
    prefix: Path = (),
    noun: str = "setting",
    elsewhere: Mapping[str, str] | None = None,
    place: Callable[[Path], str] = lambda path: "",
) -> Model:
    """Check plain data against a pydantic model, strictly: `"3"` is not a number, 1 is not a boolean.

    Args:
        prefix: path of `value` in the recipe.
        noun: the word for a key, `option of adapter x`.
        elsewhere: keys of other sections with their full path, for the nearest name.
        place: returns the position of a path in the file, appended to the problem.

    Raises:
        RecipeError: all errors, one line each.
    """
    try:
        # only pydantic's strict mode for JSON still accepts a list as a tuple and a text as a path
        return model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problems = _Translator(model, value, prefix, noun, elsewhere or {}, place).problems(error)
    raise_problems(problems)
    raise AssertionError("unreachable")


def unknown_key(
    error: ValidationError, model: type[BaseModel], value: Any, *, prefix: Path = (), noun: str = "setting"
) -> RecipeError | None:
    """The first unknown key that a validation found, with the nearest known one; None if all are known.

    Args:
        model, value: that it validated; not a whole recipe, so names of other tools' settings mean nothing.
        prefix, noun: see `validate`.
    """
    for detail in error.errors(include_url=False):
        if detail["type"] == "extra_forbidden":
            told = _Translator(model, value, prefix, noun, {}, lambda path: "", in_recipe=False)
            return told.unknown(typing.cast(Detail, detail))
    return None


def show(value: Any) -> str:
    """A value as text for a message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, str):
        return f"the text {value!r}" if len(value) < 60 else f"the text {value[:57]!r}..."
    if isinstance(value, (int, float)):
        text = str(value) if abs(value) < 1e30 else f"{value:.3g}"
        return f"the number {text}"
    return "a list" if isinstance(value, list) else "a mapping"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
}
_BOUNDS = {
    "greater_than": "must be more than {gt}, got {value}",
    "greater_than_equal": "must be at least {ge}, got {value}",
    "less_than": "must be less than {lt}, got {value}",
    "less_than_equal": "must be at most {le}, got {value}",
    "multiple_of": "must be a multiple of {multiple_of}, got {value}",
    "finite_number": "must be a finite number, got {value}",
    "too_short": "needs {min_length} items or more, has {actual_length}",
    "too_long": "takes at most {max_length} items, has {actual_length}",
    "string_too_short": "must not be shorter than {min_length}, got {value!r}",
    "string_too_long": "takes at most {max_length} characters",
    "string_pattern_mismatch": "must match {pattern}, got {value!r}",
    "value_error": "{error}",
    "assertion_error": "{error}",
}


class _Translator:
    """Translates the errors of one validation."""

    def __init__(
        self,
        model: type[BaseModel],
        value: Any,
        prefix: Path,
        noun: str,
        elsewhere: Mapping[str, str],
        place: Callable[[Path], str],
        in_recipe: bool = True,
    ) -> None:
        self.model, self.value, self.prefix = model, value, prefix
        self.noun, self.elsewhere, self.place = noun, elsewhere, place
        # of a command's options, as of what is not a recipe, no setting helps
        self.in_recipe = in_recipe and not str(*prefix[:1]).startswith("-")

    def problems(self, error: ValidationError) -> list[RecipeError]:
        """One error per setting: a union reports every branch, and the deepest is the one that the user meant."""
        groups: dict[Path, list[Detail]] = {}
        for detail in error.errors(include_url=False):
            groups.setdefault(self._path(detail), []).append(typing.cast(Detail, detail))
        paths = [path for path in groups if not any(len(p) > len(path) and p[: len(path)] == path for p in groups)]
        by_path = {path: self._problem(path, groups[path]) for path in paths}
        meant = {problem.action for problem in by_path.values()}
        for path in paths:  # a misspelt key also leaves the right one missing: report it once
            if groups[path][0]["type"] == "missing" and f"did you mean {self._setting(path)}?" in meant:
                del by_path[path]
        return list(by_path.values())

    def unknown(self, detail: Detail) -> RecipeError:
        """The error for one unknown key."""
        return self._problem(self._path(detail), [detail])

    def _path(self, detail: Mapping[str, Any]) -> Path:
        """The error's place in the data: pydantic's `loc` without the names of union branches."""
        path: list[str | int] = []
        current = self.value
        last = len(detail["loc"]) - 1
        for position, part in enumerate(detail["loc"]):
            is_key = isinstance(current, dict) and part in current
            is_index = isinstance(current, list) and isinstance(part, int) and part < len(current)
            if is_key or is_index:
                current = current[part]
                path.append(part)
            elif detail["type"] == "missing" and position == last:
                path.append(part)
        return tuple(path)

    def _setting(self, path: Path) -> str:
        return dotted((*self.prefix, *path))

    def _problem(self, path: Path, details: list[Detail]) -> RecipeError:
        at = self.place(path)
        setting = self._setting(path)
        kinds = [detail["type"] for detail in details]
        if "extra_forbidden" in kinds:
            return RecipeError(setting, f"unknown {self.noun}{at}", action=self._known(path))
        if "missing" in kinds:
            return RecipeError(setting, "is required and missing", action=f"set {setting}{IN_WORDS.get(setting, '')}")
        value = details[0]["input"]
        for detail in details:
            context = {**{name: _short(bound) for name, bound in detail.get("ctx", {}).items()}, "value": value}
            if detail["type"] == INVALID:
                return RecipeError(setting, detail["msg"] + at, action=str(context["action"]))
            if detail["type"] in _BOUNDS:
                problem = _BOUNDS[detail["type"]].format(**context) if value != "" else "must not be empty"
                return RecipeError(setting, problem + at, action=self._default(path))
        expected = list(dict.fromkeys(filter(None, map(self._expected, details))))
        if not expected:
            message = details[0]["msg"]
            return RecipeError(
                setting, f"{message[0].lower()}{message[1:]}, got {show(value)}{at}", action=self._default(path)
            )
        problem = f"expected {' or '.join(expected)}, got {show(value)}{at}"
        return RecipeError(setting, problem, action=self._correction(path, value, details))

    @staticmethod
    def _expected(detail: Detail) -> str:
        if detail["type"] in ("literal_error", "enum"):
            choices = _choices(detail)
            return choices[0] if len(choices) == 1 else "one of " + ", ".join(choices)
        return _EXPECTED.get(detail["type"], "")

    def _correction(self, path: Path, value: Any, details: list[Detail]) -> str:
        choices = [choice for detail in details for choice in _choices(detail)]
        kinds = {_EXPECTED.get(detail["type"], "") for detail in details}
        slip = instead(value, wanted=kinds - {""})
        if slip:
            return slip
        if isinstance(value, str):
            close = nearest(value, choices)
            if close:
                return f"did you mean {close}?"
            meant = plain(value)
            if isinstance(meant, (int, float)) and kinds & {"a whole number", "a number", "true or false"}:
                return "write it without quotes"
        elif isinstance(value, (int, float)) and self._setting(path) == "data.eval":
            return f"name a file of rows, or write {{fraction: {value if 0 < value < 1 else 0.05}}}"
        elif isinstance(value, (int, float)) and kinds & {"text", "a path"}:
            return "put quotes around it"
        if kinds == {"a mapping"} and value is not None:
            keys = ", ".join(f"{key}: ..." for key in list(self._keys(path))[:2])
            return f"write {{{keys}}}" if keys else "write {key: value}"
        if "a list" in kinds and isinstance(value, str):
            return f"write [{value}]"
        return self._default(path)

    def _default(self, path: Path) -> str:
        """An action that restores a valid value."""
        for model in self._models(path[:-1]) if path else []:
            field = model.model_fields.get(str(path[-1])) if issubclass(model, BaseModel) else None
            if field is not None and not field.is_required():
                default = field.get_default(call_default_factory=True, validated_data={})
                shown = f", {json.dumps(default)}" if isinstance(default, (str, int, float)) else ""
                return f"leave it out for the default{shown}"
        return f"change {self._setting(path)}"

    def _known(self, path: Path) -> str:
        """The intended meaning of an unknown key."""
        key, here = str(path[-1]), self._keys(path[:-1])
        close = nearest(key, here)
        misspelt = len(path) > 1 and nearest_slip(key, here, LETTER) is not None
        known = None if misspelt or not self.in_recipe else meaning_of(key)
        if known is not None and not (close and form(close) == form(key)):  # a known name elsewhere, not a misspelling
            section, _, last = known.setting.rpartition(".")
            if section == self._setting(path[:-1]) and last not in here:
                name = "it" if known.setting == self._setting(path) else known.setting
                return f"{name} is an option of another {section}: pick that one by name"
            return known.action
        from finetooth_recipes.aliases import ALIASES  # here: that module imports this one

        if self.in_recipe and (meant := ALIASES.get(key)):
            return f"did you mean {dotted(meant)}?"
        if close:
            return f"did you mean {self._setting((*path[:-1], close))}?"
        far = nearest(key, self.elsewhere)
        if far and form(far) == form(key):
            return f"did you mean {self.elsewhere[far]}?"
        if self.in_recipe and (slip := almost(key)):
            return slip.action
        return f"known: {', '.join(sorted(here))}" if here else "it takes none; remove it"

    def _keys(self, path: Path) -> tuple[str, ...]:
        """Names of the fields at a path, in order."""
        return tuple(dict.fromkeys(name for model in self._models(path) for name in _annotations(model)))

    def _models(self, path: Path) -> list[type]:
        """The possible models at a path."""
        annotations: list[Any] = [self.model]
        for part in path:
            if isinstance(part, str):
                annotations = [inner for annotation in annotations for inner in _values(annotation, part)]
        return [model for annotation in annotations for model in _models_in(annotation)]


def _annotations(model: type) -> Mapping[str, Any]:
    """Annotations of a model's fields."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return typing.get_type_hints(model)


def _models_in(annotation: Any) -> list[type]:
    """The pydantic models and typed dictionaries in an annotation, but not those that are values of a mapping."""
    if _is_model(annotation):
        return [annotation]
    arguments = () if _is_mapping(annotation) else typing.get_args(annotation)
    return [model for argument in arguments for model in _models_in(argument)]


def _values(annotation: Any, key: str) -> list[Any]:
    """Annotations of the values that a key may have in a value of an annotation."""
    if _is_model(annotation):
        return [_annotations(annotation)[key]] if key in _annotations(annotation) else []
    arguments = typing.get_args(annotation)
    if _is_mapping(annotation):
        return list(arguments[1:])
    return [value for argument in arguments for value in _values(argument, key)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and (is_typeddict(annotation) or issubclass(annotation, BaseModel))


def _is_mapping(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _short(bound: Any) -> Any:
    """A bound of 0.0 as 0."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _choices(detail: Detail) -> list[str]:
    """Allowed values of a literal or enum error, without quotes."""
    if detail["type"] not in ("literal_error", "enum"):
        return []
    text = str(detail.get("ctx", {}).get("expected", ""))
    return [choice.strip("'") for choice in re.split(r", | or ", text)]
