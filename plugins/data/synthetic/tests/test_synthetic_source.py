"""Rows are drawn the same each time, and have as many tokens as asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import DataError, RecipeError
from finetooth_kit import FakeContext, parametrize_with_checks
from finetooth_synthetic.source import SyntheticOptions, build
from hypothesis import given, settings
from hypothesis import strategies as st


@parametrize_with_checks("finetooth_synthetic.plugin")
def test_conforms(check: Any) -> None:
    check()


def drawn(context: FakeContext | None = None, **options: Any) -> list[dict[str, Any]]:
    context = context or FakeContext(Path())
    return [dict(row.values) for row in build(SyntheticOptions(**options), context).rows()]


@settings(deadline=None)
@given(st.integers(1, 60), st.data(), st.integers(0, 2**40))
def test_lengths_are_those_asked_for(length: int, data: st.DataObject, seed: int) -> None:
    shortest = data.draw(st.integers(1, length))
    context = FakeContext(Path())
    rows = drawn(context, rows=40, length=length, min_length=shortest, seed=seed)
    lengths = [len(context.tokenizer.encode(row["text"])) for row in rows]
    assert all(shortest <= n <= length for n in lengths) and context.notes == []
    exact = drawn(context, rows=3, length=length, seed=seed)
    assert {len(context.tokenizer.encode(row["text"])) for row in exact} == {length}


def test_every_length_comes() -> None:
    lengths = {len(row["text"]) for row in drawn(rows=200, length=4, min_length=1)}
    assert lengths == {1, 2, 3, 4}  # the kit's tokens are bytes


def test_the_seed_decides_and_more_rows_change_none() -> None:
    few, many = drawn(rows=5, length=20), drawn(rows=50, length=20)
    assert few == many[:5] and few == drawn(rows=5, length=20, seed=0)
    assert few != drawn(rows=5, length=20, seed=1)
    assert len({row["text"] for row in many}) == 50


def test_the_same_rows_on_every_machine() -> None:
    """Written down once; NumPy promises the stream of its generator."""
    assert drawn(rows=2, length=12) == [{"text": FIRST}, {"text": SECOND}]


FIRST, SECOND = "nxzohufyxbbg", "zchkfpxdlcbi"


def test_questions_and_answers() -> None:
    (row,) = drawn(rows=1, length=16, shape="messages")
    assert [(m["role"], len(m["content"])) for m in row["messages"]] == [("user", 4), ("assistant", 12)]


def test_tokens_of_a_real_tokenizer(tmp_path: Path) -> None:
    """Words of a byte-pair vocabulary stay whole side by side."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    from finetooth_toolbox.text.tokenizers import FastTokenizer

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=600, initial_alphabet=letters, show_progress=False)
    made.train_from_iterator([Path(__file__).read_text()], trainer)
    tokenizer = FastTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=made))
    context = FakeContext(tmp_path, tokenizer=tokenizer)
    rows = drawn(context, rows=5, length=300)
    assert [len(tokenizer.encode(row["text"])) for row in rows] == [300] * 5 and context.notes == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"length": 3, "min_length": 4}, "min_length: 4 is more than length=3"),
        ({"length": 1, "shape": "messages"}, "messages take two tokens"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        drawn(**options)


def test_a_tokenizer_without_words() -> None:
    class Digits:
        vocab_size = 10

        def decode(self, ids: list[int], *, skip_special: bool = False) -> str:
            return "".join(map(str, ids))

        def encode(self, text: str, *, special: bool = False) -> list[int]:
            return [int(character) for character in text]

    with pytest.raises(DataError, match="no words of one token"):
        drawn(FakeContext(Path(), tokenizer=Digits()))  # type: ignore[arg-type]
