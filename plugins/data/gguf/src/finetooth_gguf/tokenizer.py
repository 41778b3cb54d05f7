"""Building a tokenizer from the vocabulary, merges and token types that a GGUF file holds.

The result is a `tokenizers.Tokenizer` of byte-level BPE with the pre-tokenizer the merges were learned with, wrapped as a
`PreTrainedTokenizerFast`, so that what `save_pretrained` writes is whole: `AutoTokenizer` reads it back as it was. (The tokenizer
that transformers itself makes from a GGUF file is of a model's own class, which rebuilds another pre-tokenizer when read back.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from finetooth_hooks.errors import UserError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from finetooth_gguf.container import Container

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

# candidates for padding when the file names none, or names the end token, in order of preference
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


@dataclass(frozen=True)
class Splitting:
    """How text is cut before merging.

    Attributes:
        split: regular expression whose matches are the pieces; empty for GPT-2's own, which ByteLevel brings.
        digits_alone: every digit is a piece of its own, before anything else.
        composed: text is brought to Unicode NFC first.
        whole_words: a piece that is a token is taken whole, whatever the merges say.
    """

    split: str = ""
    digits_alone: bool = False
    composed: bool = False
    whole_words: bool = False


_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = _QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

SPLITTINGS: Mapping[str, Splitting] = MappingProxyType(
    {
        "gpt-2": Splitting(),
        "smollm": Splitting(digits_alone=True),
        "qwen2": Splitting(split=_QWEN2_SPLIT, composed=True),
        "llama-bpe": Splitting(split=_LLAMA3_SPLIT, whole_words=True),
    }
)
"""By the value of tokenizer.ggml.pre."""


def build_tokenizer(container: Container) -> PreTrainedTokenizerFast:
    """The tokenizer of a file: same ids as the original, with its special tokens, chat template and a pad token.

    The pad token is never the end token: batches padded with it would teach the model that nothing follows, or mask real
    ends. No token is added, so it is one that the file has and text does not produce.

    Raises:
        UserError: the vocabulary is not byte-level BPE, or was learned with a pre-tokenizer that is not known.
    """
    facts = container.metadata
    kind, pre = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in SPLITTINGS:
        what = f"pre-tokenizer {pre!r}" if kind == "gpt2" else f"tokenizer {kind!r}"
        known = ", ".join(SPLITTINGS) if kind == "gpt2" else "gpt2 (byte-level BPE)"
        raise UserError(
            f"model: {container.path} has {what}, which is not supported",
            action=f"supported: {known}; load this model from its original folder or hub id",
        )
    backend = _byte_level_bpe(container, SPLITTINGS[pre])
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    special = {role: _token(container, key) for role, key in _SPECIAL_KEYS.items()}
    _frame(backend, container, special)
    pad = choose_pad(tokens, facts.get("tokenizer.ggml.token_type"), special)
    controls = [str(token) for token in backend.get_added_tokens_decoder().values() if token.special]
    roles = {**special, "pad_token": pad}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{role: token for role, token in roles.items() if token is not None},
        additional_special_tokens=[token for token in controls if token not in roles.values()],
        model_max_length=facts.get(f"{container.architecture}.context_length"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = facts.get("tokenizer.chat_template")
    return tokenizer


_SPECIAL_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def choose_pad(tokens: list[str], types: list[int] | None, special: Mapping[str, str | None]) -> str | None:
    """The token to pad with: the file's own unless it is the end or start token, else a control token that fits.

    Args:
        tokens: the vocabulary.
        types: the type of each token (3: control); None if the file does not say.
        special: tokens by role, `eos_token`, `pad_token`, ...

    Returns:
        None if the vocabulary has no token that can serve.
    """
    taken = {special.get("eos_token"), special.get("bos_token")}
    controls = {token for token, kind in zip(tokens, types or (), strict=False) if kind == _CONTROL}
    stated = special.get("pad_token")
    if stated is not None and stated not in taken:
        return stated
    return next((name for name in _PAD_NAMES if name in controls and name not in taken), None)


def _byte_level_bpe(container: Container, splitting: Splitting) -> Tokenizer:
    facts = container.metadata
    missing = [name for name in ("tokens", "merges") if f"tokenizer.ggml.{name}" not in facts]
    if missing:
        raise UserError(f"model: {container.path} holds no tokenizer {missing[0]}", action="fetch or convert it again")
    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.whole_words, fuse_unk=False)
    except Exception as error:  # the Rust side raises plain Exception, e.g. for a merge whose result is no token
        raise UserError(f"model: {container.path} holds an unusable vocabulary: {error}", action="fetch it again") from error
    tokenizer = Tokenizer(model)
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if splitting.digits_alone else []
    if splitting.split:
        steps.append(pre_tokenizers.Split(Regex(splitting.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splitting.split))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    types = facts.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, types, strict=True) if k == _USER_DEFINED])
    return tokenizer


def _frame(tokenizer: Tokenizer, container: Container, special: Mapping[str, str | None]) -> None:
    """Put the start and end tokens around every text if the file asks for it."""
    parts = ["$A"]
    if container.metadata.get("tokenizer.ggml.add_bos_token") and special["bos_token"]:
        parts.insert(0, special["bos_token"])
    if container.metadata.get("tokenizer.ggml.add_eos_token") and special["eos_token"]:
        parts.append(special["eos_token"])
    if len(parts) > 1:
        used = [(token, tokenizer.token_to_id(token)) for token in parts if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(parts), special_tokens=used)


def _token(container: Container, key: str) -> str | None:
    """The token whose id stands under tokenizer.ggml.`key`."""
    token_id = container.metadata.get(f"tokenizer.ggml.{key}")
    tokens: list[str] = container.metadata["tokenizer.ggml.tokens"]
    if token_id is None:
        return None
    if not 0 <= token_id < len(tokens):
        raise UserError(
            f"model: {container.path} names token {token_id} as {key}, of {len(tokens)} tokens", action="fetch it again"
        )
    return tokens[token_id]
