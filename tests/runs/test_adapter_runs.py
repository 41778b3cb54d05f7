"""Adapters in whole runs: what begins with another one, what changes between steps and is stopped, what loads
elsewhere, and what the plan says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Datum, RecipeError

Make = Callable[..., dict[str, Any]]
LORA: dict[str, Any] = {"name": "lora", "rank": 4}
OFT: dict[str, Any] = {"name": "oft", "block_size": 8}


def probe(seed: int = 0) -> list[Datum]:
    random = np.random.default_rng(seed)
    return [Datum.from_tokens(random.integers(10, 4000, size=length).tolist()) for length in (9, 14, 30)]


def begun(recipe: dict[str, Any]) -> list[np.ndarray]:
    """Log-probabilities of a recipe's model before its first step."""
    return finetooth.session(recipe, data=False).engine.logprobs(probe())


def trained(folder: Path) -> list[np.ndarray]:
    from finetooth_core.settings.run_recipe import recipe_of
    from finetooth_saving.run_folder import artifact_of

    engine = finetooth.session(recipe_of(folder), data=False).engine
    engine.restore(artifact_of(folder))
    return engine.logprobs(probe())


def run(recipe: Make, folder: Path, steps: int = 2, **sections: Any) -> Path:
    made = recipe(output=str(folder), **sections)
    made["train"] = {**made["train"], "max_steps": steps}
    assert finetooth.run(made).status == "done"
    return folder


@pytest.mark.parametrize("adapter", [LORA, OFT], ids=["lora", "oft"])
def test_an_adapter_goes_on_with_another_ones_numbers(recipe: Make, tmp_path: Path, adapter: Any) -> None:
    first = run(recipe, tmp_path / "runs" / "first", adapter=adapter)
    for place in (first, first / "artifact"):
        start = begun(recipe(adapter={**adapter, "resume_from": str(place)}))
        for ours, theirs in zip(start, trained(first), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    more = run(recipe, tmp_path / "more", adapter={**adapter, "resume_from": str(first)})
    config = [json.loads((folder / "artifact" / "adapter_config.json").read_text()) for folder in (first, more)]
    assert config[0]["base_model_name_or_path"] == config[1]["base_model_name_or_path"]


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ({"name": "lora", "rank": 8, "alpha": 8}, "was trained with r 4, and here it is 8"),
        ({"name": "lora", "rank": 4, "targets": "attention"}, "adds to .*mlp.*, and adapter.targets does not"),
        ({"name": "lora", "rank": 4, "dora": True}, "use_dora False, and here it is True"),
        ({"name": "oft", "block_size": 8}, "holds an adapter of the kind LORA"),
    ],
    ids=["rank", "targets", "dora", "kind"],
)
def test_an_adapter_of_another_shape_is_refused_before_weights_are_read(
    recipe: Make, tmp_path: Path, adapter: Any, said: str, first_lora: Path
) -> None:
    with pytest.raises(RecipeError, match=rf"^adapter\.resume_from: .*{said}") as told:
        finetooth.session(recipe(adapter={**adapter, "resume_from": str(first_lora)}), data=False).plan  # noqa: B018
    assert "\n" not in str(told.value)


@pytest.mark.slow  # a run
@pytest.mark.parametrize("method", ["rm", "sft"])
def test_a_reward_models_adapter_is_refused_by_the_plan_and_is_a_base(
    recipe: Make, tmp_path: Path, method: str
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    row = {"prompt": "What colour is it?", "completion": "red", "chosen": "red", "rejected": "blue"}
    pairs.write_text(4 * (json.dumps(row) + "\n"))
    data = {"train": str(pairs), "renderer": "chatml"}
    first = run(recipe, tmp_path / "first", 1, method="rm", data=data, adapter=LORA)
    made = recipe(method=method, data=data, adapter={**LORA, "resume_from": str(first)})
    with pytest.raises(RecipeError, match=r"^adapter\.resume_from: .* whole weights of score") as told:
        finetooth.session(made, data=False).plan  # noqa: B018
    assert f"set model: {first}" in str(told.value.action)
    if method == "rm":
        run(recipe, tmp_path / "second", 1, method="rm", data=data, adapter=LORA, model=str(first))


def test_an_adapter_of_another_base_is_refused(recipe: Make, first_lora: Path, tiny_smollm2: Path) -> None:
    made = recipe(model=str(tiny_smollm2), adapter={**LORA, "resume_from": str(first_lora)})
    with pytest.raises(
        RecipeError,
        match=r"^adapter\.resume_from: .* was trained over .* these files differ: .* has another content",
    ):
        finetooth.session(made, data=False).plan  # noqa: B018


def test_no_adapter_and_whole_weights_are_refused(recipe: Make, tiny_model: Path, tmp_path: Path) -> None:
    for reference, said in ((tmp_path / "nothing", "no adapter_config.json"), (tiny_model, "holds whole weights")):
        with pytest.raises(RecipeError, match=rf"^adapter\.resume_from: .*{said}"):
            finetooth.session(recipe(adapter={**LORA, "resume_from": str(reference)}), data=False).plan  # noqa: B018


@pytest.fixture
def first_lora(recipe: Make, tmp_path: Path) -> Path:
    """A run of one step."""
    return run(recipe, tmp_path / "runs" / "lora", 1, adapter=LORA)


@pytest.mark.parametrize(
    "adapter",
    [
        {"name": "relora", "rank": 4, "every": 2, "warm_up": 1},
        {"name": "lisa", "layers": 1, "every": 2},
        {"name": "lora", "rank": 4, "init": "pissa", "loraplus_ratio": 4},
    ],
    ids=["relora", "lisa", "pissa"],
)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    recipe: Make, tmp_path: Path, ft: Any, adapter: Any, losses: Any
) -> None:
    whole = run(recipe, tmp_path / "whole", 6, adapter=adapter)
    run(recipe, tmp_path / "part", 6, adapter=adapter, checkpoint={"every": 3})
    code, _, problem = ft("resume", tmp_path / "part", "--at", "3")
    assert code == 0, problem
    assert losses(tmp_path / "part")[-3:] == losses(whole)[-3:]
    for file in sorted((whole / "artifact").glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "part" / "artifact" / file.name).read_bytes()


@pytest.mark.parametrize("name", ["relora", "lisa"])
def test_the_artifact_is_a_whole_model(recipe: Make, tmp_path: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    more = {"warm_up": 0} if name == "relora" else {}
    folder = run(recipe, tmp_path / "runs" / name, 3, adapter={"name": name, "every": 2, **more})
    model = AutoModelForCausalLM.from_pretrained(folder / "artifact").eval()
    tokens = [int(token) for token in probe()[1].input[0].tokens]
    with torch.no_grad():
        scores = torch.log_softmax(model(torch.tensor([tokens])).logits[0].float(), -1)
    wanted = trained(folder)[1]
    targets = probe()[1].targets
    found = scores[torch.arange(len(tokens)), torch.tensor(targets)].numpy()
    np.testing.assert_allclose(found[:-1], wanted[:-1], rtol=1e-3, atol=1e-3)
    following = begun(recipe(model=str(folder)))  # and the model of another run
    np.testing.assert_allclose(following[1], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_plain_peft_loads_each_artifact_by_its_folder_alone(recipe: Make, tmp_path: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM

    for adapter in (OFT, {"name": "vera", "rank": 8}, {"name": "ia3"}, {"name": "lora", "rank": 2, "init": "olora"}):
        folder = run(recipe, tmp_path / adapter["name"], 2, adapter=adapter)
        model = AutoPeftModelForCausalLM.from_pretrained(folder / "artifact", dtype=torch.float32).eval()
        row = probe()[1]
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([list(map(int, row.input[0].tokens))])).logits[0].float(), -1)
        found = scores[torch.arange(len(scores)), torch.tensor(row.targets)].numpy()
        np.testing.assert_allclose(found[:-1], trained(folder)[1][:-1], rtol=1e-3, atol=1e-3)


def test_the_plan_counts_what_is_held_beside_what_trains(recipe: Make) -> None:
    def memory(adapter: dict[str, Any]) -> dict[str, int]:
        return dict(finetooth.session(recipe(adapter=adapter), data=False).plan.memory.parts)

    plain, started = memory(LORA), memory({**LORA, "init": "pissa"})
    inputs_and_outputs = (plain["optimizer"] // 8) * 4  # a pair as large as the one that trains, in fp32
    assert started["weights"] - plain["weights"] == inputs_and_outputs
    vera = [memory({"name": "vera", "rank": rank})["weights"] for rank in (8, 16)]
    assert vera[1] > vera[0]
    full, lisa = memory({"name": "full"}), memory({"name": "lisa", "layers": 1})
    assert lisa["optimizer"] < full["optimizer"]
