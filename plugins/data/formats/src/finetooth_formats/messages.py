"""Reading lists of messages: every problem of a row is named with its path, nothing is repaired unseen."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetooth_hooks import DataError, Message
from finetooth_hooks.examples import ROLES, Placed, Weighted

from finetooth_formats.columns import kind
from finetooth_formats.images import ACTION, PART_TYPES, PLACEHOLDER, ImageProblem, RowImages
from finetooth_formats.tools import ToolProblem, read_call, read_tools

SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
"""Speakers of ShareGPT conversations and the roles they have here; a function call is the assistant's."""

REASONING = ("reasoning_content", "reasoning", "thinking")
READ = {"role", "content", "tool_calls", "name", "train", "weight", *REASONING}
IDENTIFIERS = {"id", "tool_call_id"}  # link a tool's message to its call; order says the same


PART_TEXTS = ("text", "content", "value")
"""Where a part of a content has its text."""


@dataclass(frozen=True)
class Content:
    """A text, ranges of it with a weight of their own, and the images in it."""

    text: str
    weights: tuple[Weighted, ...] = ()
    images: tuple[Placed, ...] = ()


NOTHING = Content("")


class MessageReader:
    """Reads messages of the OpenAI shape (`role`, `content`) and of the ShareGPT shape (`from`, `value`).

    Args:
        roles: further role names and the roles they stand for.
        note: told once about whatever is read in an unusual way.
    """

    def __init__(
        self, roles: Mapping[str, str] | None = None, note: Callable[..., None] = lambda text, *, topic: None
    ) -> None:
        self._roles = dict(roles or {})
        self._note = note
        self._noted: set[str] = set()
        self._images: RowImages | None = None  # of the row that is being read

    def read(self, where: str, column: str, value: Any, images: RowImages | None = None) -> tuple[Message, ...]:
        """Messages of one column.

        Args:
            where: id of the row.
            column: name of the column, the root of the paths in errors.
            images: of the row; without them a message may have none.

        Raises:
            DataError: names every problem of the row with its path, `messages[0].content`.
        """
        value = self._decoded(where, column, value)
        if not isinstance(value, list | tuple):
            raise DataError(
                where, f"{column} is {kind(value)}, not a list of messages", action="write a list of objects"
            )
        if not value:
            raise DataError(where, f"{column} is empty", action="remove the row")
        problems: list[str] = []
        self._images = images
        try:
            messages = [self._message(f"{column}[{i}]", item, problems) for i, item in enumerate(value)]
        except ImageProblem as problem:
            raise DataError(where, str(problem), action=ACTION) from problem
        finally:
            self._images = None
        if problems:
            raise DataError(where, "; ".join(problems), action=self._remedy(value))
        return tuple(message for message in messages if message is not None)

    def said(self, where: str, column: str, role: str, text: str, images: RowImages) -> Message:
        """One message with the text of a column, in which `<image>` stands for images of the row.

        Raises:
            DataError: there are more places than images.
        """
        self._images = images
        try:
            content = self._with_images(column, text)
        except ImageProblem as problem:
            raise DataError(where, str(problem), action=ACTION) from problem
        finally:
            self._images = None
        return Message(role, content.text, images=content.images)

    def tools(self, where: str, value: Any) -> tuple[Mapping[str, Any], ...]:
        """Tool schemas: a list of objects, or the same as JSON text.

        Raises:
            DataError: neither.
        """
        try:
            return read_tools(value)
        except ToolProblem as problem:
            raise DataError(where, str(problem), action="write tools as a list of function schemas") from problem

    def _decoded(self, where: str, column: str, value: Any) -> Any:
        """A list that was encoded twice is decoded, with a note."""
        if not isinstance(value, str):
            return value
        try:
            decoded = json.loads(value)
        except json.JSONDecodeError as error:
            raise DataError(
                where, f"{column} is text that is not JSON", action="write a list of objects with role and content"
            ) from error
        self._once(f"{column} is JSON inside a string in {where} and maybe other rows; it was decoded")
        return decoded

    def _once(self, text: str) -> None:
        topic = text.split(" ", 1)[0]
        if topic not in self._noted:
            self._noted.add(topic)
            self._note(text, topic=f"formats: {topic}")

    def _message(self, path: str, item: Any, problems: list[str]) -> Message | None:
        if not isinstance(item, Mapping):
            problems.append(f"{path} is {kind(item)}, not an object")
            return None
        item = {
            key: value
            for key, value in item.items()
            if value is not None or key in ("content", "value", "role", "from")
        }
        found = len(problems)
        if "from" in item and "role" not in item:
            message = self._sharegpt(path, item, problems)
        else:
            message = self._openai(path, item, problems)
        return message if len(problems) == found else None

    def _openai(self, path: str, item: Mapping[str, Any], problems: list[str]) -> Message:
        unread = sorted(set(item) - READ - IDENTIFIERS)
        if unread:
            self._once(f"{', '.join(unread)}: such keys of messages are not used")
        role = self._role(f"{path}.role", item, "role", self._roles, problems)
        calls = self._calls(f"{path}.tool_calls", item.get("tool_calls", ()), problems)
        content = self._content(f"{path}.content", item, "content", problems, optional=bool(calls), role=role)
        reasoning = self._reasoning(path, item, problems)
        return Message(
            role,
            content.text,
            reasoning=reasoning.text,
            tool_calls=calls,
            name=self._text(f"{path}.name", item.get("name", ""), problems),
            train=self._train(path, item, problems),
            weights=content.weights,
            reasoning_weights=reasoning.weights,
            images=content.images,
        )

    def _sharegpt(self, path: str, item: Mapping[str, Any], problems: list[str]) -> Message:
        speaker = item.get("from")
        role = self._role(f"{path}.from", item, "from", {**SHAREGPT_ROLES, **self._roles}, problems)
        content = self._content(f"{path}.value", item, "value", problems, optional=False, role=role)
        train = self._train(path, item, problems)
        if speaker != "function_call":
            return Message(role, content.text, train=train, weights=content.weights, images=content.images)
        return Message(role, "", tool_calls=self._calls(f"{path}.value", content.text, problems), train=train)

    def _role(self, path: str, item: Mapping[str, Any], key: str, roles: Mapping[str, str], problems: list[str]) -> str:
        value = item.get(key)
        if key not in item:
            near = difflib.get_close_matches(key, list(item), n=1)
            problems.append(f"{path} is missing" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif not isinstance(value, str):
            problems.append(f"{path} is {kind(value)}, not text")
        elif value in roles:
            return roles[value]
        elif value not in ROLES or key == "from":
            accepted = ", ".join(roles if key == "from" else (*ROLES, *roles))
            problems.append(f"{path} is {value!r}, accepted are {accepted}")
        else:
            return value
        return ""

    def _content(
        self, path: str, item: Mapping[str, Any], key: str, problems: list[str], *, optional: bool, role: str
    ) -> Content:
        value = item.get(key)
        if isinstance(value, list | tuple):
            content = self._parts(path, value, problems)
            if content is not None and not content.text and not content.images and not optional and role != "tool":
                problems.append(f"{path} is empty")
            return content or NOTHING
        if key not in item or value is None:
            if not optional:
                problems.append(f"{path} is {'missing' if key not in item else 'null'}")
            return NOTHING
        if not isinstance(value, str):
            problems.append(f"{path} is {kind(value)}, not text")
            return NOTHING
        if not value and not optional and role != "tool":
            problems.append(f"{path} is empty")
        return self._with_images(path, value)

    def _with_images(self, path: str, value: str) -> Content:
        """A text in which `<image>` stands for the images of the row's column, if it has one."""
        if self._images is None or not self._images.given or PLACEHOLDER not in value:
            return Content(value)
        texts = value.split(PLACEHOLDER)
        found, at = [], 0
        for text in texts[:-1]:
            at += len(text)
            found.append(Placed(at, self._images.next(path)))
        return Content("".join(texts), (), tuple(found))

    def _parts(self, path: str, parts: Sequence[Any], problems: list[str]) -> Content | None:
        """Content given in parts of text, each with a flag of its own or none, and images between them; the texts are
        joined as they are."""
        text = ""
        weights: list[Weighted] = []
        images: list[Placed] = []
        before: bool | float | None = None
        for i, part in enumerate(parts):
            type_ = part.get("type") if isinstance(part, Mapping) else kind(part)
            if type_ in PART_TYPES and self._images is not None:
                images.append(Placed(len(text), self._images.part(f"{path}[{i}]", part)))
                continue
            found = [key for key in PART_TEXTS if isinstance(part, Mapping) and isinstance(part.get(key), str)]
            if type_ != "text" or not found:
                readable = "text" if self._images is None else "text and images"
                problems.append(f"{path}[{i}] is a part of type {type_!r}; only {readable} can be read")
                return None
            flag = self._train(f"{path}[{i}]", part, problems)
            if i and flag != before and text[-1:].isspace() and text[-1:] != "\n":
                self._once(
                    f"parts with other flags meet at a blank in {path}[{i}] and maybe other rows; the blank often "
                    "belongs to the token after it, which then does not train: put it at the beginning of the next part"
                )
            said = part[found[0]]
            if flag is not None and said:
                weights.append(Weighted(len(text), len(text) + len(said), float(flag)))
            text, before = text + said, flag
        return Content(text, tuple(weights), tuple(images))

    def _calls(self, path: str, value: Any, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
        try:
            if isinstance(value, str):
                return (read_call(path, value),) if value else ()
            if not isinstance(value, list | tuple):
                raise ToolProblem(f"{path} is {kind(value)}, not a list of calls")
            return tuple(read_call(f"{path}[{i}]", call) for i, call in enumerate(value))
        except ToolProblem as problem:
            problems.append(str(problem))
            return ()

    def _reasoning(self, path: str, item: Mapping[str, Any], problems: list[str]) -> Content:
        key = next((name for name in REASONING if name in item), None)
        if key is None:
            return NOTHING
        if isinstance(item[key], list | tuple):
            return self._parts(f"{path}.{key}", item[key], problems) or NOTHING
        return Content(self._text(f"{path}.{key}", item[key], problems))

    def _train(self, path: str, item: Mapping[str, Any], problems: list[str]) -> bool | None:
        """`train: true|false`, or OpenAI's `weight: 0|1`."""
        value = item.get("train", item.get("weight"))
        if value is None or isinstance(value, bool):
            return value
        if value in (0, 1) and "train" not in item:
            return bool(value)
        key, wanted = ("train", "true or false") if "train" in item else ("weight", "0 or 1")
        problems.append(f"{path}.{key} is {value!r}, accepted are {wanted}")
        return None

    def _text(self, path: str, value: Any, problems: list[str]) -> str:
        if isinstance(value, str):
            return value
        problems.append(f"{path} is {kind(value)}, not text")
        return ""

    def _remedy(self, value: Sequence[Any]) -> str:
        """The next action for a row with problems; for well-known foreign roles, the option that maps them."""
        spoken = [item.get("role") for item in value if isinstance(item, Mapping)]
        known = SHAREGPT_ROLES.keys() - set(ROLES) - self._roles.keys()
        foreign = sorted({role for role in spoken if isinstance(role, str) and role in known})
        if not foreign:
            return "fix or remove the row"
        mapping = ", ".join(f"{role}: {SHAREGPT_ROLES[role]}" for role in foreign)
        return f"set data.format: {{name: chat, roles: {{{mapping}}}}}"
