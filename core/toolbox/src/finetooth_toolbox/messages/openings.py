"""The common beginning of a model's training rows: system message and tools.

It is in `opening.json` of the artifact. Chats, services and exports use it unless they are given another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from finetooth_hooks.data.examples import Message
from finetooth_hooks.errors import UserError

FILE = "opening.json"


@dataclass(frozen=True)
class Opening:
    """The beginning that nearly all training rows share.

    Attributes:
        system: content of the common system message; empty: none.
        tools: the common tools, in OpenAI's shape; empty: none.
        rows: number of rows in messages with this beginning.
        of: number of all rows in messages.
    """

    system: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    rows: int = 0
    of: int = 0

    def __bool__(self) -> bool:
        return bool(self.system or self.tools)

    def before(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """The messages after this system message; their own system message replaces it."""
        own = not self.system or (bool(messages) and messages[0].role == "system")
        return tuple(messages) if own else (Message("system", self.system), *messages)

    def told(self) -> str:
        """A description in one clause."""
        shortened = self.system if len(self.system) <= 60 else f"{self.system[:57]}..."
        tools = f"{len(self.tools)} tool{'' if len(self.tools) == 1 else 's'}"
        parts = [f"system message {json.dumps(shortened, ensure_ascii=False)}" if self.system else ""]
        return " and ".join(filter(None, [*parts, tools if self.tools else ""]))

    def write(self, folder: Path) -> None:
        """Write it into a folder."""
        content = {**asdict(self), "tools": [dict(tool) for tool in self.tools]}
        (folder / FILE).write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


NONE = Opening()


def read_opening(folder: Path | None) -> Opening:
    """Read the opening of a folder; empty if it has none.

    Raises:
        UserError: the file is damaged.
    """
    path = None if folder is None else folder / FILE
    if path is None or not path.is_file():
        return NONE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        system, tools = content["system"], tuple(map(dict, content["tools"]))
        return Opening(str(system), tools, int(content["rows"]), int(content["of"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read: {error}", action="remove it, or name another folder") from error
