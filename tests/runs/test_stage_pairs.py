"""A stage on a stage, in all combinations: the first loss or divergence is what theory says, or a refusal says the way.

The reference is the policy as the run begins with it. So the first loss of dpo is ln 2 (Rafailov et al., 2023, eq. 7
with equal ratios), that of kto 1/2 (Ethayarajh et al., 2024, eq. 8 with r = z = 0), and the first KL of grpo is 0. What
sft and rm begin with depends on the model alone, not on how the stage is trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from math import isfinite, log
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import FinetoothError

PROMPTS = [f"What colour is fruit number {i}?" for i in range(6)]
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": p, "completion": "It is red."} for p in PROMPTS],
    "dpo": [{"prompt": p, "chosen": "It is red.", "rejected": "Blue, or green."} for p in PROMPTS],
    "kto": [{"prompt": p, "completion": "It is red.", "label": i % 2 == 0} for i, p in enumerate(PROMPTS)],
    "grpo": [{"prompt": p, "answer": "red"} for p in PROMPTS],
}
ROWS["rm"] = ROWS["dpo"]
LORA: dict[str, Any] = {"name": "lora", "rank": 2}
ADAPTERS: dict[str, dict[str, Any]] = {
    "full": {"adapter": "full"},
    "lora": {"adapter": LORA},
    "dora": {"adapter": {**LORA, "dora": True}},
    "qlora": {"adapter": LORA, "quantization": "int8"},
}
FIRST = [(adapter, method) for adapter in ADAPTERS for method in ("sft", "dpo")]
PAIRS = [(*first, adapter, method) for first in FIRST for adapter in (*ADAPTERS, "resume_from") for method in ROWS]
QUICK = [
    ("lora", "sft", "resume_from", "dpo"),
    ("lora", "sft", "resume_from", "kto"),
    ("dora", "sft", "resume_from", "grpo"),
    ("lora", "sft", "lora", "dpo"),
    ("qlora", "sft", "resume_from", "dpo"),
    ("qlora", "sft", "qlora", "dpo"),
]
REWARD = """
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="letters", build=f"{__name__}:build")

def build(options: NoOptions, context):
    return lambda prompts, completions, columns: [float(sum(c in "aeiou" for c in text)) for text in completions]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "letters.py").write_text(REWARD)
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def stage(place: Path, tiny_model: Path) -> Callable[..., Path]:
    """Trains a stage of all rows at once, once for each name; returns its folder."""

    def make(name: str, method: str, steps: int, model: Path = tiny_model, **sections: Any) -> Path:
        folder = place / "runs" / name
        if folder.exists():
            return folder
        grpo = {"name": "grpo", "rewards": ["letters"], "num_generations": 2, "max_completion_length": 4, "beta": 0.1}
        finetooth.run(
            {
                "model": str(model),
                "data": {"train": str(place / f"{method}.jsonl"), "renderer": "chatml"},
                "method": grpo if method == "grpo" else method,
                "optimizer": {"name": "sgd", "learning_rate": 1.0},
                "schedule": "constant",
                "train": {"batch_size": 6, "max_steps": steps, "precision": "fp32", "max_length": 128},
                "trackers": ["jsonl"],
                "evaluate": {"evaluators": []},
                "plugins": [str(place / "letters.py")] if method == "grpo" else [],
                "output": str(folder),
                **sections,
            }
        )
        return folder

    return make


def steps(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == "step"]


@pytest.mark.parametrize(
    ("before", "by", "adapter", "method"),
    [pytest.param(*pair, marks=[] if pair in QUICK else [pytest.mark.slow], id="-".join(pair)) for pair in PAIRS],
)
def test_a_stage_begins_as_theory_says(
    stage: Callable[..., Path], before: str, by: str, adapter: str, method: str
) -> None:
    first = stage(f"{before}-{by}", by, 2, **ADAPTERS[before])
    name = f"{before}-{by}-{adapter}-{method}"
    try:
        if adapter == "resume_from":
            own = ADAPTERS[before]["adapter"]
            chosen = {**(own if isinstance(own, dict) else LORA), "resume_from": str(first)}
            second = stage(name, method, 1, **{**ADAPTERS[before], "adapter": chosen})
        else:
            second = stage(name, method, 1, model=first, **ADAPTERS[adapter])
    except FinetoothError as refusal:
        assert refusal.exit_code == 2 and refusal.action, refusal
        assert adapter == "resume_from" and before == "full", refusal  # whole weights are no adapter to go on with
        return
    (begun,) = steps(second)
    loss = begun["loss"]
    if method == "dpo":
        assert loss == pytest.approx(log(2), abs=1e-6)
    elif method == "kto":
        assert loss == pytest.approx(0.5, abs=1e-6)
    elif method == "grpo":
        assert begun["metrics"]["kl"] == pytest.approx(0, abs=1e-7)
    elif method == "sft" and by == "sft":
        longer = stage(f"{before}-{by}-longer", by, 3, **ADAPTERS[before])
        # its last loss is that of the model after two steps; int8 rounds the folded base once more
        assert loss == pytest.approx(steps(longer)[2]["loss"], abs=5e-3 if "qlora" in (before, adapter) else 1e-5)
        assert abs(loss - steps(longer)[0]["loss"]) > 1e-2
    else:
        assert isfinite(loss)


def test_a_reference_without_an_adapter_that_begins_trained_is_refused(stage: Callable[..., Path]) -> None:
    first = stage("lora-sft", "sft", 2, adapter=LORA)
    base = json.loads((first / "artifact" / "adapter_config.json").read_text())["base_model_name_or_path"]
    with pytest.raises(FinetoothError, match=r"does not begin as its base.*set method\.reference to frozen-copy"):
        finetooth.session(  # noqa: B018
            {
                "model": base,
                "data": {"train": str(first.parents[1] / "dpo.jsonl"), "renderer": "chatml"},
                "method": {"name": "dpo", "reference": "adapter-off"},
                "adapter": {**LORA, "resume_from": str(first)},
            }
        ).plan
