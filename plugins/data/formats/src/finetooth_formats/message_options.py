"""Options of every format that reads messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from finetooth_hooks.data.examples import MediumKind
from pydantic import BeforeValidator, Field

from finetooth_formats.aliases import AliasedOptions, reasoning_key, roles_by_name

Role = Literal["system", "user", "assistant", "tool"]
Property = Literal["role", "content", "reasoning", "tool_calls", "name"]


class MessageOptions(AliasedOptions):
    """How messages are written."""

    aliases: ClassVar[Mapping[str, str]] = {
        "message_property_mappings": "fields",
        "message_field_role": "fields.role",
        "message_field_content": "fields.content",
        "field_thinking": "fields.reasoning",
    }

    roles: Annotated[dict[str, Role], BeforeValidator(roles_by_name)] = Field(default_factory=dict)
    """Further role names, `{human: user, gpt: assistant}`, or the other way round, `{user: [human], assistant: [gpt]}`.
    ShareGPT's `from` needs none."""
    fields: Annotated[dict[Property, str], BeforeValidator(reasoning_key)] = Field(default_factory=dict)
    """Other names of a message's keys: `{role: from, content: value, reasoning: thinking}`. Default: `role` and
    `content`, ShareGPT's `from` and `value`, and `reasoning_content`, `reasoning` or `thinking`."""

    images: str = ""
    """Column with images, used in order by `<image>` in a text and by parts `{type: image}` without a source; empty
    takes `images` or `image`. Paths are relative to the folder of the data file."""
    audios: str = ""
    """Column with sounds, used in order by `<audio>` and by parts `{type: audio}`; empty takes `audios` or `audio`."""
    videos: str = ""
    """Column with videos, used in order by `<video>` and by parts `{type: video}`; empty takes `videos` or `video`. A
    video is a file, or a list of files with its frames."""

    @property
    def media_columns(self) -> Mapping[MediumKind, str]:
        """Arguments of a `RowMedia`."""
        return {"image": self.images, "audio": self.audios, "video": self.videos}

    def about_messages(self) -> dict[str, Any]:
        """Arguments of a `MessageReader`."""
        return {"roles": self.roles, "fields": self.fields}
