"""Reading lists of messages: every problem of a row is named with its path, nothing is repaired unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from finetooth_hooks import DataError, Message
from finetooth_hooks.data.examples import ROLES, Placed
from finetooth_toolbox.messages.tool_schemas import is_bare, wrapped
from finetooth_toolbox.text.nearest import nearest
from finetooth_toolbox.text.strict_json import JsonProblem, decode

from finetooth_formats.columns import key as key_shown
from finetooth_formats.columns import kind, shown, unspeakable
from finetooth_formats.media import ACTION, PLACEHOLDERS, SPELLED, MediumProblem, RowMedia
from finetooth_formats.parts import NOTHING, Content, read_flag, read_parts, read_ranges, split_thought, thoughts_apart
from finetooth_formats.tools import ToolProblem, read_calls, read_tools

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

CALLING: Mapping[str, str] = {"function_call": "assistant"}
"""ShareGPT's function calls under `role`, as LLaMA-Factory's datasets may have them."""

FOREIGN_ROLES: Mapping[str, str] = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    "developer": "system",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "chatgpt": "assistant",
    "agent": "assistant",
    "ai": "assistant",
    "customer": "user",
    "function": "tool",
    "ipython": "tool",
}
"""Meanings of other tools' roles; errors suggest them, but nothing is mapped automatically."""

REASONING = ("reasoning_content", "reasoning", "thinking")
REMEMBERED = 256
"""So many sets of keys that messages have are remembered."""
IDENTIFIERS = {"id"}  # of messages; nothing is made of them
OPTIONAL = {"content", "value", "role", "from"}  # null has another meaning than a missing key


def _tell_nobody(text: str, *, topic: str) -> None:
    """No notes."""


@dataclass(frozen=True)
class Keys:
    """Keys of the parts of a message; of several, the first that it has."""

    role: str
    content: str
    reasoning: tuple[str, ...]
    tool_calls: str
    name: str


class MessageReader:
    """Reads messages of the OpenAI shape (`role`, `content`) and of the ShareGPT shape (`from`, `value`).

    Args:
        roles: further role names, with the roles that they mean.
        fields: keys of messages that are called otherwise, by our name (`MessageOptions.fields`).
        note: receives one note about unusual forms of rows.
        format_: the format's name, for errors.
        train_roles: roles whose messages train, where a message does not say; None leaves it to the method.
        train_field: the key with a message's own flag.
        ranges_field: the key with flags of characters; empty reads none.
        split_thinking: reasoning at the beginning of an assistant's content is taken out of it.
        may_be_empty: roles whose messages may say nothing. What an empty system message becomes is for the renderer to
            say, as the model's own template does.
    """

    def __init__(
        self,
        roles: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None,
        note: Callable[..., None] = _tell_nobody,
        *,
        format_: str = "chat",
        train_roles: Sequence[str] | None = None,
        train_field: str = "train",
        ranges_field: str = "",
        split_thinking: bool = False,
        may_be_empty: Sequence[str] = ("system",),
    ) -> None:
        self._may_be_empty = ("tool", *may_be_empty)
        self._roles, self._fields, self._note, self._format = dict(roles or {}), dict(fields or {}), note, format_
        self._train_roles, self._train_field, self._ranges_field = train_roles, train_field, ranges_field
        self._split_thinking = split_thinking
        self._noted: set[str] = set()
        self._found: dict[tuple[str, ...], Keys] = {}
        self._media: RowMedia | None = None  # of the row that is being read

    def read(self, where: str, column: str, value: Any, media: RowMedia | None = None) -> tuple[Message, ...]:
        """Messages of one column.

        Args:
            where: id of the row.
            column: name of the column, the root of the paths in errors.
            media: of the row; without them a message may have none.

        Raises:
            DataError: names every problem of the row with its path, `messages[0].content`.
        """
        value = self._decode(where, column, value)
        if not isinstance(value, list | tuple):
            raise DataError(
                where, f"{column} is {kind(value)}, not a list of messages", action="write a list of objects"
            )
        if not value:
            raise DataError(where, f"{column} is empty", action="remove the row")
        problems: list[str] = []
        with self._reading(where, media):
            messages = [self._message(f"{column}[{i}]", item, problems) for i, item in enumerate(value)]
        if problems:
            raise DataError(where, "; ".join(problems), action=self._remedy(value))
        return tuple(message for message in messages if message is not None)

    def one(self, where: str, column: str, value: Mapping[str, Any], media: RowMedia | None = None) -> Message:
        """A single message in a column.

        Args:
            media: of the row; without them it may have none.

        Raises:
            DataError: names every problem with its path.
        """
        problems: list[str] = []
        with self._reading(where, media):
            message = self._message(column, value, problems)
        if problems or message is None:
            raise DataError(where, "; ".join(problems), action=self._remedy([value]))
        return message

    def system(self, where: str, column: str, value: Any) -> str:
        """A system message in a separate column: text or parts of text, possibly empty.

        Raises:
            DataError: neither.
        """
        problems: list[str] = []
        if isinstance(value, list | tuple):
            content = read_parts(column, value, problems) or NOTHING
        else:
            content = Content(self._text(column, value, problems))
        if problems:
            raise DataError(where, "; ".join(problems), action=f"write {column} as a string")
        return content.text

    def text_message(self, where: str, column: str, role: str, text: str, media: RowMedia) -> Message:
        """One message with the text of a column, in which `<image>` (`<audio>`, `<video>`) stands for one of the row.

        Raises:
            DataError: there are more places than it has.
        """
        with self._reading(where, media):
            content = self._with_media(column, Content(text))
        return Message(role, content.text, media=content.media)

    @contextmanager
    def _reading(self, where: str, media: RowMedia | None) -> Iterator[None]:
        """Inside the `with` block, messages may have these images, sounds and videos."""
        self._media = media
        try:
            yield
        except MediumProblem as problem:
            raise DataError(where, str(problem), action=ACTION) from problem
        finally:
            self._media = None

    def tools(self, where: str, value: Any) -> tuple[Mapping[str, Any], ...]:
        """Tool schemas: a list of objects, or the same as JSON text. Those without the level `function` are given it,
        with a note.

        Raises:
            DataError: neither.
        """
        try:
            tools = read_tools(value)
        except ToolProblem as problem:
            raise DataError(where, str(problem), action="write tools as a list of function schemas") from problem
        if not any(map(is_bare, tools)):
            return tools
        self.once(
            "bare tools",
            f"tools of {where}, and maybe of other rows, lack the level 'function': they are read as "
            '{"type": "function", "function": {...}}, the form that models know',
        )
        return tuple(wrapped(tool) if is_bare(tool) else tool for tool in tools)

    def once(self, topic: str, text: str) -> None:
        """Note something that may be so in many rows."""
        if topic not in self._noted:
            self._noted.add(topic)
            self._note(text, topic=f"formats: {topic}")

    def _decode(self, where: str, column: str, value: Any) -> Any:
        """A list that was encoded twice is decoded, with a note."""
        if not isinstance(value, str):
            return value
        try:
            decoded = decode(value)
        except JsonProblem as problem:
            action = "write a list of objects with role and content"
            raise DataError(where, f"{column} is text, and no list in JSON: {problem}", action=action) from problem
        self.once(column, f"{column} is JSON inside a string in {where} and maybe other rows; it was decoded")
        return decoded

    def _keys(self, item: Mapping[str, Any]) -> Keys:
        """The keys in use, computed once for all messages with the same keys; null counts as absent, since tables add
        nulls."""
        names = tuple([name for name, value in item.items() if value is not None])
        keys = self._found.get(names)
        if keys is None:
            if len(self._found) >= REMEMBERED:
                self._found.clear()
            keys = self._found[names] = self._find_keys(names)
            self._note_unread(names, keys)
        return keys

    def _find_keys(self, names: Sequence[str]) -> Keys:
        fields = self._fields
        sharegpt = "role" not in names and ("from" in names or ("value" in names and "content" not in names))
        role = fields.get("role") or ("from" if sharegpt else "role")
        content = fields.get("content") or ("value" if role == "from" and "content" not in names else "content")
        reasoning = (fields["reasoning"],) if fields.get("reasoning") else REASONING
        return Keys(role, content, reasoning, fields.get("tool_calls", "tool_calls"), fields.get("name", "name"))

    def _message(self, path: str, item: Any, problems: list[str]) -> Message | None:
        if not isinstance(item, Mapping):
            problems.append(f"{path} is {kind(item)}, not an object")
            return None
        keys = self._keys(item)
        optional = {keys.role, keys.content, *OPTIONAL}
        item = {key: value for key, value in item.items() if value is not None or key in optional}
        before = len(problems)
        message = self._read(path, item, keys, problems)
        return message if len(problems) == before else None

    def _read(self, path: str, item: Mapping[str, Any], keys: Keys, problems: list[str]) -> Message:
        sharegpt = keys.role == "from"
        roles = {**(SHAREGPT_ROLES if sharegpt else CALLING), **self._roles}
        role = self._role(f"{path}.{keys.role}", item, keys.role, roles, problems)
        train = read_flag(path, item, self._train_field, problems)
        if train is None and self._train_roles is not None:
            train = role in self._train_roles
        if item.get(keys.role) == "function_call" and (sharegpt or "function_call" not in self._roles):
            text = self._text(f"{path}.{keys.content}", item.get(keys.content), problems)
            calls = self._calls(f"{path}.{keys.content}", text, problems)
            if not calls and text.strip() in ("", "[]"):
                problems.append(f"{path}.{keys.content} holds no call")
            return Message(role, "", tool_calls=calls, train=train)
        if role == "assistant":
            item = thoughts_apart(item, keys.content, keys.reasoning)
        calls = self._calls(f"{path}.{keys.tool_calls}", item.get(keys.tool_calls, ()), problems)
        optional = bool(calls) or role in self._may_be_empty
        content = self._content(f"{path}.{keys.content}", item, keys.content, problems, optional=optional)
        content = self._apply_ranges(path, item, content, problems)
        reasoning = self._reasoning(path, item, keys, problems)
        substance = content.text.strip() or content.media or reasoning.text.strip()
        if content.text and not substance and role == "assistant" and not optional and train is not False:
            problems.append(f"{path}.{keys.content} is nothing but blanks: the answer would end at once")
        if self._split_thinking and role == "assistant" and not reasoning.text:
            reasoning, content = split_thought(content)
        return Message(
            role,
            content.text,
            reasoning=reasoning.text,
            tool_calls=calls,
            name=self._text(f"{path}.{keys.name}", item.get(keys.name, ""), problems),
            tool_call_id=self._text(f"{path}.tool_call_id", item.get("tool_call_id", ""), problems),
            train=train,
            weights=content.weights,
            reasoning_weights=reasoning.weights,
            media=content.media,
        )

    def _note_unread(self, names: Sequence[str], keys: Keys) -> None:
        read = {keys.role, keys.content, *keys.reasoning, keys.tool_calls, keys.name, self._train_field}
        unread = sorted(
            map(key_shown, set(names) - read - IDENTIFIERS - {"weight", "tool_call_id", self._ranges_field})
        )
        if unread:
            self.once(", ".join(unread), f"messages have the keys {', '.join(unread)}, which are not used")

    def _role(self, path: str, item: Mapping[str, Any], key: str, roles: Mapping[str, str], problems: list[str]) -> str:
        value = item.get(key)
        if key not in item:
            near = nearest(key, [name for name in item if isinstance(name, str)])
            problems.append(f"{path} is missing" + (f"; did you mean {shown(near)}?" if near else ""))
        elif not isinstance(value, str):
            problems.append(f"{path} is {kind(value)}, not text")
        elif value in roles:
            return roles[value]
        elif value not in ROLES:
            accepted = ", ".join(dict.fromkeys((*ROLES, *self._roles) if key != "from" else (*roles,)))
            problems.append(f"{path} is {shown(value)}, accepted are {accepted}")
        else:
            return value
        return ""

    def _content(self, path: str, item: Mapping[str, Any], key: str, problems: list[str], *, optional: bool) -> Content:
        """The content of a message; adds its faults to `problems`.

        Args:
            optional: it may be empty; null or missing only with tool calls, which a tool's own message has not.
        """
        value = item.get(key)
        if value is None:
            if not optional or not item.get(self._fields.get("tool_calls", "tool_calls")):
                problems.append(f"{path} is {'missing' if key not in item else 'null'}")
            return NOTHING
        if isinstance(value, list | tuple):
            content = read_parts(path, value, problems, self._media)
        else:
            content = Content(value) if isinstance(value, str) else None
            if content is None:
                problems.append(f"{path} is {kind(value)}, not text")
            elif problem := unspeakable(content.text):
                problems.append(f"{path} {problem}")
        if content is not None and not content.text and not content.media and not optional:
            problems.append(f"{path} is empty")
        return NOTHING if content is None else self._with_media(path, content)

    def _apply_ranges(self, path: str, item: Mapping[str, Any], content: Content, problems: list[str]) -> Content:
        """The content with the weights that ranges of characters give it."""
        ranges = item.get(self._ranges_field) if self._ranges_field else None
        if ranges is None:
            return content
        if content.weights:
            problems.append(f"{path} has {self._ranges_field} and parts with flags: give one of them")
        return replace(content, weights=read_ranges(f"{path}.{self._ranges_field}", ranges, content.text, problems))

    def _with_media(self, path: str, content: Content) -> Content:
        """A text whose `<image>`, `<audio>` and `<video>` mean media of the row's columns, if it has them."""
        row_media = self._media
        if row_media is None or not row_media.present or content.weights or content.media:
            return content
        text, media, at = "", [], 0
        for match in SPELLED.finditer(content.text):
            kind = PLACEHOLDERS[match[0]]
            if kind not in row_media.present:
                continue
            text += content.text[at : match.start()]
            at = match.end()
            media.append(Placed(len(text), row_media.next(kind, path)))
        return Content(text + content.text[at:], (), tuple(media)) if media else content

    def _calls(self, path: str, value: Any, problems: list[str]) -> tuple[Mapping[str, Any], ...]:
        try:
            return read_calls(path, value)
        except ToolProblem as problem:
            problems.append(str(problem))
            return ()

    def _reasoning(self, path: str, item: Mapping[str, Any], keys: Keys, problems: list[str]) -> Content:
        key = next((name for name in keys.reasoning if name in item), None)
        if key is None:
            return NOTHING
        if isinstance(item[key], list | tuple):
            return read_parts(f"{path}.{key}", item[key], problems) or NOTHING
        return Content(self._text(f"{path}.{key}", item[key], problems))

    def _text(self, path: str, value: Any, problems: list[str]) -> str:
        if isinstance(value, str):
            if problem := unspeakable(value):
                problems.append(f"{path} {problem}")
            return value
        problems.append(f"{path} is {kind(value)}, not text")
        return ""

    def _remedy(self, value: Sequence[Any]) -> str:
        """The next action for a row with problems; for roles that are not ours, the option that maps them."""
        items = [item for item in value if isinstance(item, Mapping)]
        spoken = [(item.get(key), key) for item in items for key in (self._keys(item).role,)]
        others = sorted(
            {
                role
                for role, key in spoken
                if isinstance(role, str) and role.strip() and not unspeakable(role)
                if role not in ROLES and role not in self._roles and not (key == "from" and role in SHAREGPT_ROLES)
            }
        )
        known = [f"{key_shown(role)}: {meant}" for role in others if (meant := _meant(role))]
        if known:
            return f"set data.format: {{name: {self._format}, roles: {{{', '.join(known)}}}}}"
        if others:
            mapping = f"{{name: {self._format}, roles: {{{key_shown(others[0])}: ROLE}}}}"
            return f"fix or remove the row, or say which role it is in data.format: {mapping}"
        return "fix or remove the row"


def _meant(role: str) -> str:
    """The role that another tool's or a misspelt name means; empty if unknown."""
    plain = role.strip().lower()
    return FOREIGN_ROLES.get(plain) or nearest(plain, ROLES) or ""
