"""The evaluator `lm_eval`: its numbers are those of lm-eval's own command on the same model, row by row."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import finetooth
import pytest
import yaml
from finetooth_hooks import DataError, UserError
from finetooth_probes import harness

ROWS = [
    ("What is the capital of France?", [" Paris", " Rome", " Bonn"], 0),
    ("What follows Tuesday?", [" Friday", " Wednesday", " Mai"], 1),
    ("2 + 2?", [" 5", " 3", " 4"], 2),
    ("Opposite of hot?", [" cold", " warm", " tepid"], 0),
]
METRICS = {"choice": ["acc", "acc_norm"], "say": ["exact_match"], "text": ["word_perplexity", "byte_perplexity"]}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice", "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}", "num_fewshot": 1, "fewshot_split": "test",
    },
    "say": {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["a", "\n"], "max_gen_toks": 12, "do_sample": False},
    },
    "text": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{question}}"},
}  # fmt: skip


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What the renderer chatml writes, as lm-eval's model reads it from the model's folder."""


def write(folder: Path, name: str, content: Sequence[tuple[str, list[str], int]] = ROWS, **more: Any) -> None:
    """A task of lm-eval, with its rows next to it."""
    folder.mkdir(exist_ok=True)
    rows = folder / "rows.jsonl"
    lines = [{"question": question, "choices": choices, "answer": answer} for question, choices, answer in content]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = [{"metric": metric} for metric in METRICS[name]]
    task = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(rows)}},
            "test_split": "test", "metric_list": metrics, **TASKS[name], **more}  # fmt: skip
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def run(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("chat", [False, True], ids=["bare", "chat"])
def test_scores_are_those_of_lm_evals_own_command(chat: bool, tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    for name in TASKS:
        write(tmp_path / "tasks", name)
    tiny_model = shutil.copytree(tiny_model, tmp_path / "model")
    (tiny_model / "chat_template.jinja").write_text(TEMPLATE)
    suite = json.dumps({"name": "lm_eval", "folder": str(tmp_path / "tasks"), "chat": chat})
    settings = ("--set", "data.renderer=chatml", "--set", "train.precision=fp32", "--json")
    kept = tmp_path / "answers.jsonl"
    said = run(
        "finetooth", "--trust-code", "eval", str(tiny_model), "--suite", suite, *settings, "--answers", str(kept)
    )
    ((ours,),) = json.loads(said).values()
    run("lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={tiny_model},dtype=float32", "--device", "cpu",
        "--tasks", ",".join(TASKS), "--include_path", str(tmp_path / "tasks"), "--output_path", str(tmp_path / "out"),
        "--log_samples", "--batch_size", "3", *(["--apply_chat_template"] if chat else []))  # fmt: skip
    theirs = json.loads(next((tmp_path / "out").glob("*/results*.json")).read_text())["results"]
    assert ours["metrics"].keys() == {f"{task}/{metric}" for task in TASKS for metric in METRICS[task]}
    for name, value in ours["metrics"].items():
        task, metric = name.split("/")
        assert value == pytest.approx(theirs[task][f"{metric},none"], rel=1e-5), name
    answers = {row["id"]: row["answer"] for row in map(json.loads, kept.read_text().splitlines())}
    assert len(answers) == ours["rows"] == 3 * len(ROWS) and ours["settings"]["num_fewshot"]["choice"] == 1
    say = TASKS["say"]
    assert ours["settings"]["stop"] == {"say": say["generation_kwargs"]["until"]}
    assert ours["settings"]["max_tokens"] == {"say": 12}
    assert ours["settings"]["template"] == {name: task["doc_to_text"] for name, task in TASKS.items()}
    end = "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert ours["settings"]["chat_template"] == (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n{end}" if chat else "")
    for file in (tmp_path / "out").glob("*/samples_*.jsonl"):
        for row in map(json.loads, file.read_text().splitlines()):
            task = file.name.split("_")[1]
            mine, (response,) = answers[f"{task}:{row['doc_id']}"], row["filtered_resps"][:1]
            if task == "say":
                assert mine == response
            elif task == "text":
                assert float(mine) == pytest.approx(float(response), rel=1e-5)
            else:
                for (score, greedy), (expected, best) in zip(literal_eval(mine), row["filtered_resps"], strict=True):
                    assert score == pytest.approx(float(expected), rel=1e-5) and str(greedy) == best


@pytest.mark.slow
def test_scores_do_not_change_with_batch_size_and_order(
    ft: Callable[..., tuple[int, str, str]], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.setenv("FT_TRUST_CODE", "1")
    rows = [(f"{question} {'really ' * n}", choices, answer) for n, (question, choices, answer) in enumerate(ROWS * 2)]
    seen = []
    for name, content, tokens in (("whole", rows, 4096), ("one", rows, 64), ("mixed", rows[::-1], 150)):
        for task in TASKS:
            write(tmp_path / name, task, content, **({"num_fewshot": 0} if task == "choice" else {}))
        suite = json.dumps({"name": "lm_eval", "folder": str(tmp_path / name)})
        settings = (f"train.micro_batch_tokens={tokens}", "train.precision=fp32", "data.renderer=chatml")
        kept = tmp_path / f"{name}.jsonl"
        wanted = [word for setting in settings for word in ("--set", setting)]
        code, out, error = ft("eval", tiny_model, "--suite", suite, *wanted, "--answers", kept, "--json")
        assert code == 0, error
        ((made,),) = json.loads(out).values()
        answers = [json.loads(line) for line in kept.read_text().splitlines()]
        seen.append((made["metrics"], {(row["id"].split(":")[0], row["prompt"]): row["score"] for row in answers}))
    first, *others = seen
    assert len(first[1]) == 3 * len(rows)
    for metrics, scores in others:
        assert metrics == pytest.approx(first[0], rel=1e-6) and scores == pytest.approx(first[1], rel=1e-6)


@pytest.mark.slow
def test_scores_during_training_are_those_of_the_model_at_that_step(
    ft: Callable[..., tuple[int, str, str]], recipe: Callable[..., dict[str, Any]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Before the first step those of the base, after the last one those of the finished run, by `ft eval`."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.setenv("FT_TRUST_CODE", "1")
    for name in TASKS:
        write(tmp_path / "tasks", name)
    suite = {"name": "lm_eval", "folder": str(tmp_path / "tasks")}
    given = recipe(evaluate={"evaluators": [suite], "every": 2})
    finetooth.run(given)
    lines = map(json.loads, (Path(given["output"]) / "metrics.jsonl").read_text().splitlines())
    found = {line["step"]: line["metrics"] for line in lines if line["event"] == "evaluation"}
    settings = ("--set", "train.precision=fp32", "--set", "data.renderer=chatml", "--json")
    for model, step in ((given["model"], 0), (given["output"], max(found))):
        code, out, error = ft("eval", model, "--suite", json.dumps(suite), *settings)
        assert code == 0, error
        ((made,),) = json.loads(out).values()
        assert made["metrics"] == pytest.approx(found[step], rel=1e-5)
    assert found[0] != found[max(found)] and len(found) > 2


def prepare(folder: Path, **options: Any) -> Any:
    context: Any = SimpleNamespace()
    return harness.build(harness.LmEvalOptions(folder=str(folder), **options), context).prepare()


def test_what_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    monkeypatch.setenv("FT_TRUST_CODE", "1")
    with pytest.raises(DataError, match="none is not a folder"):
        prepare(tmp_path / "none")
    with pytest.raises(DataError, match="has no task 'none'"):
        prepare(tmp_path)
    write(tmp_path, "say")
    with pytest.raises(DataError, match=r"no task 'arc_easy' \(tasks: say\)"):
        prepare(tmp_path, tasks=("arc_easy",))
    assert prepare(tmp_path).rows == len(ROWS)
    write(tmp_path, "choice", dataset_path="nobody/rows-of-nobody", dataset_kwargs={})
    with pytest.raises(DataError, match=r"rows of a task must be local files") as told:
        prepare(tmp_path, tasks=("choice",))
    assert "\n" not in str(told.value)


def test_without_lm_eval_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package lm-eval \(.*install.* lm-eval\)"):
        prepare(Path())


def test_tasks_are_programs_and_take_consent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("FT_TRUST_CODE", raising=False)
    with pytest.raises(UserError, match=r"tasks in .* would run \(read it, then give consent with --trust-code\)"):
        prepare(tmp_path)
