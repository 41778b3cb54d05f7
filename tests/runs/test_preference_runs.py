"""Whole runs that learn from preferences: five kinds of reference give one trajectory, and bad ones are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import RecipeError

Recipes = Callable[..., dict[str, Any]]


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, str]:
    """Prefer the short answer to the long one."""
    prompts = [f"What colour is fruit number {i}, and why is that so, in a few words?" for i in range(24)]
    pairs = [{"prompt": p, "chosen": "Red.", "rejected": "It is blue, " * (1 + i % 3)} for i, p in enumerate(prompts)]
    answers = [
        {"prompt": p, "completion": "Red." if i % 3 == 0 else "It is blue.", "label": i % 3 == 0}
        for i, p in enumerate(prompts)
    ]
    found = {}
    for name, lines in (("pairs", pairs), ("answers", answers)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
        found[name] = str(file)
    return found


@pytest.fixture
def run(recipe: Recipes, rows: dict[str, str], tmp_path: Path, monkeypatch: Any) -> Callable[..., Any]:
    """Run a method on them; its outcome, losses by step, and the session."""
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))

    def make(method: Any, kind: str = "pairs", name: str = "run", **sections: Any) -> tuple[Any, list[float], Path]:
        import finetooth

        folder = tmp_path / name
        given = recipe(
            method=method, data={"train": rows[kind], "eval": rows[kind], "renderer": "chatml"}, output=str(folder),
            optimizer={"name": "adamw", "learning_rate": 5e-3},
        )  # fmt: skip
        outcome = finetooth.run({**given, **sections})
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return outcome, [line["loss"] for line in lines if line["event"] == "step"], folder

    return make


@pytest.mark.slow
def test_dpo_learns_whatever_holds_the_reference(run: Callable[..., Any], tiny_model: Path) -> None:
    references = ("adapter-off", "frozen-copy", "precomputed", str(tiny_model))
    found = {
        name: run({"name": "dpo", "beta": 0.5, "reference": name}, name=f"run-{i}") for i, name in enumerate(references)
    }
    outcome, losses, _ = found["adapter-off"]
    assert losses[0] == pytest.approx(0.6931, abs=1e-3)
    assert outcome.metrics["eval/rewards/accuracies"] > 0.9
    assert outcome.metrics["eval/rewards/accuracies_low"] > 0.5
    for name, (_, others, _) in found.items():
        assert others == pytest.approx(losses, rel=1e-5), name


def test_full_training_holds_a_copy_by_itself(run: Callable[..., Any]) -> None:
    full = {"adapter": "full", "optimizer": {"name": "adamw", "learning_rate": 1e-3}}
    _, held, folder = run({"name": "dpo"}, **full)
    plan = json.loads((folder / "plan.json").read_text())
    (said,) = [d for d in plan["decisions"] if d["setting"] == "method.reference.policy"]
    assert said["value"] == "frozen-copy"
    assert plan["memory"]["parts"]["roles"] > 0
    _, known, _ = run({"name": "dpo", "reference": "precomputed"}, name="known", **full)
    assert held == pytest.approx(known, rel=1e-5)
    assert held[-1] < held[0] - 1e-3
    _, moved, _ = run({"name": "dpo", "reference": {"sync_every": 1, "mix": 1.0}}, name="moved", **full)
    assert moved == pytest.approx([0.6931] * len(moved), abs=1e-3)  # the reference is always the policy


@pytest.mark.parametrize("method", ["orpo", "simpo", "cpo"])
def test_methods_without_a_reference_learn(run: Callable[..., Any], method: str) -> None:
    outcome, losses, _ = run(method)
    assert losses[-1] < losses[0]
    assert outcome.metrics["eval/rewards/accuracies"] > 0.9


def test_kto_learns_and_says_its_balance(run: Callable[..., Any]) -> None:
    outcome, losses, _ = run({"name": "kto", "beta": 0.5, "desirable_weight": 2.0}, kind="answers", name="kto")
    assert losses[0] == pytest.approx(0.5 * (8 * 2 + 16) / 24, rel=0.3)
    assert outcome.metrics["eval/rewards/auc"] > 0.9
    assert outcome.metrics["rewards/chosen"] > outcome.metrics["rewards/rejected"]


def test_a_prompt_is_computed_once(recipe: Recipes, rows: dict[str, str]) -> None:
    """Same loss, same gradient norm, and fewer positions than if the prompt were computed for either answer."""
    import finetooth

    session = finetooth.session(recipe(method="dpo", data={"train": rows["pairs"], "renderer": "chatml"}))
    engine, method = session.engine, session.job.method
    body = engine._parts.network.body
    if not body.packed:
        pytest.skip("the stream decoder, which shares what sequences begin with, cannot be used here")
    data = [datum for i in range(8) for datum in method._pairs[i]]
    results, norms, positions = [], [], []
    for body.shares in (True, False):
        positions.append(sum(batch.positions for batch in engine._work(data, method._loss).computed))
        results.append(engine.forward_backward(data, method._loss))
        norms.append(engine._parts.parameters.norm())
        engine.zero_grad()
    assert positions[0] < 0.65 * positions[1]
    assert results[0].flops < results[1].flops
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    assert norms[0] > 1e-4


def test_a_reference_that_reads_other_tokens_is_refused(
    run: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    content = json.loads((other / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (other / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(RecipeError, match=r"method.reference.policy: .*has another tokenizer .*id \d+ is '[ab]', not"):
        run({"name": "dpo", "reference": str(other)})
    with pytest.raises(RecipeError, match=r"method.reference.policy: "):
        run({"name": "dpo", "reference": "no-such-model"})
