"""A run as the model of the next: it begins where the other ended, and says where it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum, PlanError, UserError

Make = Callable[..., dict[str, Any]]

LORA: dict[str, Any] = {"name": "lora", "rank": 4}


def probe(seed: int = 0) -> list[Datum]:
    random = np.random.default_rng(seed)
    return [Datum.from_tokens(random.integers(10, 4000, size=length).tolist()) for length in (9, 14, 30)]


def trained(folder: Path) -> list[np.ndarray]:
    """Log-probabilities of a run's trained model."""
    from finetooth_core.settings.run_recipe import recipe_of
    from finetooth_saving.run_folder import artifact_of

    engine = finetooth.session(recipe_of(folder), data=False).engine
    engine.restore(artifact_of(folder))
    return engine.logprobs(probe())


def begun(recipe: dict[str, Any]) -> list[np.ndarray]:
    """Log-probabilities of a recipe's model before its first step."""
    return finetooth.session(recipe, data=False).engine.logprobs(probe())


def same(a: list[np.ndarray], b: list[np.ndarray], tolerance: float = 1e-5) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance * 10)


@pytest.fixture
def first(recipe: Make, tmp_path: Path) -> Callable[..., Path]:
    """Trains a run of two steps; returns its folder."""

    def make(name: str = "first", **sections: Any) -> Path:
        made = recipe(output=str(tmp_path / "runs" / name), **sections)
        made["train"] = {**made["train"], "max_steps": 2}
        assert finetooth.run(made).status == "done"
        return tmp_path / "runs" / name

    return make


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_it_begins_where_the_run_ended(recipe: Make, first: Any, tiny_model: Path, adapter: str) -> None:
    folder = first(adapter=LORA if adapter == "lora" else "full")
    start = begun(recipe(model=str(folder)))
    same(start, trained(folder))
    base = begun(recipe(model=str(tiny_model)))
    assert max(float(np.abs(a - b).max()) for a, b in zip(start, base, strict=True)) > 1e-2


def test_a_chain_of_three_is_named_and_recorded(
    recipe: Make, first: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{i}+1?", "completion": f"{i + 1}"}) + "\n" for i in range(16)))
    one = first("one", data={"train": str(rows)})
    two = first("two", model="one", adapter="full")
    three = first("three", model="runs/two")
    plan = finetooth.session(recipe(model="three")).plan
    said = {decision.setting: decision for decision in plan.decisions}
    assert "merged into" in said["model"].reason and "sft run" in said["model"].reason
    for setting, folder in (("model.parent", three), ("model.parent.parent", two), ("model.parent.parent.parent", one)):
        digest = hashlib.sha256((folder / "artifact" / "manifest.json").read_bytes()).hexdigest()
        assert said[setting].value == digest
    assert (
        "whole weights"
        in {d["setting"]: d for d in json.loads((three / "plan.json").read_text())["decisions"]}["model"]["reason"]
    )
    manifest = json.loads((three / "artifact" / "manifest.json").read_text())
    assert manifest["parent"]["run"] == "runs/two"
    assert manifest["parent"]["parent"]["run"] == "one"
    digest = hashlib.sha256(rows.read_bytes()).hexdigest()
    assert manifest["parent"]["parent"]["data"] == {"data.train.sha256": digest}
    recipe_digest = json.loads((one / "artifact" / "manifest.json").read_text())["recipe_sha256"]
    assert manifest["parent"]["parent"]["recipe_sha256"] == recipe_digest
    same(begun(recipe(model="three")), trained(three))


def test_the_renderer_goes_with_the_run(recipe: Make, first: Any) -> None:
    folder = first()
    made = recipe(model=str(folder))
    del made["data"]["renderer"]
    plan = finetooth.session(made).plan
    assert plan.picks["renderer"] == "finetooth-chatml:chatml"
    assert "the renderer of run" in {d.setting: d.reason for d in plan.decisions}["data.renderer"]


def test_a_damaged_run_is_refused(recipe: Make, first: Any) -> None:
    folder = first()
    weights = folder / "artifact" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"adapter_model\.safetensors differs from its SHA-256"):
        finetooth.session(recipe(model=str(folder))).plan  # noqa: B018


def test_merging_the_last_stage_gives_all_of_them(recipe: Make, first: Any, tmp_path: Path) -> None:
    import torch
    from click.testing import CliRunner
    from finetooth_core.cli.start_options import StartOptions
    from finetooth_core.cli.state import State
    from finetooth_lora.merge import command
    from peft import AutoPeftModelForCausalLM

    one = first("one")
    two = first("two", model=str(one))
    for run in (two, one):
        result = CliRunner().invoke(command, [str(run)], obj=State(StartOptions()), catch_exceptions=False)
        assert result.exit_code == 0, result.output
    made = recipe(model=str(two / "merged"))
    same(begun(made), trained(two))
    others = AutoPeftModelForCausalLM.from_pretrained(two / "artifact")  # on what the first stage was merged to
    datum = probe()[0]
    with torch.no_grad():
        logits = others(torch.tensor(datum.tokens)[None]).logits[0]
    found = torch.log_softmax(logits, -1).gather(1, torch.tensor(datum.targets)[:, None])[:, 0]
    same([found.numpy()], trained(two)[:1])


PAIRS = [{"prompt": f"What is {i}?", "chosen": f"{i}", "rejected": f"No idea about {i}."} for i in range(16)]


@pytest.fixture
def pairs(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return {"train": str(file), "eval": str(file), "renderer": "chatml"}


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_reward_model_goes_on_with_its_head(recipe: Make, first: Any, pairs: Any, adapter: str) -> None:
    from finetooth_core.settings.run_recipe import recipe_of
    from finetooth_saving.run_folder import artifact_of
    from finetooth_toolbox.messages.answers import text_datum

    folder = first(method="rm", data=pairs, adapter=LORA if adapter == "lora" else "full")
    texts = [text_datum([5, 9, 200, 31]), text_datum([5, 700])]
    engine = finetooth.session(recipe_of(folder), data=False).engine
    engine.restore(artifact_of(folder))
    wanted = [float(each["scores"]) for each in engine.forward(texts, returns=("scores",)).outputs]
    session = finetooth.session(recipe(model=str(folder), method="rm", data=pairs))
    assert "begins as the model's own" in {d.setting: d.reason for d in session.plan.decisions}["model.head"]
    got = [float(each["scores"]) for each in session.engine.forward(texts, returns=("scores",)).outputs]
    assert got == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(PlanError, match="is a reward model, and method sft trains a language model"):
        finetooth.session(recipe(model=str(folder))).plan  # noqa: B018
