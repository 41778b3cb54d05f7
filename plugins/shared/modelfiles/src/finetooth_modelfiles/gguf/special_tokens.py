"""Which of a file's tokens start a text, end it, stand for the unknown, and pad. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks.errors import RecipeError

from finetooth_modelfiles.gguf.container import Container

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Values of tokenizer.ggml.token_type: ordinary tokens, the one for what has none, tokens that text never produces,
tokens that text always produces whole, rows of the embedding that no token has, and tokens for one byte."""

PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|vision_pad|>", "<|endoftext|>", "<unk>")
"""Candidates for padding when the file names none or names the end token, in order of preference."""


@dataclass(frozen=True)
class SpecialTokens:
    """Ids by role; None if the file has no such token. `pad` is never `eos`."""

    bos: int | None
    eos: int | None
    unk: int | None
    pad: int | None


def special_tokens(container: Container) -> SpecialTokens:
    """The special tokens of a file.

    Raises:
        RecipeError: an id lies outside the vocabulary.
    """
    vocabulary = tokens(container)
    ids: dict[str, int | None] = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = container.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None and not 0 <= token_id < len(vocabulary):
            raise RecipeError(
                "model",
                f"{container.path} names token {token_id} as its {role} token and has {len(vocabulary)} tokens",
                action="fetch the file again",
            )
        ids[role] = token_id
    ids["pad"] = _pad(container, vocabulary, ids)
    return SpecialTokens(**ids)


def tokens(container: Container) -> list[str]:
    """The vocabulary, by id."""
    vocabulary = container.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(vocabulary, list):
        raise RecipeError("model", f"{container.path} holds no vocabulary", action="fetch or convert the file again")
    return vocabulary


def token_types(container: Container) -> list[int]:
    """The type of each token (1: ordinary); a file that does not say has ordinary tokens only."""
    vocabulary = tokens(container)
    types = container.metadata.get("tokenizer.ggml.token_type", [1] * len(vocabulary))
    if len(types) != len(vocabulary):
        raise RecipeError(
            "model",
            f"{container.path} has {len(vocabulary)} tokens and {len(types)} token types",
            action="fetch or convert the file again",
        )
    return list(types)


def _pad(container: Container, vocabulary: list[str], ids: dict[str, int | None]) -> int | None:
    """The file's own pad token unless it is the end or start token, else a control token known for it.

    Padding with the end token is how a model forgets to stop: real ends are masked together with the padding. No token
    is added for it, as that would change the embedding's size.
    """
    taken = {ids["bos"], ids["eos"]}
    if ids["pad"] is not None and ids["pad"] not in taken:
        return ids["pad"]
    controls = {
        vocabulary[index]: index
        for index, kind in enumerate(token_types(container))
        if kind == CONTROL and index not in taken
    }
    return next((controls[name] for name in PAD_NAMES if name in controls), None)
