"""What one rank decides between two steps holds for all: a gate's verdict, a signal, a clock."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import CASES, RECIPE, check_alike, folder, ft, trained  # noqa: F401 - folder is a fixture

pytestmark = pytest.mark.slow
LONG: dict[str, Any] = {
    **CASES["full"], "train": {**RECIPE["train"], "epochs": 4, "max_steps": 4}, "schedule": "constant",
}  # fmt: skip
GATE = """
import os
from finetooth_hooks import Gate, NoOptions, hookimpl


class Odd:
    def check(self, candidate):
        refused = (1,) if os.environ.get("RANK", "0") == "0" else (1, 2, 3)
        return "it is odd" if candidate.step in refused else ""


def build(options: NoOptions, context):
    return Odd()


@hookimpl
def ft_gates():
    yield Gate(name="odd", build=f"{__name__}:build", summary="refuses another step at each rank")
"""
SIGNAL = """
import os, signal
from finetooth_hooks import hookimpl


@hookimpl
def ft_step(run, report):
    if report.step == 2 and os.environ["RANK"] == "0" and not os.path.exists("signalled-" + run.folder.name):
        open("signalled-" + run.folder.name, "w").close()
        os.kill(os.getpid(), signal.SIGTERM)
"""
KILLED = """
import os, signal
from finetooth_hooks import hookimpl


@hookimpl
def ft_step(run, report):
    if report.step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
"""
STOP = """
import os
from finetooth_hooks import StopRun, hookimpl


@hookimpl
def ft_step(run, report):
    if report.step == 2 and os.environ["RANK"] == "1":
        raise StopRun("enough")
"""
SAVED = """
import os
from finetooth_hooks import StopRun, hookimpl


@hookimpl
def ft_checkpoint_saved(run, path):
    if path.name == "step-1" and os.environ["RANK"] == "0":
        raise StopRun("enough")
"""
FULL_DISK = """
import os, resource, signal
from finetooth_hooks import hookimpl


@hookimpl
def ft_step(run, report):
    if report.step == 3 and os.environ["RANK"] == "0" and not os.path.exists("filled-" + run.folder.name):
        open("filled-" + run.folder.name, "w").close()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, resource.RLIM_INFINITY))
"""
NO_ROOM = """
import errno, os
from finetooth_hooks import hookimpl
from finetooth_saving import artifact


@hookimpl
def ft_run_start(run):
    real, left = getattr({module}, {name!r}), [2]

    def full(*args, **how):
        if os.environ["RANK"] == "0" and left[0] and {what!r} in f"{{args}} {{how}}":
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **how)

    setattr({module}, {name!r}, full)
"""
LAST = """
import os
from finetooth_hooks import StopRun, hookimpl


@hookimpl
def ft_checkpoint_saved(run, path):
    if path.name == {name!r} and os.environ["RANK"] == {rank!r}:
        raise StopRun("enough", exit_code=3)
"""
ENDS = """
import os
from finetooth_hooks import StopRun, hookimpl


@hookimpl
def ft_run_end(run, outcome):
    if os.environ["RANK"] == {rank!r} and not os.path.exists("ended-" + run.folder.name):
        open("ended-" + run.folder.name, "w").close()
        raise StopRun("enough", exit_code=3)
"""
SLOW = """
import os, time
from finetooth_hooks import hookimpl
from finetooth_saving import artifact

write_json = artifact.write_json


@hookimpl
def ft_run_start(run):
    def slow(path, *content, **how):
        if os.environ["RANK"] == "0" and {folder!r} in str(path):
            time.sleep(80)
        write_json(path, *content, **how)

    artifact.write_json = slow
"""
CLOCK = """
import os, time
from finetooth_hooks import hookimpl

real, passed = time.monotonic, [0.0]
time.monotonic = lambda: real() + passed[0]


@hookimpl
def ft_step(run, report):
    passed[0] += 100.0 * (os.environ.get("RANK", "0") == "0")
"""


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "replicas of tensor"])
def test_the_first_rank_judges_and_chooses_for_all(folder: Path, strategy: str) -> None:  # noqa: F811
    """Weights only get worse. The first rank refuses step 1, so that step 2 is the best that is left; other ranks would
    refuse that too, and take the last step."""
    (folder / "odd.py").write_text(GATE, encoding="utf-8")
    changes = {
        **LONG, "optimizer": {"name": "adamw", "learning_rate": 0.3}, "evaluate": {"every": 1},
        "plugins": ["./odd.py"], "checkpoint": {"every": 1, "select_on": "eval/loss", "gates": ["odd"]},
    }  # fmt: skip
    ranks, name = 4 if strategy.startswith("replicas") else 2, strategy.replace(" ", "-")
    runs = [
        trained(folder, "judged-alone", 1, **changes),
        trained(folder, f"judged-{name}", ranks, strategy, **changes),
    ]
    assert [json.loads((run / "result.json").read_text())["artifact_step"] for run in runs] == [2, 2]
    for file in (runs[0] / "artifact").glob("*.safetensors"):
        ours = load_file(runs[1] / "artifact" / file.name)
        for key, value in load_file(file).items():
            assert np.linalg.norm(ours[key] - value) <= 2e-5 * np.linalg.norm(value), key


@pytest.mark.parametrize("strategy", ["fsdp", "context", "pipeline", "tensor"])
def test_a_signal_at_one_rank_ends_all_behind_the_same_step(folder: Path, strategy: str) -> None:  # noqa: F811
    """Between two steps, where no engine asks the others. The state is saved, and resumes to the bits of a run that
    nobody interrupted."""
    (folder / "signalled.py").write_text(SIGNAL, encoding="utf-8")
    whole = trained(folder, f"unasked-{strategy}", 2, strategy, **LONG)
    scale = {"devices": 2, "strategy": {"name": "fsdp", "tensor": 2} if strategy == "tensor" else strategy}
    recipe = {**RECIPE, **LONG, "plugins": ["./signalled.py"], "output": f"asked-{strategy}", "scale": scale}
    (folder / "asked.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done, run = ft(folder, "run", "asked.yaml"), folder / f"asked-{strategy}"
    assert done.returncode == 143, done.stdout + done.stderr
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("interrupted", 2)
    assert "SIGTERM after step 2" in done.stderr and "gloo" not in done.stderr
    again = ft(folder, "resume", str(run))
    assert again.returncode == 0, again.stdout + again.stderr
    for file in (whole / "artifact").glob("*.safetensors"):
        ours = load_file(run / "artifact" / file.name)
        assert all(np.array_equal(ours[key], value) for key, value in load_file(file).items())


@pytest.mark.parametrize("what", ["evaluate", "checkpoint"])
def test_the_clock_of_the_first_rank_is_that_of_all(folder: Path, what: str) -> None:  # noqa: F811
    """A hundred seconds a step at the first rank, and next to none at the other."""
    (folder / "clock.py").write_text(CLOCK, encoding="utf-8")
    changes = {**LONG, "plugins": ["./clock.py"], what: {"every": "1 minute"}}
    run = trained(folder, f"timed-{what}", 2, "fsdp", **changes)
    if what == "evaluate":
        lines = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        assert [line["step"] for line in lines if line["event"] == "evaluation"] == [0, 1, 2, 3, 4]
    else:
        assert json.loads((run / "result.json").read_text())["checkpoints"]["saved"] == 4


def test_a_killed_rank_is_named_and_nobody_tries_to_save_without_it(folder: Path) -> None:  # noqa: F811
    """Each rank has a part of the weights. What was saved before stays."""
    (folder / "killed.py").write_text(KILLED, encoding="utf-8")
    recipe = {
        **RECIPE, **LONG, "plugins": ["./killed.py"], "output": "killed", "checkpoint": {"every": 1},
        "scale": {"devices": 2, "strategy": "fsdp"},
    }  # fmt: skip
    (folder / "killed.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "killed.yaml")
    assert done.returncode == 1, done.stdout + done.stderr
    ours, launchers = done.stderr.splitlines()
    assert ours.startswith("error: rank 0 lost the others: ") and "gloo" not in ours and "GLHF" not in ours
    assert launchers == "rank 1 was ended by signal 9 (SIGKILL); continue with ft resume"
    assert [path.name for path in (folder / "killed/checkpoints").iterdir()] == ["step-1"]


@pytest.mark.parametrize(("strategy", "rank"), [("ddp", "0"), ("fsdp", "1")])
def test_a_rank_that_hangs_is_named_within_the_time_limit(folder: Path, strategy: str, rank: str) -> None:  # noqa: F811
    """Stopped behind its second step; the run goes on from the newest checkpoint."""
    (folder / "hangs.py").write_text(
        KILLED.replace('"1"', f'"{rank}" and not os.path.exists("hung-" + run.folder.name)').replace(
            "    os.kill", '    open("hung-" + run.folder.name, "w").close()\n        os.kill'
        ).replace("SIGKILL", "SIGSTOP"), encoding="utf-8",
    )  # fmt: skip
    name = f"hangs-{strategy}-{rank}"
    recipe = {
        **RECIPE, **LONG, "plugins": ["./hangs.py"], "output": name, "checkpoint": {"every": 1},
        "scale": {"devices": 2, "strategy": {"name": strategy, "timeout": 20}},
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", f"{name}.yaml")
    assert done.returncode not in (0, 2), done.stdout + done.stderr
    named = f"rank {rank} did not end within 5 s of the others and was killed: it hung; continue with ft resume"
    assert done.stderr.splitlines()[-1] == named
    assert ft(folder, "resume", name).returncode == 0
    assert len(list((folder / name / "artifact").glob("*.safetensors"))) == 1


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_frozen_half_of_an_adapter_is_gathered_for_its_artifact(folder: Path, init: str) -> None:  # noqa: F811
    """The artifact is of twice the rank: what trains, and what it began from, which ranks divide with the base."""
    changes = {**LONG, "adapter": {"name": "lora", "rank": 4, "init": init}, "optimizer": RECIPE["optimizer"]}
    check_alike(trained(folder, f"{init}-alone", 1, **changes), trained(folder, f"{init}-fsdp", 2, "fsdp", **changes))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_stop_that_a_plugin_asks_for_at_one_rank_is_that_of_all(folder: Path, strategy: str) -> None:  # noqa: F811
    """At a rank that does not write, and whose end would leave the first one without it."""
    (folder / "stop.py").write_text(STOP, encoding="utf-8")
    run = trained(folder, f"stopped-{strategy}", 2, strategy, **{**LONG, "plugins": ["./stop.py"]})
    result = json.loads((run / "result.json").read_text())
    assert (result["status"], result["steps"], result["reason"]) == ("stopped", 2, "enough")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_stop_of_the_rank_that_is_told_of_a_checkpoint_is_that_of_all(folder: Path, strategy: str) -> None:  # noqa: F811
    """It counts behind the next step, since ranks are told of a checkpoint at steps of their own."""
    (folder / "saved.py").write_text(SAVED, encoding="utf-8")
    changes = {**LONG, "plugins": ["./saved.py"], "checkpoint": {"every": 1}}
    result = json.loads((trained(folder, f"saved-{strategy}", 2, strategy, **changes) / "result.json").read_text())
    assert (result["status"], result["reason"]) == ("stopped", "enough") and result["steps"] in (2, 3)


@pytest.mark.parametrize(("strategy", "every"), [("ddp", 1), ("fsdp", 1), ("fsdp", 3)])
def test_a_disk_that_is_full_for_one_rank_ends_all(folder: Path, strategy: str, every: int) -> None:  # noqa: F811
    """A limit on the size of the first rank's files stands in for the disk. The run names the file, and goes on from
    what was saved before as if nothing had happened. With 3 the save that fails is the last one before the end's."""
    (folder / "full.py").write_text(FULL_DISK, encoding="utf-8")
    changes = {**LONG, "plugins": ["./full.py"], "checkpoint": {"every": every}}
    name = f"full-{strategy}-{every}"
    whole = trained(folder, f"room-{strategy}", 2, strategy, **{**changes, "plugins": []})
    recipe = {**RECIPE, **changes, "output": name, "scale": {"devices": 2, "strategy": strategy}}
    (folder / "full.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "full.yaml")
    assert done.returncode == 1 and "checkpoints/step-3 cannot be written: File too large" in done.stderr, done.stderr
    kept = ["step-1", "step-2"] if every == 1 else []
    assert [path.name for path in sorted((folder / name).glob("checkpoints/*"))] == kept
    again = ft(folder, "resume", name)
    assert again.returncode == 0, again.stderr
    ours, theirs = (load_file(run / "artifact/model.safetensors") for run in (whole, folder / name))
    assert all(np.array_equal(theirs[name], value) for name, value in ours.items())


@pytest.mark.parametrize("full", ["folder", "manifest", "checkpoint"])
def test_ranks_wait_together_for_room_for_the_artifact(folder: Path, full: str) -> None:  # noqa: F811
    """Each rank has a part of the weights, and the disk of the first is full twice: before it can begin the artifact,
    once all have given their parts, or at the checkpoint before it."""
    where = {"module": "artifact.tempfile", "name": "mkdtemp", "what": "'.artifact.'"}
    if full == "manifest":
        where = {"module": "artifact", "name": "write_json", "what": "/.artifact."}
    elif full == "checkpoint":
        where["what"] = "'.step-4.'"
    (folder / "no_room.py").write_text(NO_ROOM.format(**where), encoding="utf-8")
    changes = {**LONG, "plugins": ["./no_room.py"], "checkpoint": {"every": 3, "wait_for_room": 300}}
    whole = trained(folder, "with-room", 2, "fsdp", **{**changes, "plugins": []})
    recipe = {**RECIPE, **changes, "output": f"no-room-{full}", "scale": {"devices": 2, "strategy": "fsdp"}}
    (folder / "no_room.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "no_room.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ("the run waits for room" in done.stdout + done.stderr) == (full != "checkpoint")
    ours, theirs = (load_file(run / "artifact/model.safetensors") for run in (whole, folder / f"no-room-{full}"))
    assert all(np.array_equal(theirs[name], value) for name, value in ours.items())


@pytest.mark.parametrize(
    ("strategy", "name", "rank"),
    [
        ("ddp", "step-4", "1"),
        ("fsdp", "step-4", "1"),
        ("fsdp", "step-4", "0"),
        ("fsdp", "artifact", "1"),
        ("ddp", "artifact", "1"),
        ("ddp", "artifact", "0"),
    ],
)
def test_a_stop_behind_the_last_step_is_that_of_all(folder: Path, strategy: str, name: str, rank: str) -> None:  # noqa: F811
    (folder / "last.py").write_text(LAST.format(name=name, rank=rank), encoding="utf-8")
    output = f"last-{strategy}-{name}-{rank}"
    recipe = {
        **RECIPE, **LONG, "plugins": ["./last.py"], "output": output, "checkpoint": {"every": 2},
        "scale": {"devices": 2, "strategy": strategy},
    }  # fmt: skip
    (folder / "last.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "last.yaml")
    assert done.returncode == 3, done.stdout + done.stderr
    result = json.loads((folder / output / "result.json").read_text())
    assert (result["status"], result["reason"], result["steps"], result["artifact"]) == (
        "stopped", "enough", 4, "artifact"
    )  # fmt: skip


@pytest.mark.parametrize(("strategy", "rank"), [("fsdp", "1"), ("fsdp", "0"), ("ddp", "1")])
def test_a_stop_at_the_end_of_one_rank_is_kept_by_all(folder: Path, strategy: str, rank: str) -> None:  # noqa: F811
    """Nothing else has saved the last step, which ranks with parts can only save together. It resumes."""
    (folder / "ends.py").write_text(ENDS.format(rank=rank), encoding="utf-8")
    output = f"ends-{strategy}-{rank}"
    recipe = {
        **RECIPE, **LONG, "plugins": ["./ends.py"], "output": output,
        "scale": {"devices": 2, "strategy": {"name": strategy, "timeout": 60}},
    }  # fmt: skip
    (folder / "ends.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "ends.yaml")
    assert done.returncode == 3, done.stdout + done.stderr
    result = json.loads((folder / output / "result.json").read_text())
    assert (result["status"], result["reason"], result["steps"]) == ("stopped", "enough", 4)
    saved = load_file(folder / output / "checkpoints/step-4/engine/trained.safetensors")
    whole = load_file(folder / output / "artifact/model.safetensors")
    assert all(np.array_equal(saved[name], value) for name, value in whole.items() if name in saved)
    assert sum(value.size for value in saved.values()) >= sum(value.size for value in whole.values()) > 0
    again = ft(folder, "resume", output)
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(("strategy", "what"), [("fsdp", ".artifact."), ("fsdp", ".step-2."), ("ddp", ".step-2.")])
def test_a_slow_disk_is_not_a_rank_that_hangs(folder: Path, strategy: str, what: str) -> None:  # noqa: F811
    """The first rank writes for longer than ranks wait for each other, and is alive."""
    (folder / "slow.py").write_text(SLOW.format(folder=what), encoding="utf-8")
    output = f"slow-{strategy}-{what.strip('.')}"
    recipe = {
        **RECIPE, **LONG, "plugins": ["./slow.py"], "output": output, "checkpoint": {"every": 2},
        "scale": {"devices": 2, "strategy": {"name": strategy, "timeout": 60}},
    }  # fmt: skip
    (folder / "slow.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "slow.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((folder / output / "result.json").read_text())["seconds"] > 80
