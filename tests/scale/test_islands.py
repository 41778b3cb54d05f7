"""DiLoCo by recipes: two islands that `ft run` starts, held against ddp, a run without a break, and the simulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).parent))
from test_two_ranks import RECIPE, check_alike, folder, ft, steps, trained  # noqa: F401 - folder is a fixture

pytestmark = pytest.mark.slow
SGD = {"optimizer": {"name": "sgd", "learning_rate": 0.05}, "train": {**RECIPE["train"], "max_grad_norm": 0}}
LONG = {"train": {**RECIPE["train"], "max_steps": 5, "epochs": 3}, "schedule": "constant"}


def islands(**options: Any) -> dict[str, Any]:
    return {"devices": 2, "strategy": {"name": "diloco", **options}}


def run(folder: Path, name: str, scale: dict[str, Any], **changes: Any) -> Path:  # noqa: F811
    recipe = {**RECIPE, **changes, "output": name, "scale": scale}
    (folder / f"{name}.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", f"{name}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / name


def weights(run: Path) -> dict[str, Any]:
    (file,) = (run / "artifact").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_one_inner_step_of_sgd_without_an_outer_optimizer_is_ddp(folder: Path, adapter: str) -> None:  # noqa: F811
    """The mean of what two islands come to by a step of SGD each is one step of SGD over all rows."""
    changes: dict[str, Any] = {**SGD, "adapter": RECIPE["adapter"] if adapter == "lora" else "full"}
    one = trained(folder, f"one-{adapter}", 1, **changes)
    two = run(folder, f"islands-{adapter}", islands(inner_steps=1, outer_lr=1.0, outer_momentum=0.0), **changes)
    ours = weights(two)
    assert len(steps(two)) == len(steps(one)) == 3
    for key, value in weights(one).items():
        np.testing.assert_allclose(ours[key], value, rtol=1e-4, atol=1e-6, err_msg=key)


def test_a_run_resumes_in_the_middle_of_a_round_bit_for_bit(folder: Path) -> None:  # noqa: F811
    """Five steps in rounds of two, saved after the third: both islands' weights and optimizers, the anchor, the outer
    momentum and what int8 took."""
    scale = islands(inner_steps=2, pseudo_gradient_dtype="int8")
    whole = run(folder, "unbroken", scale, **LONG, evaluate={"every": 3})
    short = {**LONG, "train": {**LONG["train"], "max_steps": 5}, "checkpoint": {"every": 3}, "evaluate": {"every": 3}}
    broken = run(folder, "broken", scale, **short)

    done = ft(folder, "resume", str(broken), "--at", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    for key, value in weights(whole).items():
        assert np.array_equal(weights(broken)[key], value), key


def test_as_many_bytes_are_sent_as_simulated(folder: Path) -> None:  # noqa: F811
    """What the run counts at its line to the other island is what `ft simulate` said before."""
    scale = islands(inner_steps=2, pseudo_gradient_dtype="bf16")
    made = run(folder, "counted-islands", scale, **LONG)
    said = ft(
        folder, "simulate", "counted-islands.yaml", "--link", "100Mbit", "--rtt", "80ms", "--json", "output=other"
    )
    assert said.returncode == 0, said.stdout + said.stderr
    simulated = json.loads(said.stdout)
    numbers = sum(value.size for value in weights(made).values())
    assert simulated["parameters"] == numbers
    assert simulated["sent"]["given"] == 3 * 2 * numbers  # after steps 2, 4 and the last
    assert steps(made)[-1]["metrics"]["diloco/sent"] == 2 * 2 * numbers  # before the exchange of the last step


def test_a_fragment_is_a_half_and_a_run_with_fragments_resumes_bit_for_bit(folder: Path) -> None:  # noqa: F811
    """Five steps, a half after the second and the fourth, all after the last; saved with the other half on its way."""
    scale = islands(inner_steps=4, fragments=2, delay=1, mixing=0.5)
    whole = run(folder, "streamed", scale, **LONG, checkpoint={"every": 2})
    said = ft(folder, "simulate", "streamed.yaml", "--link", "100Mbit", "--json", "output=other")
    assert said.returncode == 0, said.stdout + said.stderr
    simulated, numbers = json.loads(said.stdout), sum(value.size for value in weights(whole).values())
    assert simulated["every"] == 2 and simulated["sent"]["given"] == 2 * 4 * numbers / 2 + 4 * numbers
    assert steps(whole)[-1]["metrics"]["diloco/sent"] == 2 * 4 * numbers / 2  # before the exchange of the last step
    kept = weights(whole)
    done = ft(folder, "resume", str(whole), "--at", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    for key, value in weights(whole).items():
        assert np.array_equal(kept[key], value), key


LEAVING = """
import hashlib, os, signal, time
from pathlib import Path
import finetooth_diloco.strategy
from finetooth_diloco.elastic import ElasticEngine
from finetooth_hooks import hookimpl

rank, again = os.environ.get("RANK"), Path("lost").exists()

@hookimpl
def ft_run_start(run):
    if rank == "2" and again:
        Path("back").touch()

@hookimpl
def ft_step(run, report):
    if rank == "2" and report.step == 3 and not again:
        Path("lost").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == "0" and report.step == 5:
        while not Path("back").exists():
            time.sleep(0.01)

class Seen(ElasticEngine):
    def step(self, **given):
        done = super().step(**given)
        if done.step in (6, 8):
            numbers = b"".join(weight.numpy().tobytes() for weight in self._own.weights().values())
            Path(f"weights-{done.step}-{rank}").write_text(hashlib.sha256(numbers).hexdigest())
        return done

finetooth_diloco.strategy.ElasticEngine = Seen
"""


def test_an_island_is_killed_and_joins_again(folder: Path) -> None:  # noqa: F811
    """Three islands that exchange after every second step. One is killed after the third; it is left out after the
    fourth, and has the weights of the others after the sixth."""
    (folder / "leaving.py").write_text(LEAVING, encoding="utf-8")
    scale = {
        "devices": 3, "launcher": {"name": "local", "restarts": 1, "restart": "rank"},
        "strategy": {"name": "diloco", "inner_steps": 2, "patience": 5},
    }  # fmt: skip
    recipe = {**RECIPE, **LONG, "output": "leaving", "scale": scale, "plugins": ["./leaving.py"]}
    recipe["train"] = {**LONG["train"], "max_steps": 8, "epochs": 4}
    (folder / "leaving.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "leaving.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 2 was ended by signal 9 (SIGKILL); restart 1 of 1: it begins again" in done.stderr
    assert "diloco: island 2 is left out of the average after step 4: not there after 5 s" in done.stderr
    assert "diloco: island 2 is back with the weights of all after step 6" in done.stderr
    for step in (6, 8):
        assert len({(folder / f"weights-{step}-{rank}").read_text() for rank in range(3)}) == 1
    taken = steps(folder / "leaving")
    assert [step["metrics"]["diloco/islands"] for step in taken] == [3, 3, 3, 3, 2, 2, 3, 3]
    assert all(np.isfinite(step["loss"]) for step in taken)


KILLER = """
import os, signal
from pathlib import Path
from finetooth_diloco import membership
from finetooth_hooks import hookimpl

membership.EXCHANGE = 5.0

@hookimpl
def ft_step(run, report):
    if os.environ.get("RANK") == "0" and report.step == 5 and not Path("SIGNAL").exists():
        Path("SIGNAL").touch()
        os.kill(os.getpid(), signal.SIGNAL)
"""


@pytest.mark.parametrize("way", ["SIGKILL", "SIGSTOP"])
def test_the_first_island_is_lost_and_all_begin_with_its_newest_checkpoint(folder: Path, way: str) -> None:  # noqa: F811
    """Rounds of two steps, a checkpoint behind each, kill -9 of island 0 in the third, when what the second one sent
    has arrived, or a process that is stopped there: the others and a new first island come to what a run does that
    ended cleanly at that checkpoint."""
    (folder / "first.py").write_text(KILLER.replace("SIGNAL", way), encoding="utf-8")
    scale = {
        "devices": 2, "launcher": {"name": "local", "restarts": 1, "restart": "rank"},
        "strategy": {"name": "diloco", "inner_steps": 2, "delay": 1, "patience": 20 if way == "SIGKILL" else 5},
    }  # fmt: skip
    long = {**LONG, "train": {**LONG["train"], "max_steps": 6, "epochs": 4}, "checkpoint": {"every": 2}}
    clean = run(folder, f"first-left-{way}", scale, **long)
    done = ft(folder, "resume", str(clean), "--at", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    recipe = {**RECIPE, **long, "output": f"lost-by-{way}", "scale": scale, "plugins": ["./first.py"]}
    (folder / "first.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    done = ft(folder, "run", "first.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    again = "restart 1 of 1: all ranks begin again from the newest checkpoint"
    if way == "SIGSTOP":
        assert "rank 1 ended with exit code 75: diloco: the first island has not answered for 5 s" in done.stderr
    assert f"rank 0 was ended by signal 9 (SIGKILL); {again}" in done.stderr
    assert [(step["step"], step["loss"]) for step in steps(folder / f"lost-by-{way}")] == [
        (step["step"], step["loss"]) for step in steps(clean)
    ]
    for key, value in weights(clean).items():
        assert np.array_equal(weights(folder / f"lost-by-{way}")[key], value), key


def test_settings_that_cannot_be_are_refused_before_a_rank_starts(folder: Path) -> None:  # noqa: F811
    for number, (options, message) in enumerate(
        [
            ({"within": "full_shard"}, "scale.strategy.within: diloco cannot run with full_shard"),
            ({"within": "zero-3"}, "whole pseudo-gradient"),
            ({"inner_step": 5}, "inner_steps"),
        ]
    ):
        recipe = {**RECIPE, "output": f"refused-{number}", "scale": islands(**options)}
        (folder / "refused.yaml").write_text(json.dumps(recipe), encoding="utf-8")
        done = ft(folder, "run", "refused.yaml")
        assert (done.returncode, message in done.stderr) == (2, True), done.stdout + done.stderr
        assert not (folder / f"refused-{number}").exists() and "rank" not in done.stderr.split(": ")[0]
