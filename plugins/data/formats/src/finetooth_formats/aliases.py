"""Options with additional names from axolotl's datasets; the plan reports renamed ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from finetooth_hooks import Options
from finetooth_hooks.context import Context
from pydantic import ModelWrapValidatorHandler, PrivateAttr, model_validator

REASONING_NAMES = ("reasoning", "reasoning_content", "thinking")
"""Keys of an assistant's reasoning in mappings of message properties."""

RENDERER_OPTIONS = {
    "chat_template_kwargs": "data.renderer: {name: jinja, arguments: {...}}",
    "chat_template": "data.renderer",
    "chat_template_jinja": "data.renderer: {name: jinja, template: FILE}",
}
"""Names whose settings are not the format's, and where they are."""


class AliasedOptions(Options):
    """Options with further names.

    Attributes:
        aliases: our name by the other one; `fields.role` is the key `role` of the option `fields`.
    """

    aliases: ClassVar[Mapping[str, str]] = {}
    _read_as: tuple[tuple[str, str], ...] = PrivateAttr(default=())

    @model_validator(mode="wrap")
    @classmethod
    def _renamed(cls, data: Any, handler: ModelWrapValidatorHandler[AliasedOptions]) -> AliasedOptions:
        if not isinstance(data, Mapping):
            return handler(data)
        values = dict(data)
        read_as = tuple(cls._rename(values))
        options = handler(values)
        options._read_as = read_as
        return options

    @classmethod
    def _rename(cls, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Move the values of aliases to their options; returns the renamed ones."""
        for name in list(values):
            if name in RENDERER_OPTIONS and name not in cls.model_fields:
                raise ValueError(f"{name} is not an option of the format: set {RENDERER_OPTIONS[name]}")
            if name not in cls.aliases:
                continue
            ours, _, key = cls.aliases[name].partition(".")
            value = {key: values.pop(name)} if key else values.pop(name)
            if (
                isinstance(values.get(ours), Mapping)
                and isinstance(value, Mapping)
                and not set(value) & set(values[ours])
            ):
                value = {**values[ours], **value}
            elif ours in values:
                raise ValueError(f"{name} is another name of {cls.aliases[name]}: give one of them")
            values[ours] = value
            yield name, cls.aliases[name]

    def tell(self, context: Context) -> None:
        """Note in the plan which names were read as which."""
        for theirs, ours in self._read_as:
            context.note(f"data.format: {theirs} is read as {ours}", topic=f"data.format.{theirs}")


def reasoning_key(fields: Any) -> Any:
    """A mapping of message properties with the name `reasoning` for an assistant's reasoning."""
    if not isinstance(fields, Mapping):
        return fields
    return {"reasoning" if key in REASONING_NAMES else key: value for key, value in fields.items()}


def roles_by_name(roles: Any) -> Any:
    """`{human: user}` from either that or `{user: [human]}`.

    Raises:
        ValueError: a name means two roles.
    """
    if not isinstance(roles, Mapping) or not any(isinstance(names, list | tuple) for names in roles.values()):
        return roles
    by_name: dict[Any, Any] = {}
    for role, names in roles.items():
        for name in names if isinstance(names, list | tuple) else [names]:
            if by_name.setdefault(name, role) != role:
                raise ValueError(f"{name!r} stands for {by_name[name]} and for {role}")
    return by_name
