"""A transformers tokenizer behind the `protocols.Tokenizer` contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class FastTokenizer:
    """Wraps a `PreTrainedTokenizerFast`; this module imports nothing of transformers.

    Args:
        tokenizer: the tokenizer; its `chat_template`, EOS and pad token must already be right.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.wrapped = tokenizer

    @property
    def vocab_size(self) -> int:
        return len(self.wrapped)

    @property
    def bos_id(self) -> int | None:
        return _optional(self.wrapped.bos_token_id)

    @property
    def eos_id(self) -> int | None:
        return _optional(self.wrapped.eos_token_id)

    @property
    def pad_id(self) -> int | None:
        return _optional(self.wrapped.pad_token_id)

    @property
    def adds_bos(self) -> bool:
        ids = self.wrapped("a")["input_ids"]  # the tokenizer's own post-processing, special tokens added
        return self.bos_id is not None and list(ids[:1]) == [self.bos_id]

    @property
    def chat_template(self) -> str | None:
        template = self.wrapped.chat_template
        return template if isinstance(template, str) else None

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        return self.encode_with_offsets(text, special=special)[0]

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.wrapped(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            split_special_tokens=not special,
            verbose=False,  # lengths are judged by train.max_length, with counts
        )
        return [int(i) for i in encoded["input_ids"]], [(int(a), int(b)) for a, b in encoded["offset_mapping"]]

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        # clean_up_tokenization_spaces changes text ("do n't"): what is decoded must be what was encoded
        return str(
            self.wrapped.decode(
                [int(i) for i in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        )

    def token_id(self, token: str) -> int | None:
        return _optional(self.wrapped.get_vocab().get(token))

    def save(self, folder: Path) -> None:
        self.wrapped.save_pretrained(str(folder))


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)
