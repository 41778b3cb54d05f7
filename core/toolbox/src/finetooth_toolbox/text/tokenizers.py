"""A transformers tokenizer behind the `protocols.Tokenizer` contract."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetooth_hooks.bases import TokenizerBase
from finetooth_hooks.errors import RecipeError
from finetooth_hooks.models import NewToken, TokenChanges

from finetooth_toolbox.text.ascii_words import WordMemory

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Names of the special roles of tokens in transformers' tokenizers."""
LONGEST_GROWTH = 4096
"""Largest number of letters that a tokenizer may make of one letter, to limit malicious files."""
REMEMBERED = 4096
"""Number of remembered beginnings of texts with their ids."""


class FastTokenizer(TokenizerBase):
    """Wraps a `PreTrainedTokenizerFast`; this module imports nothing of transformers.

    Args:
        tokenizer: the tokenizer; its `chat_template`, EOS and pad token must already be right.
    """

    capabilities = frozenset({"stretches", "changes"})

    def __init__(self, tokenizer: Any) -> None:
        check_growth(tokenizer)
        self.wrapped = tokenizer
        self._starts: dict[str, tuple[int, ...] | None] = {}
        self._words = WordMemory(self._ids)

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
        backend = self._backend(special=special)
        if backend is None:
            return self.encode_with_offsets(text, special=special)[0]
        if special:
            with _named_panics():
                return list(backend.encode(text, add_special_tokens=False).ids)
        words = self._words.of(backend, len(text)) if text.isascii() else None
        return self._ids(text) if words is None else words.ids(text)

    def encode_with_offsets(self, text: str, *, special: bool = False) -> tuple[list[int], list[tuple[int, int]]]:
        backend = self._backend(special=special)
        if backend is not None:
            with _named_panics():
                encoding = backend.encode(text, add_special_tokens=False)
            return encoding.ids, encoding.offsets
        encoded = self.wrapped(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            split_special_tokens=not special,
            verbose=False,  # train.max_length limits lengths, with counts
        )
        return [int(i) for i in encoded["input_ids"]], [(int(a), int(b)) for a, b in encoded["offset_mapping"]]

    def encode_from(self, stretches: Sequence[tuple[str, int | None]]) -> list[tuple[list[int], int]]:
        """Ids of each text, none of them special, and the index of the first token that starts at or after a character.

        Offsets are expensive and seldom needed: if the text up to the character, encoded alone, gives the first tokens
        of the whole text, the next token starts at the character.

        Args:
            stretches: pairs of a text and a character position; None is the end of the text.
        """
        backend = self._backend(special=False)
        if backend is None:
            return [self._from_offsets(text, begin) for text, begin in stretches]
        words = self._words.of(backend, sum(len(text) for text, _ in stretches))
        encoded: list[tuple[list[int], int]] = []
        for text, begin in stretches:
            ids = words.ids(text) if words is not None and text.isascii() else self._ids(text)
            if begin is None or begin > len(text):
                encoded.append((ids, len(ids)))
                continue
            start = self._start(text[:begin])
            known = start is not None and tuple(ids[: len(start)]) == start
            encoded.append((ids, len(start)) if start is not None and known else self._from_offsets(text, begin))
        return encoded

    def _from_offsets(self, text: str, begin: int | None) -> tuple[list[int], int]:
        ids, offsets = self.encode_with_offsets(text)
        if begin is None:
            return ids, len(ids)
        return ids, next((i for i, (start, _) in enumerate(offsets) if start >= begin), len(ids))

    def _start(self, text: str) -> tuple[int, ...] | None:
        """Tokens of a text that often precedes others, `assistant\\n`; None if the tokens do not cover it."""
        if text not in self._starts:
            if len(self._starts) >= REMEMBERED:
                self._starts.clear()
            ids, offsets = self.encode_with_offsets(text)
            covers = not text or (bool(offsets) and offsets[-1][1] == len(text))
            self._starts[text] = tuple(ids) if covers else None
        return self._starts[text]

    def _ids(self, text: str) -> list[int]:
        """Ids of a text by the Rust tokenizer, with the settings of `_backend`."""
        with _named_panics():
            encoding = self.wrapped.backend_tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        return list(encoding.ids)

    def _backend(self, *, special: bool) -> Any:
        """The Rust tokenizer, set to read the text without changes; for one text it is several times faster than its
        wrapper. None if the tokenizer has none."""
        backend = getattr(self.wrapped, "backend_tokenizer", None)
        if backend is None:
            return None
        if backend.encode_special_tokens == special:
            backend.encode_special_tokens = not special
        if backend.truncation is not None:
            backend.no_truncation()
        if backend.padding is not None:
            backend.no_padding()
        return backend

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        # clean_up_tokenization_spaces changes text ("do n't"): decoding must restore the encoded text
        return str(
            self.wrapped.decode(
                [int(i) for i in ids], skip_special_tokens=skip_special, clean_up_tokenization_spaces=False
            )
        )

    def token_id(self, token: str) -> int | None:
        backend = getattr(self.wrapped, "backend_tokenizer", None)
        if backend is not None:  # get_vocab copies the whole vocabulary
            return _optional(backend.token_to_id(token))
        return _optional(self.wrapped.get_vocab().get(token))

    def save(self, folder: Path) -> None:
        self.wrapped.save_pretrained(str(folder))

    def changed(self, changes: TokenChanges) -> FastTokenizer:
        """A copy with other tokens.

        Raises:
            RecipeError: a new token is already in the vocabulary, or a token to rename is missing.
        """
        wrapped = copy.deepcopy(self.wrapped)
        if changes.renamed:
            _rename(wrapped, changes.renamed)
        result = FastTokenizer(wrapped)
        for token in changes.added:
            if result.token_id(token.text) is not None:
                raise RecipeError(
                    "model.added_tokens",
                    f"{token.text!r} is in the vocabulary already",
                    action="remove it from the list",
                )
            wrapped.add_tokens([_added_token(token)], token.special)
        for role, spelling in changes.roles.items():
            if result.token_id(spelling) is None:
                raise RecipeError(
                    f"model.special_tokens.{role}",
                    f"{spelling!r} is not in the vocabulary",
                    action="name a token that is, or add it to model.added_tokens",
                )
            setattr(wrapped, role, spelling)
        return result


def check_growth(tokenizer: Any) -> None:
    """Check that no text grows without bound before tokenisation: a file may tell a normalizer to replace each letter
    by a thousand, three times, and the memory for that would end the process.

    Raises:
        RecipeError: the parts of `tokenizer.json` that change text make more than `LONGEST_GROWTH` letters of one.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for name in ("normalizer", "decoder"):
        part = getattr(backend, name, None)
        if part is None:
            continue
        growth = _growth(json.loads(part.__getstate__()))
        if growth > LONGEST_GROWTH:
            raise RecipeError(
                "model",
                f"tokenizer.json: its {name} makes {growth:,} letters of one",
                action="use the tokenizer of the model's own publisher",
            )


def _growth(part: Mapping[str, Any]) -> int:
    """Largest number of letters that the parts of a normalizer or decoder make of one."""
    growth = 1
    for inner in (*part.get("normalizers", ()), *part.get("decoders", ())):
        growth *= _growth(inner)
    if part.get("type") == "Replace":
        pattern = part.get("pattern", {}).get("String") or " "
        growth *= max(1, -(-len(part.get("content", "")) // len(pattern)))
    if part.get("type") == "Prepend":
        growth *= 1 + len(part.get("prepend", ""))
    return growth


@contextmanager
def _named_panics() -> Iterator[None]:
    """Turn the Rust library's panics, which `except Exception` does not catch, into errors that name the file.

    Raises:
        RecipeError: an expression of `tokenizer.json` takes too long on a text, or the library has a fault.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise RecipeError(
            "model", f"tokenizer.json cannot cut a text into tokens: {' '.join(str(error).split())[:120]}",
            action="use the tokenizer of the model's own publisher",
        ) from error  # fmt: skip


def _added_token(token: NewToken) -> Any:
    """The tokenizers library's record of an added token, which absorbs no surrounding text."""
    import tokenizers

    return tokenizers.AddedToken(token.text, normalized=False, special=token.special)


def _rename(wrapped: Any, renamed: Mapping[int, str]) -> None:
    """Change the spelling of tokens everywhere in the Rust tokenizer.

    Raises:
        RecipeError: no token has this id, or another token has the new spelling.
    """
    content = json.loads(wrapped.backend_tokenizer.to_str())
    vocabulary = wrapped.get_vocab()
    respelled: dict[str, str] = {}
    spellings = {id_: spelling for spelling, id_ in vocabulary.items()}
    for id_, spelling in renamed.items():
        where = f"model.added_tokens_overrides.{id_}"
        if id_ not in spellings:
            raise RecipeError(where, f"the tokenizer has no id {id_}", action=f"name one below {len(wrapped)}")
        if spelling in vocabulary:
            raise RecipeError(where, f"{spelling!r} is in the vocabulary already", action="choose another spelling")
        reserved = [token for token in content["added_tokens"] if token["id"] == id_]
        if not reserved:
            raise RecipeError(
                where,
                f"{spellings[id_]!r} is a token of text, not a reserved one",
                action="name the id of a reserved token, or add a token with model.added_tokens",
            )
        reserved[0].update(content=spelling, special=True)
        old = spellings[id_]
        words = content["model"].get("vocab")
        if isinstance(words, dict) and old in words:
            words[spelling] = words.pop(old)
        if content["model"].get("unk_token") == old:
            content["model"]["unk_token"] = spelling
        _rename_in(content.get("post_processor"), old, spelling)
        respelled[old] = spelling
    wrapped._tokenizer = type(wrapped.backend_tokenizer).from_str(json.dumps(content))
    # for a missing token transformers looks up the unknown token: if that is missing too, this never ends
    for role in ROLES:
        spelled = str(getattr(wrapped, role, None))
        if spelled in respelled:
            setattr(wrapped, role, respelled[spelled])
    others = getattr(wrapped, "extra_special_tokens", None)
    if isinstance(others, list) and respelled.keys() & set(map(str, others)):
        wrapped.extra_special_tokens = [respelled.get(str(token), token) for token in others]


def _rename_in(part: Any, old: str, spelling: str) -> None:
    """Change the spelling of a token everywhere in a post-processor: templates have it as `{"id": "<s>"}`, as a key and
    in `tokens`, others as `["<s>", 1]`."""
    if isinstance(part, list):
        for place, item in enumerate(part):
            if item == old:
                part[place] = spelling
            else:
                _rename_in(item, old, spelling)
    elif isinstance(part, dict):
        for key in [key for key in part if key == old]:
            part[spelling] = part.pop(key)
        for key, item in part.items():
            if item == old:
                part[key] = spelling
            else:
                _rename_in(item, old, spelling)


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)
