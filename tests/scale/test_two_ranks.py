"""Two processes over gloo take the steps of one: the same recipe, started by `ft run`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "bits"))
from strategy_table import COLUMNS
from tiny import write_model, write_rows

RECIPE: dict[str, Any] = {
    "model": "model",
    "data": {"train": "chats.jsonl[:9]", "eval": "chats.jsonl[20:]", "renderer": "chatml"},
    "adapter": {"name": "lora", "rank": 4, "dropout": 0.1},
    "optimizer": {"name": "adamw", "learning_rate": 5e-3, "eps": 1e-5},
    "train": {
        "batch_size": 4,
        "max_length": 128,
        "precision": "fp32",
        "micro_batch_tokens": 256,
        "epochs": 1,
        "seed": 7,
    },
    "trackers": ["jsonl"],
}
"""Nine rows in batches of four: the last batch is smaller than the world, so that a rank has no row."""
PAIRS = {"train": "pairs.jsonl[:9]", "eval": "pairs.jsonl[20:]", "renderer": "chatml"}
ANSWERS = {"train": "answers.jsonl[:9]", "renderer": "chatml"}
TASKS = {**ANSWERS, "format": "task"}
CASES: dict[str, dict[str, Any]] = {
    "sft": {},
    "aot": {"data": PAIRS, "method": {"name": "dpo", "losses": ["aot"]}},
    "dpo": {"data": PAIRS, "method": "dpo"},
    "full": {
        "data": {**RECIPE["data"], "train": "uneven.jsonl[:9]"}, "adapter": "full",
        "optimizer": {"name": "adamw", "learning_rate": 1e-3},
    },
    "spin": {"data": ANSWERS, "method": {"name": "spin", "max_completion_length": 8}},
    "iterative_dpo": {"data": TASKS, "plugins": ["./judge.py"], "method": {
        "name": "self_rewarding", "rewards": ["other_at_ranks"], "num_generations": 2, "max_completion_length": 8,
    }},
    "self_rewarding": {"data": TASKS, "method": {
        "name": "self_rewarding", "rubric": "{prompt} {answer}?", "num_generations": 2, "max_completion_length": 8,
    }},
    "gkd": {"data": ANSWERS, "method": {"name": "gkd", "teacher": "teacher", "lmbda": 0.5, "max_completion_length": 8}},
    "gkd_seq_kd": {"data": TASKS, "method": {
        "name": "gkd", "teacher": "teacher", "seq_kd": True, "lmbda": 0.5, "max_completion_length": 8,
    }},
    "uld": {"data": ANSWERS, "method": {"name": "uld", "teacher": "teacher"}},
    "uld_length": {"data": ANSWERS, "method": {"name": "uld", "teacher": "teacher", "align": "length"}},
    "sdft": {"data": TASKS, "method": {
        "name": "sdft", "demonstration": "completion", "num_generations": 2, "max_completion_length": 8,
    }},
    "ebft": {"data": TASKS, "method": {
        "name": "ebft", "reference_column": "completion", "num_generations": 3, "max_completion_length": 8,
        "ce_coef": 0.1,
    }},
    "ebft_strided": {"data": ANSWERS, "method": {
        "name": "ebft_strided", "stride": 4, "context_length": 4, "generate_max_len": 3, "n_samples_per_prompt": 2,
        "ce_coef": 0.1,
    }},
}  # fmt: skip
DRAWN: dict[str, Any] = {"max_completion_length": 8, "num_generations": 2}
SCORED_AT_FIRST: dict[str, Any] = {**DRAWN, "rewards": [{"name": "other_at_ranks", "weight": 0.001}]}
MORE: dict[str, dict[str, Any]] = {
    "pretrain": {
        "data": {"train": "texts.jsonl", "renderer": "chatml"},
        "method": "pretrain",
        "train": {**RECIPE["train"], "max_length": 48},
    },
    **{name: {"data": PAIRS, "method": name} for name in ("orpo", "simpo", "cpo", "rm")},
    "prm": {"data": {**PAIRS, "train": "steps.jsonl[:9]", "eval": "steps.jsonl[20:]"}, "method": "prm"},
    "distill": {"data": ANSWERS, "method": {"name": "distill", "teacher": "teacher"}},
    "opd": {"data": TASKS, "method": {"name": "opd", "teacher": "teacher", **DRAWN}},
    **{
        name: {"data": TASKS, "plugins": ["./judge.py"], "method": {"name": name, **SCORED_AT_FIRST}}
        for name in ("ppo", "best_of_n", "rloo", "reinforce_plus_plus")
    },
}
"""Methods that one strategy is enough for: the others share their code with those above."""
JUDGE = """
import os
from finetooth_hooks import NoOptions, Reward, hookimpl

@hookimpl
def ft_rewards():
    yield Reward(name="other_at_ranks", build=f"{__name__}:build")

def build(options: NoOptions, context):
    sign = -1 if os.environ.get("RANK", "0") != "0" else 1
    return lambda prompts, completions, columns: [float(sign * sum(map(ord, text))) for text in completions]
"""
"""A judge whose other ranks say the opposite of the first."""
QUICK = ("sft",)
IN_TABLE = ("full", "dpo")
"""test_strategy_table.py tries these."""
GROUPED: dict[str, dict[str, Any]] = {
    "tensor": {"name": "fsdp", "tensor": 2},
    "context of fsdp": {"name": "fsdp", "context": 2},
    "replicas of tensor": {"name": "fsdp", "replicas": 2, "tensor": 2},
    "stages of tensor": {"name": "pipeline", "tensor": 2},
    "stages of context": {"name": "pipeline", "context": 2},
}
"""Ways to group ranks, by name."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("scale")
    write_model(made / "model")
    write_model(made / "teacher")
    of_teacher = made / "teacher/model.safetensors"
    flipped = {name: -value for name, value in load_file(of_teacher).items()}
    save_file(flipped, of_teacher, metadata={"format": "pt"})
    write_rows(made)
    pairs = map(json.loads, (made / "pairs.jsonl").read_text(encoding="utf-8").splitlines())
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    (made / "judge.py").write_text(JUDGE, encoding="utf-8")
    (made / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return made


def ft(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    given = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FT_CACHE": str(folder / "cache"), **environment}
    return subprocess.run(
        [sys.executable, "-m", "finetooth", *arguments], cwd=folder, env=given, text=True, capture_output=True,
        timeout=600, check=False,
    )  # fmt: skip


def trained(folder: Path, name: str, devices: int, strategy: str = "ddp", **changes: Any) -> Path:
    scale = {"devices": devices} if devices == 1 else {"devices": devices, "strategy": GROUPED.get(strategy, strategy)}
    recipe = {**RECIPE, **changes, "output": name, "scale": scale}
    if (folder / name / "artifact").exists():
        return folder / name
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / name


def steps(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "grad_norm" in line]


def check_alike(one: Path, two: Path, *, weights_to: float = 2e-5, cancelled_to: float = 1e-7) -> None:
    """The first gradient to 1e-6, every loss to 1e-5, and the weights. A loss of grpo or rloo is a sum of parts that
    cancel, so it is held to a bound of its own."""
    of_one, of_two = steps(one), steps(two)
    assert len(of_one) == len(of_two) > 1
    assert of_two[0]["grad_norm"] == pytest.approx(of_one[0]["grad_norm"], rel=1e-6)
    for a, b in zip(of_one, of_two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5, abs=cancelled_to)
        assert (a["tokens"], a["targets"]) == (b["tokens"], b["targets"])
    check_weights(one, two, weights_to)


def check_weights(one: Path, two: Path, within: float) -> None:
    for file in sorted((one / "artifact").glob("*.safetensors")):
        weights, others = load_tensors(file), load_tensors(two / "artifact" / file.name)
        assert weights.keys() == others.keys()
        for key, value in weights.items():
            assert (others[key].double() - value.double()).norm() <= within * value.double().norm(), key


@pytest.mark.parametrize("strategy", ["context", "ddp", "fsdp"])
@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES if name not in IN_TABLE],
)
def test_two_ranks_take_the_steps_of_one(folder: Path, case: str, strategy: str) -> None:
    if (case, strategy) == ("ebft_strided", "context"):
        recipe = {**RECIPE, **CASES[case], "output": "tree", "scale": {"devices": 2, "strategy": strategy}}
        (folder / "tree.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        done = ft(folder, "run", "tree.yaml")
        assert done.returncode == 2 and "segments of the method's data continue one another" in done.stderr, done.stderr
        return
    one = trained(folder, f"{case}-1", 1, **CASES[case])
    two = trained(folder, f"{case}-{strategy}", 2, strategy, **CASES[case])
    check_alike(one, two)
    decided = json.loads((two / "plan.json").read_text(encoding="utf-8"))["decisions"]
    assert any(f"over 2 ranks by finetooth-{strategy}:{strategy}" in one["reason"] for one in decided)


ROUNDED = {"simpo": {"weights_to": 5e-5}, "rloo": {"cancelled_to": 1e-6}}
"""Bounds of methods that rounding takes further apart: behind AdamW, and where parts of a loss cancel."""


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_other_methods_take_the_steps_of_one(folder: Path, case: str) -> None:
    one, two = trained(folder, f"{case}-1", 1, **MORE[case]), trained(folder, f"{case}-fsdp", 2, "fsdp", **MORE[case])
    check_alike(one, two, **ROUNDED.get(case, {}))


def test_every_method_has_a_case() -> None:
    from finetooth_core.plugins import manager

    methods = {one.entry.name for one in manager.start().catalog.all("method")}
    picks = [
        changes.get("method", "sft") for changes in (*CASES.values(), *MORE.values(), *dict(COLUMNS.values()).values())
    ]
    assert methods - {pick if isinstance(pick, str) else pick["name"] for pick in picks} == {"trl"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "strategy", "ranks"),
    [
        ("full", "tensor", 4),  # two that divide the rest, with two that compute together
        ("spin", "tensor", 2),
        ("sft", "replicas of tensor", 4),
        ("aot", "pipeline", 2),
    ],
)
def test_ranks_in_groups_take_the_steps_of_one(folder: Path, case: str, strategy: str, ranks: int) -> None:
    """Without dropout, which tensor parallelism refuses for weights that are divided by their inputs."""
    changes = {"adapter": {"name": "lora", "rank": 4}, **CASES[case]}
    one = trained(folder, f"{case}-alone", 1, **changes)
    check_alike(one, trained(folder, f"{case}-{strategy.replace(' ', '-')}-{ranks}", ranks, strategy, **changes))


TEN_STEPS: dict[str, Any] = {"train": {**RECIPE["train"], "epochs": 6, "max_steps": 10, "micro_batch_tokens": 128}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "strategy", "ranks", "changes"),
    [
        ("sft", "pipeline", 2, {"gradient_checkpointing": True}),
        ("sft", "stages of context", 4, {"gradient_checkpointing": True}),
        ("full", "context of fsdp", 4, {}),
        ("dpo", "context of fsdp", 2, {"gradient_checkpointing": True}),
    ],
    ids=lambda value: str(len(value)) if isinstance(value, dict) else str(value).replace(" ", "-"),
)
def test_ranks_take_ten_steps_of_one(
    folder: Path, case: str, strategy: str, ranks: int, changes: dict[str, Any]
) -> None:
    """Each rank has some of the layers, or positions and a part of every weight; with dropout, and embeddings that are
    the head's weights too."""
    recipe = {**CASES[case], **TEN_STEPS}
    one = trained(folder, f"ten-{case}-1", 1, **recipe)
    recipe["train"] = {**recipe["train"], **changes}
    name = f"ten-{case}-{strategy.replace(' ', '-')}-{len(changes)}"
    two = trained(folder, name, ranks, strategy, **recipe)
    assert len(steps(two)) == TEN_STEPS["train"]["max_steps"]
    check_alike(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": PAIRS, "method": {"name": "dpo", "reference": "teacher"}},
            "the method needs another model as reference, whose layers are not divided",
        ),
        ({"scale": {"devices": 3, "strategy": "pipeline"}}, "2 layers are fewer than 3 ranks"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused_by_the_plan(folder: Path, changes: dict[str, Any], message: str) -> None:
    recipe = {**RECIPE, "scale": {"devices": 2, "strategy": "pipeline"}, "output": "refused-pipeline", **changes}
    (folder / "refused-pipeline.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "refused-pipeline.yaml")
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr


@pytest.mark.slow
def test_parts_of_a_state_in_files_are_saved_whole(folder: Path) -> None:
    """The optimizer's state of each rank in its files; one process continues with all of it."""
    long: dict[str, Any] = {
        "train": {**RECIPE["train"], "max_steps": 4, "epochs": 2}, "schedule": "constant",
        "optimizer": {**RECIPE["optimizer"], "offload": "disk"},
    }  # fmt: skip
    short = {**long, "train": {**long["train"], "max_steps": 2}, "checkpoint": {"every": 1}}
    run = trained(folder, "state-in-files", 2, "fsdp", **short)
    done = ft(folder, "resume", str(run), "train.max_steps=4", "scale.devices=1")
    assert done.returncode == 0, done.stdout + done.stderr
    check_alike(trained(folder, "whole", 1, **{**long, "optimizer": RECIPE["optimizer"]}), run)


def counted_of_the_guide() -> str:
    """The plugin that docs/guides/plugins-by-kind.md shows."""
    page = (Path(__file__).parents[2] / "docs" / "guides" / "plugins-by-kind.md").read_text(encoding="utf-8")
    return page.split("<!-- file: counted.py -->\n```python\n")[1].split("\n```")[0] + "\n"


@pytest.mark.slow
def test_the_strategy_of_the_guide_counts_what_ddp_sends(folder: Path) -> None:
    """Three steps of a LoRA: gradients as large as the artifact in fp32, and for each tensor who has one."""
    (folder / "counted.py").write_text(counted_of_the_guide(), encoding="utf-8")
    recipe = {**RECIPE, "output": "counted", "plugins": ["./counted.py"]}
    (folder / "counted.yaml").write_text(
        json.dumps({**recipe, "scale": {"devices": 2, "strategy": "counted"}}), encoding="utf-8"
    )
    done = ft(folder, "run", "counted.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (folder / "counted" / "artifact").glob("*.safetensors")
    numbers = sum(value.size + 1 for value in load_file(file).values())
    assert f"summed over 2 ranks: {3 * 4 * numbers:,} bytes a rank" in done.stdout


@pytest.mark.slow
def test_ranks_with_other_rows_are_refused_by_name(folder: Path) -> None:
    """Started as torchrun starts them; one of them with another seed."""
    import socket

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = str(listening.getsockname()[1])
    file = folder / "unlike.yaml"
    file.write_text(json.dumps({**RECIPE, "output": "unlike"}), encoding="utf-8")
    place = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    given = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FT_CACHE": str(folder / "cache"), **place}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "finetooth", "run", str(file), f"train.seed={rank}"], cwd=folder,
            env={**given, "RANK": str(rank)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    said = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], said
    assert "the recipe of rank 1 differs from that of rank 0" in said[0]


def test_one_process_is_told_that_it_is_alone(folder: Path) -> None:
    import finetooth
    from finetooth_hooks import PlanError

    recipe = {**RECIPE, "model": str(folder / "model"), "scale": {"devices": 2}, "output": str(folder / "alone")}
    recipe["data"] = {**RECIPE["data"], "train": str(folder / "chats.jsonl"), "eval": str(folder / "chats.jsonl[:2]")}
    with pytest.raises(PlanError, match="scale asks for 2 ranks, and this process is one"):
        finetooth.run(recipe)


def torchrun(folder: Path, world: int, *arguments: str, program: str = "") -> subprocess.CompletedProcess[str]:
    """`ft`, or a program, as torch's own launcher starts it, in as many processes as `world`."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    launch += [program] if program else ["-m", "finetooth"]
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    given = {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "FT_CACHE": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, *launch, *arguments], cwd=folder, env=given, text=True, capture_output=True, timeout=600,
        check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("way", ["command", "program"])
def test_ranks_of_torchrun_take_the_steps_of_those_of_scale(folder: Path, way: str) -> None:
    """The same arithmetic in the same order: equal bits, and one run. `program` calls `finetooth.run`."""
    ours = trained(folder, f"by-scale-{way}", 2)
    recipe = {**RECIPE, "output": f"by-torchrun-{way}"}
    (folder / "by-torchrun.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    (folder / "own.py").write_text("import finetooth\nprint(finetooth.run('by-torchrun.yaml').status)\n")
    done = torchrun(folder, 2, program="own.py") if way == "program" else torchrun(folder, 2, "run", "by-torchrun.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("done") == 2 or way == "command"
    theirs = folder / f"by-torchrun-{way}"
    assert [line["loss"] for line in steps(theirs)] == [line["loss"] for line in steps(ours)]
    for file in sorted((ours / "artifact").glob("*.safetensors")):
        weights, others = load_file(file), load_file(theirs / "artifact" / file.name)
        assert all(np.array_equal(others[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("environment", "devices", "message"),
    [
        ({"RANK": "0"}, 2, "scale.launcher: RANK is set and WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        ({"WORLD_SIZE": "2"}, 1, "scale.launcher: WORLD_SIZE is set and RANK, MASTER_ADDR, MASTER_PORT not"),
        ({"RANK": "0", "WORLD_SIZE": "3"}, 2, "scale asks for 2 ranks, and 3 were started"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, 1, "scale asks for 1 ranks, and 4 were started"),
    ],
)
def test_a_place_that_contradicts_the_recipe_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], devices: int, message: str
) -> None:
    from click.testing import CliRunner
    from finetooth_core.cli.run import command
    from finetooth_core.cli.start_options import StartOptions
    from finetooth_core.cli.state import State
    from finetooth_hooks import PlanError

    if len(environment) > 1:
        environment = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    (folder / "refused.yaml").write_text(
        json.dumps({**RECIPE, "output": "refused", "scale": {"devices": devices}}), encoding="utf-8"
    )
    with pytest.raises(PlanError, match=message):
        CliRunner().invoke(command, ["refused.yaml"], obj=State(StartOptions()), catch_exceptions=False)
    assert not (folder / "refused").exists()


ASKED = """
import os, random
from finetooth_hooks import (
    Answer, Environment, EnvironmentBase, EpisodeBase, FinetoothError, Message, NoOptions, Observation, hookimpl,
)


def told(call):
    open(os.environ["TOLD"], "a").write(f"{call} {os.getpid()}\\n")
    return random.SystemRandom().random()


def score(completion_ids, **columns):
    return [told("score") for _ in completion_ids]


def answered(prompt_ids, generate):
    try:
        generate([[66] * 100_000])
    except FinetoothError:
        told("refused")
    first = generate(prompt_ids, max_tokens=2)
    added = [[66 + int(8 * told("sample"))] for _ in prompt_ids]
    further = generate([p + f + a for p, f, a in zip(prompt_ids, first["completion_ids"], added)], max_tokens=2)
    return {
        "completion_ids": [f + a + e for f, a, e in zip(first["completion_ids"], added, further["completion_ids"])],
        "logprobs": [f + [0.0] + e for f, e in zip(first["logprobs"], further["logprobs"])],
        "env_mask": [[1] * len(f) + [0] + [1] * len(e) for f, e in zip(first["logprobs"], further["logprobs"])],
    }


@hookimpl
def ft_environments():
    yield Environment(name="moody", build=f"{__name__}:build", summary="says something else at each rank")


def build(options: NoOptions, context):
    return Moody()


class Moody(EnvironmentBase):
    def episode(self, task, seed):
        told("episode")
        return Mood(task)


class Mood(EpisodeBase):
    def __init__(self, task):
        self.task, self.turns = task, 0

    def begin(self):
        return Observation((Message("user", f"{told('begin')}"),))

    def answer(self, turn):
        self.turns += 1
        again = Observation((Message("user", f"{told('answer')}"),)) if self.turns < 2 else None
        return Answer(again, told("answer"))

    def close(self):
        told("close")
"""
SCORED = {"rewards": [{"name": "python_function", "file": "asked.py", "function": "score"}]}
ONE_RANK: dict[str, tuple[dict[str, Any], set[str]]] = {
    "reward": (SCORED, {"score"}),
    "environment": ({"environment": "moody"}, {"episode", "begin", "answer", "close"}),
    "sampler": (
        {**SCORED, "sampler": {"name": "python_function", "file": "asked.py", "function": "answered"}},
        {"score", "sample", "refused"},
    ),
}


@pytest.mark.parametrize("strategy", ["ddp", {"name": "context", "size": 2}])
@pytest.mark.parametrize("who", ONE_RANK)
def test_of_several_ranks_one_asks(folder: Path, who: str, strategy: Any) -> None:
    """A judge, an environment and a user's sampler may answer differently each time, and are paid for."""
    (folder / "asked.py").write_text(ASKED, encoding="utf-8")
    given, calls = ONE_RANK[who]
    method = {"name": "grpo", "num_generations": 2, "max_completion_length": 6, **given}
    data = {"train": "answers.jsonl[:4]", "renderer": "chatml", "format": "task"}
    many = {**RECIPE, "data": data, "method": method, "scale": {"devices": 2, "strategy": strategy}}
    many |= {"train": {**RECIPE["train"], "max_steps": 2, "batch_size": 2}, "plugins": ["asked.py"]}
    (folder / "asked.yaml").write_text(json.dumps({**many, "output": "asked"}), encoding="utf-8")
    told = folder / "told.txt"
    told.unlink(missing_ok=True)
    shutil.rmtree(folder / "asked", ignore_errors=True)
    done = ft(folder, "run", "asked.yaml", TOLD=str(told))
    assert done.returncode == 0, done.stdout + done.stderr
    said = {tuple(line.split()) for line in told.read_text().splitlines()}  # rewards have a process of their own
    assert len(steps(folder / "asked")) == 2
    assert sorted(call for call, _ in said) == sorted(calls), said
