"""Whole runs with packing, and pre-training on documents that are kept apart or come as a stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import DataError, Datum, RecipeError

Make = Callable[..., dict[str, Any]]


def lines(folder: Path, event: str) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["event"] == event]


def test_packing_changes_neither_training_nor_evaluation(recipe: Make, tmp_path: Path) -> None:
    """Losses of a run, and scores of its held-out rows before and after, with transformers' own forward."""
    for name, count, seed in (("train", 40, 0), ("eval", 20, 1)):
        lengths = np.random.default_rng(seed).integers(1, 60, size=count)
        rows = [{"prompt": f"Count to {n}:", "completion": " ".join(map(str, range(n)))} for n in lengths]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = {}
    for packing in (True, False):
        folder = tmp_path / str(packing)
        sections = recipe(
            backend={"name": "torch", "decoder": "transformers", "packing": packing},
            data={name: str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")},
            evaluate={"evaluators": ["loss"]},
            output=str(folder),
        )
        sections["train"] |= {"batch_size": 10, "max_length": 400}
        assert finetooth.run(sections).status == "done"
        made[packing] = folder
    for event, name in (("step", "loss"), ("evaluation", "eval/loss")):
        ours, theirs = ([_value(line, name) for line in lines(made[packing], event)] for packing in (True, False))
        assert ours and ours == pytest.approx(theirs, rel=1e-4), event
    packed, padded = (sum(line["padding"] for line in lines(made[packing], "step")) for packing in (True, False))
    assert packed < padded / 2
    reasons = {d["setting"]: d["reason"] for d in json.loads((made[True] / "plan.json").read_text())["decisions"]}
    assert " padding instead of about " in reasons["backend.packing"]


def _value(line: dict[str, Any], name: str) -> float:
    value = line.get(name, line.get("metrics", {}).get(name.removeprefix("eval/")))
    assert isinstance(value, float)
    return value


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = ["Once upon a time there was a fox.", "Two and two make four.", "The sea was calm, and the boat lay still."]
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text * (1 + i % 2)}) + "\n" for i, text in enumerate(texts * 4)))
    return path


def pretraining(recipe: Make, corpus: Path, folder: Path, method: dict[str, Any], **train: Any) -> dict[str, Any]:
    sections = recipe(
        data={"train": str(corpus)}, method={"name": "pretrain", **method}, adapter="full", output=str(folder)
    )
    settings = {"batch_size": 2, "precision": "fp32", "max_length": 32, **train}
    return {**sections, "schedule": "constant", "train": settings}


@pytest.mark.parametrize("decoder", ["stream", "transformers"])
def test_documents_in_a_window_are_documents_alone(recipe: Make, corpus: Path, tmp_path: Path, decoder: str) -> None:
    """A window's log-probabilities are those of its documents by themselves, and with attention across not."""
    sections = {**pretraining(recipe, corpus, tmp_path / "run", {}), "backend": {"name": "torch", "decoder": decoder}}
    session = finetooth.session(sections)
    method: Any = session.job.method
    windows = list(method._data)
    assert sum(datum.parents is not None for datum in windows) >= 3
    engine = session.engine
    for datum, found in zip(windows, engine.logprobs(windows), strict=True):
        cuts = [] if datum.parents is None else np.flatnonzero(datum.parents[1:] == -1) + 1
        starts, ends = [0, *cuts], [*cuts, len(datum)]
        tokens, following = datum.tokens.tolist(), datum.targets.tolist()
        parts = [
            Datum.from_tokens([*tokens[a:b], following[b - 1]], id=f"{datum.id}:{a}")
            for a, b in zip(starts, ends, strict=True)
        ]
        np.testing.assert_allclose(np.concatenate(engine.logprobs(parts)), found, atol=1e-5)
    crossing = finetooth.session({**sections, "method": {"name": "pretrain", "isolate_documents": False}})
    other: Any = crossing.job.method
    assert all(datum.parents is None for datum in other._data)


def test_a_stream_trains_the_windows_of_a_run_that_reads_first(recipe: Make, corpus: Path, tmp_path: Path) -> None:
    """In the data's order one pass is the same run."""
    curves = []
    for name, method in (("read", {}), ("streamed", {"streaming": True})):
        sections = pretraining(recipe, corpus, tmp_path / name, method, shuffle=False, epochs=1, max_steps=100)
        outcome = finetooth.run(sections)
        assert outcome.status == "done"
        curves.append([line["loss"] for line in lines(tmp_path / name, "step")])
    assert len(curves[0]) > 2 and curves[1] == curves[0]
    plan = json.loads((tmp_path / "streamed" / "plan.json").read_text())
    assert plan["total_steps"] == 100


def test_a_stream_needs_a_number_of_steps_and_names_a_broken_line(recipe: Make, corpus: Path, tmp_path: Path) -> None:
    streamed = {"streaming": True, "shuffle_buffer": 3}
    with pytest.raises(RecipeError, match=r"train\.max_steps: method\.streaming") as caught:
        _ = finetooth.session(pretraining(recipe, tmp_path / "nowhere.jsonl", tmp_path / "run", streamed)).job
    assert caught.value.exit_code == 2
    text = corpus.read_text().splitlines()
    corpus.write_text("\n".join([*text[:9], '{"text": ', *text[9:]]) + "\n")
    with pytest.raises(DataError, match=r"corpus\.jsonl: 1 broken line, .*line 10"):
        finetooth.run(pretraining(recipe, corpus, tmp_path / "run", streamed, max_steps=50))


def test_a_stream_that_would_have_to_be_read_first_is_refused(recipe: Make, corpus: Path, tmp_path: Path) -> None:
    sections = pretraining(recipe, corpus, tmp_path / "run", {"streaming": True}, max_steps=3)
    sections["data"]["eval"] = {"fraction": 0.2}
    with pytest.raises(RecipeError, match=r"data\.train: streamed rows"):
        _ = finetooth.session(sections).job
