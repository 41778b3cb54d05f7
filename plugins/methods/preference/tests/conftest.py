"""Pairs and labelled answers over the kit's byte tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import Example, Message
from finetooth_hooks.data.examples import Labelled, Pair
from finetooth_hooks.protocols import Examples
from finetooth_kit import FakeContext


def say(role: str, text: str) -> tuple[Message, ...]:
    return (Message(role, text),)


def pair(question: str, chosen: str, rejected: str, **more: Any) -> Pair:
    return Pair(say("user", question), say("assistant", chosen), say("assistant", rejected), **more)


def answer(question: str, text: str, label: Any) -> Labelled:
    return Labelled(say("user", question), say("assistant", text), label)


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., FakeContext]:
    """A context over examples, for training and held out; `train` settings by name."""

    def make(rows: Sequence[Example], held_out: Sequence[Example] = (), **train: Any) -> FakeContext:
        context = FakeContext(tmp_path, installed=True)
        context.train = replace(context.train, **train)
        given = {"train": rows, "eval": held_out or rows}
        context.given = {
            split: Examples(split, tuple((f"{split}:{i}", row) for i, row in enumerate(of)))
            for split, of in given.items()
        }
        return context

    return make


@pytest.fixture
def pairs() -> list[Pair]:
    return [pair(f"What is {i}?", f"It is {i}.", "No" + "!" * (i % 3)) for i in range(10)]


@pytest.fixture
def answers() -> list[Labelled]:
    return [answer(f"What is {i}?", f"It is {i}" + "." * (i % 4), i % 3 > 0) for i in range(9)]
