"""Whole runs of tiny models: what must not change the result, and what must be the same twice."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
import yaml

Make = Callable[..., dict[str, Any]]
Losses = Callable[[Path], list[float]]


def ft(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ft` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "finetooth", *arguments],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def write(folder: Path, recipe: dict[str, Any]) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return "recipe.yaml"


def digests(artifact: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in artifact.glob("*.safetensors")}


@pytest.mark.slow
def test_the_token_budget_never_changes_the_trajectory(recipe: Make, losses: Losses, tmp_path: Path) -> None:
    curves = {}
    for budget in (128, 256, 1024, 8192):
        sections = recipe(output=str(tmp_path / str(budget)))
        sections["train"] |= {"micro_batch_tokens": budget, "max_steps": 12}
        assert finetooth.run(sections).status == "done"
        curves[budget] = losses(tmp_path / str(budget))
    assert len(curves[128]) == 12
    for budget in (256, 1024, 8192):
        assert curves[budget] == pytest.approx(curves[128], rel=1e-3)
    assert curves[128][-1] < curves[128][0] - 0.3


@pytest.mark.slow
def test_one_seed_gives_bit_identical_adapters_in_two_processes(recipe: Make, tmp_path: Path) -> None:
    name = write(tmp_path, recipe())
    for run in ("a", "b"):
        done = ft("run", name, f"output={run}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    first = digests(tmp_path / "a" / "artifact")
    assert first and first == digests(tmp_path / "b" / "artifact")
    other = ft("run", name, "output=c", "train.seed=1", cwd=tmp_path)
    assert other.returncode == 0
    assert first != digests(tmp_path / "c" / "artifact")


@pytest.mark.parametrize("adapter", ["full", {"name": "freeze", "layers": 1}])
@pytest.mark.parametrize("optimizer", ["sgd", "adafactor", "lion"])
def test_every_adapter_trains_with_every_optimizer(
    recipe: Make, losses: Losses, tmp_path: Path, adapter: Any, optimizer: str
) -> None:
    rate = {"sgd": 0.5, "adafactor": 3e-2, "lion": 3e-3}[optimizer]
    outcome = finetooth.run(recipe(adapter=adapter, optimizer={"name": optimizer, "learning_rate": rate}))
    assert outcome.status == "done" and outcome.artifact is not None
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_follows_the_fp32_trajectory(
    recipe: Make, losses: Losses, tmp_path: Path, precision: str
) -> None:
    curves = []
    for name in ("fp32", precision):
        sections = recipe(output=str(tmp_path / name))
        sections["train"] |= {"precision": name}
        finetooth.run(sections)
        curves.append(losses(tmp_path / name))
    assert curves[1] == pytest.approx(curves[0], rel=3e-2)


def test_a_run_reports_and_keeps_what_others_load(
    recipe: Make, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    data = recipe()["data"] | {"eval": {"name": "tasks", "task": "family", "split": "eval", "count": 6, "seed": 5}}
    monkeypatch.chdir(tiny_model.parent)
    evaluators = ["loss", {"name": "exact_match", "max_tokens": 4}]
    outcome = finetooth.run(recipe(model=tiny_model.name, data=data, evaluate={"evaluators": evaluators}))
    artifact = tmp_path / "run" / "artifact"
    assert outcome.artifact == artifact
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "done" and result["exit_code"] == 0 and result["plan_sha256"] == result["plan_hash"]
    assert {"loss", "eval/loss", "eval/exact_match"} <= set(result["metrics"]) and "eval/loss" in result["best"]
    monkeypatch.chdir(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    adapted = PeftModel.from_pretrained(base, artifact)
    found = AutoPeftModelForCausalLM.from_pretrained(artifact)  # which looks for the base where the artifact says
    tokens = torch.tensor([[5, 9, 200, 31]])
    assert torch.equal(found(tokens).logits, adapted(tokens).logits)
    assert json.loads((artifact / "manifest.json").read_text())["model"] == tiny_model.name
    tokenizer = AutoTokenizer.from_pretrained(artifact)
    assert tokenizer.decode(tokenizer("Hello there,\nyou two.")["input_ids"]) == "Hello there,\nyou two."


@pytest.mark.slow
def test_ctrl_c_ends_cleanly_and_says_what_is_kept(recipe: Make, tmp_path: Path) -> None:
    sections = recipe(plugins=["./stop.py"])
    sections["train"] |= {"max_steps": 500}
    stop = "import os, signal\nfrom finetooth_hooks import hookimpl\n\n@hookimpl\ndef ft_step(run, report):\n"
    (tmp_path / "stop.py").write_text(stop + "    if report.step == 3:\n        os.kill(os.getpid(), signal.SIGINT)\n")
    done = ft("run", write(tmp_path, sections), "--output", "out", cwd=tmp_path)
    assert done.returncode == 128 + signal.SIGINT
    assert "SIGINT after step 3: the trained weights are in" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "interrupted"
    assert digests(tmp_path / "out" / "artifact")


BAD = [
    ("train.max_lenght=64", "did you mean"),
    ("train.batch_size=0", "train.batch_size"),
    ("train.batch_size=three", "train.batch_size"),
    ("optimizer.learning_rate=.nan", "learning_rate"),
    ("optimizer.learning_rat=1", "learning_rate"),
    ("adapter.targets=[nothing_like_it]", "targets"),
    ("method=sfd", "sft"),
    ("schedule=cosin", "cosine"),
    ("rank=8", "did you mean adapter.rank?"),
    ("model=no-such-model", "model"),
    ("model=smollm2-135", "did you mean smollm2-135m?"),
    ("data.train=missing.jsonl", "missing.jsonl"),
    ("data.train=empty.jsonl", "empty"),
    ("data.train=broken.jsonl", "broken.jsonl: 1 broken line, 1 good: line 2"),
    ("data.train=untrained.jsonl", "untrained.jsonl:1"),
    ("output=/proc/finetooth", "/proc"),
    ("output=used", "already holds a run"),
    ("train.max_length=100000", "train.max_length"),
    ("hardware=cuda", "cuda"),
    ("adapter.rank=1000", "rank"),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.jsonl").write_text("")
    (folder / "broken.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", "compl\n')
    (folder / "untrained.jsonl").write_text('{"messages": [{"role": "user", "content": "hello"}]}\n')
    (folder / "used").mkdir()
    for written in ("recipe.yaml", "plan.json"):
        (folder / "used" / written).write_text("{}")
    return folder


@pytest.mark.parametrize(("override", "says"), BAD, ids=[override for override, _ in BAD])
def test_bad_input_is_one_clear_line_and_exit_code_2(
    recipe: Make, workplace: Path, override: str, says: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from finetooth_core.cli import main

    monkeypatch.chdir(workplace)
    name = write(workplace, recipe(output="out"))
    before = sorted(workplace.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        sys.exit(main(["run", name, override]))
    said = capsys.readouterr().err
    assert stopped.value.code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and says in lines[0], said
    assert "Traceback" not in said
    assert sorted(workplace.rglob("*")) == before, "nothing may be left behind"


@pytest.mark.slow
def test_a_file_size_limit_stands_for_a_full_disk(recipe: Make, tmp_path: Path) -> None:
    name = write(tmp_path, recipe())
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000));"
        "from finetooth_core.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "run", name, "--output", "out"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "artifact").exists()


@pytest.mark.slow
def test_a_run_records_the_steps_it_is_told_to(recipe: Make, tmp_path: Path) -> None:
    name = write(tmp_path, recipe(profile={"start": 2, "steps": 5}))
    done = ft("run", name, "output=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "note: profile: steps 2 to 3 will be recorded, not 2 to 6: the run ends after 3 steps" in done.stdout
    assert "profile: steps 2 to 3 recorded, not 2 to 6: the run ended; see run/profile/table.md" in done.stderr
    assert json.loads((tmp_path / "run/profile/trace.json").read_text())["traceEvents"]
    shown = ft("profile", "run", cwd=tmp_path)
    assert shown.returncode == 0 and shown.stdout == (tmp_path / "run/profile/table.md").read_text()
    assert "Recorded: 2 steps" in shown.stdout
    (tmp_path / "runs").mkdir()
    (tmp_path / "run").rename(tmp_path / "runs" / "recorded")
    assert ft("profile", "recorded", cwd=tmp_path).stdout == shown.stdout
    refused = ft("run", name, "output=other", "profile.start=9", cwd=tmp_path)
    assert refused.returncode == 2 and "profile.start: it is 9, and the run ends after 3 steps" in refused.stderr
    assert not (tmp_path / "other").exists()
