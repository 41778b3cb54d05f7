"""`encode_from` says what offsets say, for tokenizers that merge, split, normalise and put spaces before words."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from finetooth_kit import draws
from finetooth_toolbox.text.ascii_words import ascii_words
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["user\nHello there, how are you?\n\nassistant\nI am  well.\n \n Yes.", "café élan naïve 123 \n\n\n x"] * 3
SPECIAL = "<|im_end|>"


LETTERS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def cut(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


CUTS = {
    "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama3": cut(LETTERS % "{1,3}"),
    "qwen": cut(LETTERS % ""),
}
"""How the words of a tokenizer over bytes are cut."""


@cache
def tokenizer(kind: str) -> FastTokenizer:
    """Trained on two sentences."""
    made = Tokenizer(models.BPE(unk_token="<unk>" if kind not in CUTS else None, fuse_unk=True))
    alphabet: list[str] = []
    if kind in CUTS:
        made.pre_tokenizer = CUTS[kind]
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "metaspace":
        made.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip()])
        made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", SPECIAL], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return FastTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token=SPECIAL, pad_token=SPECIAL)
    )


PARTS = ["a", "e", "\u0301", "\n", " ", "assistant\n", "user\n", SPECIAL, "é", "\ufb01", "\u4e2d", "12"]
TEXT = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)


@pytest.mark.parametrize("kind", [*CUTS, "metaspace", "normalised"])
@settings(deadline=None, max_examples=draws(60))
@given(stretches=st.lists(st.tuples(TEXT, st.none() | st.integers(0, 20)), max_size=4))
def test_it_says_what_offsets_say(kind: str, stretches: list[tuple[str, int | None]]) -> None:
    one = tokenizer(kind)
    found = one.encode_from(stretches)
    for (text, begin), (ids, first) in zip(stretches, found, strict=True):
        expected, offsets = wrapped(one, text)
        assert ids == expected
        trained = [begin is not None and start >= begin for start, _ in offsets]
        assert [i >= first for i in range(len(ids))] == trained


def wrapped(one: FastTokenizer, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """What the library's own call gives."""
    given_: Any = one.wrapped(
        text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True, verbose=False
    )
    assert one.encode_with_offsets(text) == (given_["input_ids"], given_["offset_mapping"])
    return given_["input_ids"], given_["offset_mapping"]


def test_special_tokens_only_where_they_are_asked_for() -> None:
    one = tokenizer("bytes")
    text = f"a{SPECIAL}b"
    ((plain, _),) = one.encode_from([(text, None)])
    assert one.token_id(SPECIAL) not in plain
    assert one.token_id(SPECIAL) in one.encode(text, special=True)
    one.wrapped(["a", "a longer text that is not cut"], padding=True, truncation=True, max_length=3)  # sets the backend
    assert one.encode("a longer text that is not cut") == wrapped(one, "a longer text that is not cut")[0]
    assert one.encode_from([(text, None)]) == [(plain, len(plain))]


ASCII = st.text(st.characters(max_codepoint=127), max_size=40)
WORDY = st.lists(
    st.sampled_from([" ", "  ", "\n", "\r\n", "\t", "'S", "'ll", "don't", "A", "1", "234", "?!", "\x1c", "x"])
).map("".join)


@pytest.mark.parametrize("kind", CUTS)
@settings(deadline=None, max_examples=draws(100))
@given(text=ASCII | WORDY)
def test_remembered_words_give_the_same_ids(kind: str, text: str) -> None:
    one = tokenizer(kind)
    words = ascii_words(one.wrapped.backend_tokenizer, one._ids)
    assert words is not None
    one.wrapped.backend_tokenizer.encode_special_tokens = True
    assert words.ids(text) == wrapped(one, text)[0] == one.encode(text)


def test_what_is_not_known_to_the_letter_is_left_to_the_library() -> None:
    for kind in ("metaspace", "normalised"):
        assert ascii_words(tokenizer(kind).wrapped.backend_tokenizer, list) is None  # type: ignore[arg-type]
    made = Tokenizer(models.BPE())
    for other in (
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        cut(LETTERS % "{1,2}"),
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=False), CUTS["bytes"]]),
    ):
        made.pre_tokenizer = other
        assert ascii_words(made, list) is None  # type: ignore[arg-type]
    made.pre_tokenizer = CUTS["bytes"]
    assert ascii_words(made, list) is not None  # type: ignore[arg-type]
    made.add_tokens(["plain"])  # found in a text before it is cut
    assert ascii_words(made, list) is None  # type: ignore[arg-type]
