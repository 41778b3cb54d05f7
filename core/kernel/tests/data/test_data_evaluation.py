"""Held-out rows go through the same preparation: with many rows or few, from the cache or anew, evaluators measure the
same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Completion, DataError
from finetooth_rows import lazy_examples
from finetooth_rows.storage.cache import DataCache

Make = Callable[..., Any]
SETTING = "data.cache.eval"


def chat(i: int) -> dict[str, Any]:
    turns = [("user", f"question {i}" * (1 + i % 3)), ("assistant", "x" * (1 + 7 * i % 40))]
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [chat(i) for i in range(23)],
    "prompt_completion": [{"prompt": f"q{i}? ", "completion": "yes" * (i % 4) + f" {i}"} for i in range(23)],
    "text": [{"text": "a document " * (i % 5) + "é"[: i % 2] + "."} for i in range(23)],
}


class Engine:
    """A bigram model, and an answer that says what was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def logprobs(self, data: Any, *, role: str = "policy") -> list[Any]:
        return [np.where(d.mask, -1.0 - (7 * d.tokens + 3 * d.targets) % 11 / 5, 0.0) for d in data]

    def generate(self, prompts: Any, sampling: Any) -> list[Any]:
        self.asked += prompts
        text = [str(sum(prompt) % 7) for prompt in prompts]
        return [[Completion(tuple(said.encode()), (0.0,), said, "stop", 0)] for said in text]


@pytest.fixture
def measure(folder: Path, context_of: Make) -> Make:
    """Write the rows, and evaluate as a new process would."""

    def run(name: str, kind: str, rows: list[Any] | None = None, *, first: int | None = None, **data: Any) -> Any:
        content = "".join(json.dumps(row) + "\n" for row in (rows or ROWS[kind]))
        (folder / "eval.jsonl").write_text(content)
        context = context_of(
            data={"eval": {"name": "jsonl", "path": "eval.jsonl"}, "format": kind, **data}, train={"max_length": 48}
        )
        for needed in ("jsonl", kind, name):
            if not any(
                needed == r.entry.name for k in ("source", "format", "evaluator") for r in context.catalog.all(k)
            ):
                pytest.skip(f"{needed} is not installed")
        evaluator = context.build("evaluator", name if first is None else {"name": name, "rows": first})
        report = evaluator.prepare()
        engine = Engine()
        return report, evaluator.evaluate(engine, 3), engine.asked, context

    return run


@pytest.mark.slow
@pytest.mark.parametrize("first", [None, 10])
@pytest.mark.parametrize(("name", "kind"), [("loss", kind) for kind in ROWS] + [("exact_match", "chat")])
def test_many_rows_measure_as_few_do(
    name: str, kind: str, first: int | None, measure: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as held_in_memory:
        held_in_memory.setattr(lazy_examples, "SMALL_ROWS", 10**6)
        report, evaluation, asked, context = measure(name, kind, first=first)
        assert SETTING not in context.decisions and DataCache().entries() == []
    assert report.rows == (first or 23) and evaluation.rows > 0
    for data, told in (
        ({"workers": 0}, "made now and kept"),
        ({"workers": 2}, "from the cache"),
        ({"workers": 0 if first else 2, "cache": "off"}, "the recipe says so"),
    ):
        again, measured, prompts, context = measure(name, kind, first=first, **data)
        assert told in context.decisions[SETTING].reason
        assert again == report and measured == evaluation and prompts == asked


def test_a_second_start_renders_nothing(measure: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetooth_kit.fake_context import PlainRenderer

    rendered: list[Any] = []
    render = PlainRenderer.render

    def counted(self: Any, conversation: Any, **given: Any) -> Any:
        rendered.append(conversation)
        return render(self, conversation, **given)

    monkeypatch.setattr(PlainRenderer, "render", counted)
    beginnings = len({row["messages"][-1]["content"][:2] for row in ROWS["chat"]})  # each is asked once, too
    measure("loss", "chat", workers=0)
    assert len(rendered) == 23 + beginnings
    measure("loss", "chat")
    assert len(rendered) == 23 + beginnings
    measure("loss", "chat", [*ROWS["chat"], chat(99)], workers=0)
    assert len(rendered) == 23 + beginnings + 24 + beginnings


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_wrong_with_a_row_is_said(workers: int, measure: Make) -> None:
    rows = [*ROWS["chat"], {"messages": [{"role": "user", "content": "x"}]}]
    with pytest.raises(DataError, match=r"eval\.jsonl:24: nothing to train on"):
        measure("loss", "chat", rows, workers=workers)
    assert DataCache().entries() == []
