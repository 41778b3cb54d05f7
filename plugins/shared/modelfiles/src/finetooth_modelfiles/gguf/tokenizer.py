"""Building a tokenizer from the vocabulary, merges and token types that a GGUF file holds.

The result is a `tokenizers.Tokenizer` (byte-level BPE with the pre-tokenizer the merges were learned with, or what
`sentence_pieces` makes of scores), wrapped as a `PreTrainedTokenizerFast`, so that what `save_pretrained` writes is
whole: `AutoTokenizer` reads it back as it was.
(The tokenizer that transformers itself makes from a GGUF file is of a model's own class, which rebuilds another
pre-tokenizer when it is read back.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from finetooth_hooks.errors import RecipeError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from finetooth_modelfiles.gguf import sentence_pieces
from finetooth_modelfiles.gguf.container import Container
from finetooth_modelfiles.gguf.special_tokens import CONTROL, UNKNOWN, USER_DEFINED, special_tokens, token_types, tokens

PREFIX = "tokenizer.ggml.add_space_prefix"


@dataclass(frozen=True)
class Splitting:
    """How text is cut before merging.

    Attributes:
        split: regular expression whose matches are the pieces; empty for GPT-2's own, which ByteLevel brings.
        before: regular expressions whose matches are pieces of their own before that, one after the other.
        digits_alone: every digit is a piece of its own, before anything else.
        composed: text is brought to Unicode NFC first.
        whole_words: a piece that is a token is taken whole, whatever the merges say.
    """

    split: str = ""
    before: tuple[str, ...] = ()
    digits_alone: bool = False
    composed: bool = False
    whole_words: bool = False


_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_SPLIT = _QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O_SPLIT = (
    _TEKKEN_SPLIT.replace(f"{_LOWER}+|", f"{_LOWER}+{_SHORT}|")
    .replace(f"{_LOWER}*|", f"{_LOWER}*{_SHORT}|")
    .replace(r"|\p{N}|", r"|\p{N}{1,3}|")
)
_MARKS = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~]"
_DEEPSEEK_SPLIT = (
    rf"{_MARKS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CHINESE_OR_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

SPLITTINGS: Mapping[str, Splitting] = MappingProxyType(
    {
        "gpt-2": Splitting(),
        "smollm": Splitting(digits_alone=True),
        "qwen2": Splitting(split=_QWEN2_SPLIT, composed=True),
        "llama-bpe": Splitting(split=_LLAMA3_SPLIT, whole_words=True),
        "lfm2": Splitting(split=_LLAMA3_SPLIT, whole_words=True),
        "falcon-h1": Splitting(split=_LLAMA3_SPLIT, whole_words=True),
        "deepseek-v3": Splitting(split=_DEEPSEEK_SPLIT, before=(r"\p{N}{1,3}", _CHINESE_OR_KANA)),
        "dbrx": Splitting(split=_LLAMA3_SPLIT),
        "glm4": Splitting(split=_LLAMA3_SPLIT),
        "chatglm-bpe": Splitting(split=_LLAMA3_SPLIT),
        "tekken": Splitting(split=_TEKKEN_SPLIT, whole_words=True),
        "gpt-4o": Splitting(split=_GPT4O_SPLIT),
    }
)
"""By the value of tokenizer.ggml.pre."""


def build_tokenizer(container: Container) -> PreTrainedTokenizerFast:
    """The tokenizer of a file: same ids as the original, with its special tokens, chat template and a pad token.

    A byte that the vocabulary lacks (SmolLM2's has no token for six control characters and for the first byte of the
    rare planes 4 to 15) gives no token, as in the original.

    Raises:
        RecipeError: the vocabulary is neither byte-level BPE nor of SentencePiece's kind, or was learned with a
            pre-tokenizer that is not known.
    """
    facts = container.metadata
    kind, pre = str(facts.get("tokenizer.ggml.model")), str(facts.get("tokenizer.ggml.pre"))
    if kind not in ("gpt2", "llama") or (kind == "gpt2" and pre not in SPLITTINGS):
        what = f"pre-tokenizer {pre!r}" if kind == "gpt2" else f"tokenizer {kind!r}"
        known = ", ".join(SPLITTINGS) if kind == "gpt2" else "gpt2 (byte-level BPE), llama (SentencePiece's)"
        raise RecipeError(
            "model",
            f"{container.path} has {what}, which is not supported",
            action=f"supported: {known}; load this model from its original folder or hub id",
        )
    vocabulary, ids = tokens(container), special_tokens(container)
    backend = _byte_level_bpe(container, SPLITTINGS[pre]) if kind == "gpt2" else _sentence_pieces(container, ids.unk)
    _add_tokens(backend, container)
    roles = {
        "bos_token": ids.bos,
        "eos_token": ids.eos,
        "unk_token": ids.unk,
        "pad_token": ids.pad,
    }
    spelled = {role: vocabulary[token_id] for role, token_id in roles.items() if token_id is not None}
    _frame(backend, container, spelled)
    controls = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        **spelled,
        additional_special_tokens=[token for token in controls if token not in spelled.values()],
        model_max_length=facts.get(f"{container.architecture}.context_length"),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = facts.get("tokenizer.chat_template")
    return tokenizer


def _byte_level_bpe(container: Container, splitting: Splitting) -> Tokenizer:
    vocabulary = tokens(container)
    merges = container.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise RecipeError("model", f"{container.path} holds no merges", action="fetch or convert the file again")
    try:
        model = models.BPE(
            vocab={token: index for index, token in enumerate(vocabulary)},
            merges=[tuple(merge.split(" ", 1)) for merge in merges],
            ignore_merges=splitting.whole_words,
            fuse_unk=False,
        )
    except Exception as error:  # the library raises plain Exception, e.g. for a merge whose result is not a token
        raise RecipeError(
            "model", f"{container.path} holds unusable merges: {error}", action="fetch it again"
        ) from error
    tokenizer = Tokenizer(model)
    if splitting.composed:
        tokenizer.normalizer = normalizers.NFC()
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if splitting.digits_alone else []
    for split in filter(None, (*splitting.before, splitting.split)):
        steps.append(pre_tokenizers.Split(Regex(split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splitting.split))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_pieces(container: Container, unknown: int | None) -> Tokenizer:
    vocabulary, types = tokens(container), token_types(container)
    scores = container.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary):
        raise RecipeError(
            "model", f"{container.path} holds no score for each token", action="fetch or convert the file again"
        )
    named, prefixed = None if unknown is None else vocabulary[unknown], container.metadata.get(PREFIX, True)
    return sentence_pieces.build(vocabulary, types, scores, named, prefixed=bool(prefixed))


def _add_tokens(tokenizer: Tokenizer, container: Container) -> None:
    """Tokens that are found in a text before everything else."""
    strips = sentence_pieces.strips(container.metadata.get("general.name"))
    kinds = [
        (AddedToken(token, normalized=False, rstrip=strips and token not in sentence_pieces.KEPT), kind)
        for token, kind in zip(tokens(container), token_types(container), strict=True)
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tokenizer.add_special_tokens([token for token, kind in kinds if kind != USER_DEFINED])
    tokenizer.add_tokens([token for token, kind in kinds if kind == USER_DEFINED])


def _frame(tokenizer: Tokenizer, container: Container, spelled: Mapping[str, str]) -> None:
    """Put the start and end tokens around every text if the file asks for it."""
    parts = ["$A"]
    begins = container.metadata.get("tokenizer.ggml.model") == "llama"  # where the file does not say
    if container.metadata.get("tokenizer.ggml.add_bos_token", begins) and "bos_token" in spelled:
        parts.insert(0, spelled["bos_token"])
    if container.metadata.get("tokenizer.ggml.add_eos_token") and "eos_token" in spelled:
        parts.append(spelled["eos_token"])
    if len(parts) > 1:
        used = [(token, tokenizer.token_to_id(token)) for token in parts if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(parts), special_tokens=used)
