"""Methods with a teacher end to end: the student comes nearer to it, and a killed run goes on."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_distillation.self_distilled import SHOWN
from finetooth_hooks import Datum, FinetoothError, Message
from finetooth_rollouts.prompts import messages_of
from finetooth_rollouts.rollouts_file import read_rollouts
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "torture"))

from killing import differences, left, rewound  # type: ignore[import-not-found]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A run that has learned one answer by heart."""
    folder = tmp_path_factory.mktemp("teacher")
    finetooth.run(
        {
            "model": str(tiny_model),
            "data": {"train": {"name": "tasks", "task": "family", "count": 8, "seed": 5}, "renderer": "chatml"},
            "method": "sft",
            "adapter": {"name": "lora", "rank": 4},
            "optimizer": {"name": "adamw", "learning_rate": 3e-2},
            "train": {"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": 6},
            "evaluate": {"evaluators": []},
            "trackers": [],
            "output": str(folder / "run"),
        }
    )
    return folder / "run"


def made(recipe: Callable[..., Any], method: dict[str, Any], *, task: bool, steps: int = 6) -> Any:
    data = {"train": {"name": "tasks", "task": "family", "count": 8, "seed": 5}, "renderer": "chatml"}
    return recipe(
        data={**data, "format": "task"} if task else data,
        method=method,
        train={"batch_size": 8, "precision": "fp32", "max_length": 256, "max_steps": steps},
        evaluate={"evaluators": []},
    )


@pytest.mark.parametrize(
    "method",
    [
        {"name": "distill", "top_k": 16},
        pytest.param({"name": "distill", "top_k": 0, "divergence": "js", "temperature": 2.0}, marks=pytest.mark.slow),
        pytest.param({"name": "distill", "top_k": 8, "divergence": "reverse"}, marks=pytest.mark.slow),
        {"name": "opd", "num_generations": 4, "max_completion_length": 8},
        pytest.param({"name": "opd", "num_generations": 4, "max_completion_length": 8, "teacher_top_k": 16},
                     marks=pytest.mark.slow),
        pytest.param({"name": "gkd", "max_completion_length": 8}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_the_student_comes_nearer(
    recipe: Callable[..., Any], teacher: Path, method: dict[str, Any], metrics: Callable[[Path], list[dict[str, float]]]
) -> None:
    given = made(recipe, {**method, "teacher": str(teacher)}, task=method["name"] == "opd", steps=10)
    assert finetooth.run(given).steps == 10
    name = "reverse_kl" if method["name"] == "opd" else "divergence"
    found = [one[name] for one in metrics(Path(given["output"]))]
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:2]), found


def test_the_advantage_is_what_the_teacher_thinks(recipe: Callable[..., Any], teacher: Path) -> None:
    """Of each token log teacher - log policy, by engines of their own: of the teacher's run, and of the base."""
    method = {"name": "opd", "teacher": str(teacher), "num_generations": 2, "max_completion_length": 6}
    given = made(recipe, method, task=True, steps=1)
    finetooth.run(given)
    (of,) = dict(read_rollouts(Path(given["output"]))).values()
    data = [
        Datum.from_tokens([*one.prompt, *one.tokens], [0.0] * len(one.prompt) + [1.0] * len(one.tokens)) for one in of
    ]
    plain = {**made(recipe, {"name": "sft"}, task=False), "output": given["output"] + "-plain"}
    student = finetooth.engine(plain).logprobs(data)
    theirs = finetooth.engine({**plain, "model": str(teacher), "output": given["output"] + "-theirs"}).logprobs(data)
    for one, datum, p, q in zip(of, data, student, theirs, strict=True):
        np.testing.assert_allclose(one.advantages, (q - p)[datum.mask], atol=2e-4)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_gkd_over_rows_is_the_generalized_divergence(
    recipe: Callable[..., Any], teacher: Path, losses: Callable[[Path], list[float]], beta: float
) -> None:
    """The loss of the first step by hand, in float64, from logits that the base and the teacher give by themselves."""
    method = {"name": "gkd", "teacher": str(teacher), "lmbda": 0, "beta": beta, "top_k": 0}
    given = made(recipe, method, task=False, steps=1)
    finetooth.run(given)
    plain = {**made(recipe, {"name": "sft"}, task=False), "output": given["output"] + "-plain"}
    rows = finetooth.session(plain).job.method.data
    both = []
    for model, name in ((given["model"], "base"), (str(teacher), "theirs")):
        engine = finetooth.engine({**plain, "model": model, "output": given["output"] + name})
        said = engine.forward(rows, returns=("logits",), train=False).outputs
        z = np.concatenate([of["logits"][row.mask] for of, row in zip(said, rows, strict=True)]).astype(np.float64)
        both.append(z - np.log(np.exp(z).sum(-1, keepdims=True)))
    student, taught = both
    mixture = np.log(beta * np.exp(taught) + (1 - beta) * np.exp(student))
    ends = {0.0: (np.exp(taught) * (taught - student)), 1.0: (np.exp(student) * (student - taught))}
    between = beta * np.exp(taught) * (taught - mixture) + (1 - beta) * np.exp(student) * (student - mixture)
    expected = ends.get(beta, between).sum(-1).mean()
    assert losses(Path(given["output"])) == [pytest.approx(expected, rel=1e-4)]


@pytest.mark.parametrize("seq_kd", [False, True])
def test_gkd_learns_from_what_the_policy_answers(
    recipe: Callable[..., Any], teacher: Path, metrics: Callable[[Path], list[dict[str, float]]], seq_kd: bool
) -> None:
    """Some steps train answers of the policy and some rows, or answers of the teacher, as the seed says; a run that is
    killed before a step draws the same again."""
    method = {"name": "gkd", "teacher": str(teacher), "max_completion_length": 6, "seq_kd": seq_kd}
    given = made(recipe, method, task=seq_kd, steps=6) | {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    assert {one["on_policy"] for one in metrics(folder)} == {0.0, 1.0}
    assert all(1 <= one["completions/mean_length"] <= 6 for one in metrics(folder) if one["on_policy"])
    assert (folder / "teacher" / "answers.jsonl").is_file() is seq_kd
    whole = rewound(folder, 1)
    assert finetooth.resume(folder).steps == 6
    assert differences(left(whole), left(folder)) == []


def _louder(model: Path, folder: Path) -> Path:
    """A copy whose distributions are far from even and differ much, so that fp32 hides little of a divergence."""
    weights = load_file(model / "model.safetensors")
    shutil.copytree(model, folder)
    save_file(
        {n: t * 6 if t.dim() > 1 else t for n, t in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder


def test_sdft_learns_what_the_model_says_when_it_is_shown_an_answer(
    recipe: Callable[..., Any], losses: Callable[[Path], list[float]], tiny_model: Path, tmp_path: Path
) -> None:
    """The first loss by hand, in float64: of the answers that were kept, the reverse divergence from the base behind
    the prompt with the demonstration. A killed run goes on bit for bit."""
    method = {"name": "sdft", "num_generations": 2, "max_completion_length": 6, "teacher_top_k": 100_000,
              "demonstration": "completion"}  # fmt: skip
    loud = {"model": str(_louder(tiny_model, tmp_path / "loud"))}
    given = made(recipe, method, task=True, steps=2) | {"checkpoint": {"every": 1, "keep_last": 9}} | loud
    finetooth.run(given)
    folder = Path(given["output"])
    kept = dict(read_rollouts(folder))[1]
    plain = {**made(recipe, {"name": "sft"}, task=True), **loud, "output": given["output"] + "-plain"}
    context = finetooth.session(plain, data=False).job.context
    tasks = dict(context.examples("train").rows)
    engine, total, tokens = finetooth.engine(plain), 0.0, 0
    for one in kept:
        task = tasks[one.id]
        asked = SHOWN.format(prompt=messages_of(task)[-1].content, demonstration=task.columns["completion"])
        both = [[*prompt, *one.tokens] for prompt in (one.prompt, context.renderer.prompt((Message("user", asked),)))]
        said = engine.forward([Datum.from_tokens(of) for of in both], returns=("logits",), train=False).outputs
        z = [of["logits"][-len(one.tokens) :].astype(np.float64) for of in said]
        p, q = (of - np.log(np.exp(of).sum(-1, keepdims=True)) for of in z)
        total, tokens = total + float((np.exp(p) * (p - q)).sum()), tokens + len(one.tokens)
    assert losses(folder)[0] == pytest.approx(total / tokens, rel=1e-6)
    whole = rewound(folder, 1)
    assert finetooth.resume(folder).steps == 2
    assert differences(left(whole), left(folder)) == []


@pytest.mark.parametrize("align", ["text", pytest.param("length", marks=pytest.mark.slow)])
def test_a_teacher_with_another_tokenizer(
    recipe: Callable[..., Any], tmp_path: Path, metrics: Callable[[Path], list[dict[str, float]]], align: str
) -> None:
    """It cuts the same text into fewer tokens, so that only some places are compared. A killed run goes on bit for
    bit."""
    whole_words = recipe()["model"]
    finer = _respelled(Path(whole_words), tmp_path / "finer", merges=0.2)
    given = made(recipe, {"name": "uld", "teacher": whole_words, "align": align}, task=False, steps=3)
    given |= {"model": str(finer), "checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    found = metrics(folder)
    assert all(0 < one["aligned"] < 1 for one in found)
    assert found[-1]["loss/sorted_probabilities"] > 0
    whole = rewound(folder, 1)
    assert finetooth.resume(folder).steps == 3
    assert differences(left(whole), left(folder)) == []


def test_a_killed_run_goes_on_bit_for_bit(recipe: Callable[..., Any], teacher: Path) -> None:
    method = {"name": "opd", "teacher": str(teacher), "num_generations": 2, "max_completion_length": 6,
              "num_iterations": 2}  # fmt: skip
    given = made(recipe, method, task=True, steps=4) | {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    whole = rewound(folder, 1)
    assert finetooth.resume(folder).steps == 4
    assert differences(left(whole), left(folder)) == []


@pytest.mark.slow
def test_what_the_teacher_writes_is_learned(
    recipe: Callable[..., Any], teacher: Path, losses: Callable[[Path], list[float]]
) -> None:
    """Its answers are kept in the run folder, each as the teacher gives it by itself; the student learns them, and a
    run that goes on learns the same without asking anew."""
    method = {"name": "distill", "sequences": 2, "teacher": str(teacher), "max_completion_length": 16}
    given = made(recipe, method, task=True, steps=4) | {"checkpoint": {"every": 1, "keep_last": 9}}
    finetooth.run(given)
    folder = Path(given["output"])
    kept = [json.loads(line)["answer"] for line in (folder / "teacher" / "answers.jsonl").read_text().splitlines()]
    assert len(kept) == 16 and any(kept)
    found = losses(folder)
    assert found[-1] < found[0]
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    for one in (folder / "checkpoints").iterdir():
        if one.is_dir() and one.name.startswith("step-") and int(one.name.partition("-")[2]) > 2:
            shutil.rmtree(one)
    shutil.rmtree(folder / "artifact")
    (folder / "result.json").unlink()
    assert finetooth.resume(folder).steps == 4
    assert differences(left(whole), left(folder)) == []


def test_a_teacher_that_reads_other_tokens_is_refused(recipe: Callable[..., Any], tmp_path: Path) -> None:
    """One line: which setting, what differs, what to do."""
    other = _respelled(Path(recipe()["model"]), tmp_path / "other")
    given = made(recipe, {"name": "distill", "teacher": str(other)}, task=False)
    with pytest.raises(FinetoothError, match=r"method\.teacher\.policy: .* has another tokenizer .*choose a teacher"):
        finetooth.run(given)


def _respelled(model: Path, folder: Path, *, merges: float = 1.0) -> Path:
    """The same model, of whose tokenizer two ids have changed their places, or that joins less.

    Args:
        merges: share of them that it keeps.
    """
    shutil.copytree(model, folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    one, two = list(vocabulary)[40:42]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    content["model"]["merges"] = content["model"]["merges"][: round(merges * len(content["model"]["merges"]))]
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder
