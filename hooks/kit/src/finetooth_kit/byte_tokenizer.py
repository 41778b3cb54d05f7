"""A tokenizer of bytes that knows every special token it is asked for, so that any renderer can be tried with it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from finetooth_hooks.bases import TokenizerBase

_SPECIAL = re.compile(r"<\|[^<>|\s]{1,40}\|>|</?s>")
_BRACKETED = re.compile(r"<[^<>\s]{1,40}>|[\[\]][^\[\]\s]{1,40}[\[\]]")

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class ByteTokenizer(TokenizerBase):
    """Ids 0 to 255 are UTF-8 bytes, special tokens follow.

    Args:
        special: spellings of the special tokens at first; `token_id` and `encode(special=True)` add any other that
            looks like one (`<|name|>`, `<s>`), `token_id` also those in any brackets (`<start_of_turn>`, `[INST]`).
        size: `vocab_size`, with room for special tokens.
    """

    def __init__(
        self,
        special: Sequence[str] = ("<|pad|>", "<|begin|>", "<|im_end|>", "<|im_start|>"),
        size: int = 320,
        chat_template: str | None = CHAT_TEMPLATE,
    ) -> None:
        self._special = list(special)
        self._size = size
        self._template = chat_template

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def pad_id(self) -> int | None:
        return self.token_id(self._special[0])

    @property
    def bos_id(self) -> int | None:
        return self.token_id(self._special[1])

    @property
    def eos_id(self) -> int | None:
        return self.token_id(self._special[2])

    @property
    def adds_bos(self) -> bool:
        return False

    @property
    def chat_template(self) -> str | None:
        return self._template

    def token_id(self, token: str) -> int | None:
        if token not in self._special:
            if not _BRACKETED.fullmatch(token):
                data = token.encode()
                return data[0] if len(data) == 1 else None
            if 256 + len(self._special) >= self._size:
                return None
            self._special.append(token)
        return 256 + self._special.index(token)

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self.encode_with_offsets(text, special=special)[0]

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        position = 0
        while position < len(text):
            spelled = self._spelled(text, position) if special else ""
            token = self.token_id(spelled) if spelled else None
            if token is not None:
                ids.append(token)
                offsets.append((position, position + len(spelled)))
                position += len(spelled)
                continue
            for byte in text[position].encode():
                ids.append(byte)
                offsets.append((position, position + 1))
            position += 1
        return ids, offsets

    def _spelled(self, text: str, position: int) -> str:
        """The special token that the text spells there, empty if none."""
        match = _SPECIAL.match(text, position)
        known = (name for name in self._special if text.startswith(name, position))
        return match.group() if match else max(known, key=len, default="")

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        data = b""
        for id_ in ids:
            if id_ < 256:
                data += bytes([id_])
            elif not skip_special:
                index = id_ - 256
                data += (self._special[index] if index < len(self._special) else f"<|{id_}|>").encode()
        return data.decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Writes its special tokens; not in a form that transformers reads."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "byte_tokenizer.json").write_text(json.dumps({"special": self._special}), encoding="utf-8")


class EndlessTokenizer(ByteTokenizer):
    """One without an end-of-text token."""

    @property
    def eos_id(self) -> None:
        return None
