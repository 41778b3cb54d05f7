"""Trainers of TRL from a recipe: their steps are the run's, and the artifact is the engine's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import FinetoothError

pytest.importorskip("trl")
pytest.importorskip("finetooth_trl")
pytestmark = pytest.mark.slow  # importing TRL alone takes seconds

WORDS = ("red", "blue", "green", "white", "black", "grey")


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"messages": [said("user", f"Say {word}"), said("assistant", word)]} for word in WORDS],
    "dpo": [
        {
            "prompt": [said("user", f"Say {word}")],
            "chosen": [said("assistant", word)],
            "rejected": [said("assistant", "no")],
        }
        for word in WORDS
    ],
    "kto": [
        {
            "prompt": [said("user", f"Say {word}")],
            "completion": [said("assistant", word if i % 2 else "no")],
            "label": bool(i % 2),
        }
        for i, word in enumerate(WORDS)
    ],
    "grpo": [{"prompt": f"Say {word}", "answer": word, "privileged_context": f"It is {word}."} for word in WORDS],
}
MORE: dict[str, dict[str, Any]] = {
    "grpo": {
        "rewards": [{"name": "answer_length", "most": 2, "weight": 0.5}],
        "arguments": {"num_generations": 2, "max_completion_length": 4, "beta": 0.0},
    },
}


@pytest.fixture
def bridged(recipe: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A recipe of two steps; keyword arguments go into its method."""

    def make(rows: str, **method: Any) -> Any:
        path = tmp_path / f"{rows}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[rows]), encoding="utf-8")
        given = {"name": "trl", "trainer": rows, **({} if "trainer" in method else MORE.get(rows, {})), **method}
        return recipe(
            data={"train": str(path), "renderer": "chatml", **({"format": "task"} if rows == "grpo" else {})},
            method=given,
            train={"batch_size": 2, "precision": "fp32", "max_length": 64, "max_steps": 2},
            evaluate={"evaluators": []},
        )

    return make


@pytest.mark.parametrize("trainer", ROWS)
def test_a_trainer_runs(bridged: Callable[..., Any], trainer: str) -> None:
    given = bridged(trainer)
    outcome = finetooth.run(given)
    assert outcome.steps == 2
    folder = Path(given["output"])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in steps)
    if trainer == "dpo":
        assert steps[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)  # policy and reference are one at first
        assert "rewards/accuracies" in steps[0]["metrics"]
    if trainer == "grpo":
        assert "reward" in steps[0]["metrics"]
    else:
        assert all(line["grad_norm"] > 0 for line in steps)


def test_what_the_recipe_says_is_refused(bridged: Callable[..., Any]) -> None:
    for method, words in (
        ({"arguments": {"learning_rate": 1.0}}, "set optimizer.learning_rate"),
        ({"arguments": {"packng": True}}, "did you mean packing"),
        ({"rewards": ["exact_match"]}, "takes none"),
        ({"portion": 3}, "does not divide train.batch_size"),
    ):
        with pytest.raises(FinetoothError, match=words):
            finetooth.run(bridged("sft", **method))
    given = bridged("sft")
    given["method"]["trainer"] = "dbo"
    with pytest.raises(FinetoothError, match="no trainer 'dbo'"):
        finetooth.run(given)


SAMPLES = MORE["grpo"]
TAUGHT = {"teacher": "MODEL", "arguments": {"max_new_tokens": 4}}
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rloo": ("grpo", SAMPLES),
    "DistillationTrainer": ("grpo", {"teacher": "MODEL"}),
    "experimental.a2po.A2POTrainer": (
        "grpo",
        {"rewards": SAMPLES["rewards"][:1], "arguments": {"max_completion_length": 4}},
    ),
    "experimental.gmpo.GMPOTrainer": ("grpo", SAMPLES),
    "experimental.cpo.CPOTrainer": ("dpo", {}),
    "experimental.orpo.ORPOTrainer": ("dpo", {}),
    "experimental.bema_for_ref_model.DPOTrainer": ("dpo", {}),
    "experimental.kto.KTOTrainer": ("kto", {}),
    "experimental.gkd.GKDTrainer": ("sft", TAUGHT),
    "experimental.gold.GOLDTrainer": ("sft", {"teacher": "MODEL", "arguments": {"max_completion_length": 4}}),
    "experimental.iw_opd.IWOPDTrainer": ("sft", {"teacher": "MODEL", "arguments": {"max_completion_length": 4}}),
    "experimental.online_dpo.OnlineDPOTrainer": (
        "grpo",
        {"rewards": SAMPLES["rewards"][:1], "arguments": {"max_new_tokens": 4}},
    ),
    "experimental.sdft.SDFTTrainer": ("grpo", {"arguments": {"num_generations": 2, "max_completion_length": 4}}),
    "experimental.sdpo.SDPOTrainer": (
        "grpo",
        {**SAMPLES, "arguments": {**SAMPLES["arguments"], "teacher_model_kind": "base"}},
    ),
}
"""Rows and options of TRL's other trainers."""


@pytest.mark.parametrize("trainer", OTHERS)
def test_other_trainers(bridged: Callable[..., Any], trainer: str, tiny_llama: Path) -> None:
    rows, method = OTHERS[trainer]
    own = {name: str(tiny_llama) if value == "MODEL" else value for name, value in method.items()}
    assert finetooth.run(bridged(rows, trainer=trainer, **own)).steps == 2


@pytest.mark.parametrize(
    "trainer",
    [
        "reward",
        "experimental.tpo.TPOTrainer",
        "experimental.async_grpo.AsyncGRPOTrainer",
        "experimental.async_distillation.AsyncDistillationTrainer",
        "experimental.server_distillation.ServerDistillationTrainer",
    ],
)
def test_trainers_that_cannot_run_say_why(bridged: Callable[..., Any], trainer: str) -> None:
    with pytest.raises(FinetoothError, match=r"does not run here: .+\(take the method \w+") as refused:
        finetooth.run(bridged("dpo", trainer=trainer))
    assert refused.value.exit_code == 2 and "\n" not in str(refused.value)


def test_a_teacher_belongs_to_trainers_that_distil(bridged: Callable[..., Any], tiny_llama: Path) -> None:
    with pytest.raises(FinetoothError, match="GKDTrainer needs one"):
        finetooth.run(bridged("sft", trainer="experimental.gkd.GKDTrainer"))
    with pytest.raises(FinetoothError, match="SFTTrainer takes none"):
        finetooth.run(bridged("sft", teacher=str(tiny_llama)))
