"""Trainers of TRL from a recipe: their steps are the run's, and the artifact is the engine's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
import yaml
from finetooth_core.cli import main
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


def test_settings_that_a_trainer_would_drop_are_refused(bridged: Callable[..., Any]) -> None:
    for train, method, words in (
        ({"precision": "fp16"}, {}, "train.precision: fp16 needs a loss that is scaled"),
        ({"shuffle": "longest_first"}, {}, "train.shuffle: longest_first"),
        ({}, {"rewards": [{"name": "answer_length", "most": 2, "required": True}]}, "answer_length is required"),
    ):
        given = bridged("grpo" if method else "sft", **({"trainer": "grpo"} if method else {}), **method)
        given["train"] |= train
        with pytest.raises(FinetoothError, match=words):
            finetooth.run(given)


def test_rows_stay_in_their_order_and_embeddings_get_their_noise(bridged: Callable[..., Any], tmp_path: Path) -> None:
    """The seed orders rows and draws noise; where neither is asked for, it changes nothing."""

    def first(seed: int, **train: Any) -> float:
        given = bridged("sft")
        given["train"] |= {"seed": seed, "max_steps": 1, **train}
        given["output"] = str(tmp_path / f"{seed}-{sorted(train)}")
        return finetooth.run(given).history[0].loss

    assert first(1, shuffle=False) == first(2, shuffle=False)
    assert len({first(seed) for seed in (1, 2, 3)}) > 1
    assert first(1, shuffle=False, embedding_noise=15.0) != first(1, shuffle=False, max_length=63)


def test_evaluations_drop_nothing_while_a_trainer_trains(bridged: Callable[..., Any]) -> None:
    """A trainer puts the model into training by itself; what is evaluated is what the artifact holds."""
    given = bridged("sft")
    given["data"]["eval"] = given["data"]["train"]
    given |= {"adapter": {"name": "lora", "rank": 4, "alpha": 64, "dropout": 0.5}, "evaluate": {"every": 1}}
    given["optimizer"] = {"name": "adamw", "learning_rate": 0.03}
    measured = finetooth.run(given).evaluations[-1].metrics["loss"]
    again = {**given, "model": given["output"], "method": "sft", "output": f"{given['output']}-again"}
    begins = finetooth.run(again).evaluations[0]
    assert begins.step == 0 and begins.metrics["loss"] == pytest.approx(measured, rel=1e-4)


def test_an_adapters_dropout_is_the_recipes(bridged: Callable[..., Any], tmp_path: Path) -> None:
    """TRL's trainers of pairs turn every dropout off by default; `adapter.dropout` asks for one."""

    def losses(dropout: float, **arguments: Any) -> list[float]:
        given = bridged("dpo", arguments=arguments)
        given["adapter"] = {"name": "lora", "rank": 4, "alpha": 64, "dropout": dropout}
        given["optimizer"] = {"name": "adamw", "learning_rate": 0.03}
        given["output"] = str(tmp_path / f"{dropout}-{sorted(arguments)}")
        return [step.loss for step in finetooth.run(given).history]

    off = losses(0.0)
    assert losses(0.9)[1] != off[1]
    assert losses(0.9, disable_dropout=True) == off


RESUMED: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("sft", {"portion": 1}),
    "dpo": ("dpo", {}),
    "kto": ("kto", {}),
    "experimental.cpo.CPOTrainer": ("dpo", {}),
    "experimental.orpo.ORPOTrainer": ("dpo", {}),
}
"""Trainers that go on; in portions, so that a step is several batches of theirs."""

KILLING = """
import os, random, signal, time
import numpy, torch
from finetooth_hooks import hookimpl

@hookimpl
def ft_step(run, report):
    random.random(), numpy.random.random(), torch.rand(1)
    kept = int(os.environ.get("KILL", 0))
    if kept and report.step > kept:
        while not (run.folder / "checkpoints" / f"step-{kept}").is_dir():  # written beside the steps
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
"""
"""It ends the process in the first step after a checkpoint; and it draws, which is nothing to the trainer."""

PROGRAM = "import json, sys, finetooth; finetooth.run(json.loads(sys.argv[1]))"


@pytest.mark.parametrize("trainer", RESUMED)
@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_a_killed_run_goes_on(
    bridged: Callable[..., Any], losses: Callable[[Path], list[float]], tmp_path: Path, trainer: str, adapter: str
) -> None:
    """As if it had never been killed: through two epochs and a half, from a checkpoint in the middle of the second,
    and, with all weights, from one between two."""
    rows, method = RESUMED[trainer]
    plugin = tmp_path / "killing_run.py"
    plugin.write_text(KILLING, encoding="utf-8")
    given = bridged(rows, trainer=trainer, **method)
    given |= {
        "adapter": {"name": "lora", "rank": 4, "dropout": 0.2} if adapter == "lora" else "full",
        "optimizer": {"name": "adamw", "learning_rate": 1e-2 if adapter == "lora" else 1e-3},
        "train": {**given["train"], "max_steps": 8},
        "checkpoint": {"every": (every := 4 if adapter == "lora" else 3)},
        "plugins": [str(plugin)],
    }
    whole, killed = ({**given, "output": str(tmp_path / name)} for name in ("whole", "killed"))
    finetooth.run(whole)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(killed)], env={**os.environ, "KILL": str(every)},
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert list((tmp_path / "killed" / "checkpoints").glob("step-*")) != []
    finetooth.resume(tmp_path / "killed")
    undisturbed, found = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert found == undisturbed and len(found) == 8
    assert len(set(found)) > 4, "it learns, and reads other rows"


def test_who_cannot_go_on_says_so_in_the_plan_and_when_asked(
    bridged: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(rows: str, **method: Any) -> str:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(bridged(rows, **method)), encoding="utf-8")
        assert main(["check", str(path)]) == 0
        return " ".join(capsys.readouterr().out.split())

    assert "cannot be resumed, since GRPOTrainer holds a state of its own" in planned("grpo")
    assert "the reference moves with the policy" in planned("dpo", arguments={"sync_ref_model": True})
    assert "cannot go on" not in planned("dpo")
    given = bridged("grpo") | {"checkpoint": {"every": 1}}
    finetooth.run(given)
    with pytest.raises(FinetoothError, match=r"this run cannot be resumed: GRPOTrainer holds .+\(begin a new run"):
        finetooth.resume(given["output"], "train.max_steps=3")


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
