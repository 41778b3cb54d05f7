"""`encode_from` says what offsets say, for tokenizers that merge, split, normalise and put spaces before words."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from finetooth_hooks.tokenizers import FastTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = ["user\nHello there, how are you?\n\nassistant\nI am  well.\n \n Yes.", "café élan naïve 123 \n\n\n x"] * 3
SPECIAL = "<|im_end|>"


@cache
def tokenizer(kind: str) -> FastTokenizer:
    """Trained on two sentences."""
    made = Tokenizer(models.BPE(unk_token="<unk>" if kind != "bytes" else None, fuse_unk=True))
    alphabet: list[str] = []
    if kind == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
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


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "normalised"])
@settings(deadline=None, max_examples=300)
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
