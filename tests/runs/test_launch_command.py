"""`ft launch`: ranks on two hosts, by a stand-in of ssh that runs each host's line in a shell here, as sshd does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
import yaml

STAND_IN = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["SEEN"], "a") as seen:
    seen.write(json.dumps(sys.argv[1:]) + "\\n")
os.execvp("sh", ["sh", "-c", sys.argv[-1]])
"""


@pytest.mark.slow
def test_it_trains_on_its_hosts_as_one_process_does(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("finetooth_sshlauncher")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "bin/ssh").chmod(0o755)
    given = recipe(train={"max_steps": 3, "batch_size": 4, "precision": "fp32", "max_length": 256})
    alone = {**given, "output": str(tmp_path / "alone")}
    finetooth.run(alone)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(given))
    words = [sys.executable, "-m", "finetooth", "launch", str(tmp_path / "recipe.yaml"), "--hosts", "gpu-1, gpu-2"]
    words += ["--devices", "1", "scale.strategy=ddp", "scale.launcher.address=127.0.0.1", "--quiet"]
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SEEN": str(tmp_path / "seen")}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    asked = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert sorted(one[-2] for one in asked) == ["gpu-1", "gpu-2"]

    def losses(folder: str) -> list[float]:
        lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if line["event"] == "step"]

    assert losses(given["output"]) == pytest.approx(losses(alone["output"]), rel=1e-5)


def test_a_strategy_that_divides_nothing_is_named(
    ft: Callable[..., tuple[int, str, str]], recipe: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """`devices` is left open, so one process trains, on a machine of whatever number of devices."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(scale={"strategy": "fsdp"})))
    code, out, err = ft("check", tmp_path / "recipe.yaml")
    assert code == 0, err
    assert "one process trains, so scale.strategy has nothing to divide: set scale.devices" in out + err


@pytest.mark.parametrize("strategy", ["deepspeed", {"name": "diloco", "within": {"name": "ddp", "replicaz": 2}}])
def test_a_strategy_that_divides_nothing_is_checked(
    ft: Callable[..., tuple[int, str, str]], recipe: Callable[..., dict[str, Any]], tmp_path: Path, strategy: Any
) -> None:
    """What is picked inside it as well; its library is not needed."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(scale={"strategy": strategy})))
    code, _, err = ft("check", tmp_path / "recipe.yaml")
    if strategy == "deepspeed":
        assert code == 0, err
    else:
        assert code == 2 and "replicaz" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("hosts", ["a,a", "a,", "-oProxyCommand=x,b"])
def test_hosts_that_cannot_be_are_one_line(
    ft: Callable[..., tuple[int, str, str]], recipe: Callable[..., dict[str, Any]], tmp_path: Path, hosts: str
) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe()))
    code, _, err = ft("launch", tmp_path / "recipe.yaml", f"--hosts={hosts}")
    assert code == 2 and len(err.splitlines()) == 1 and "hosts" in err


@pytest.mark.parametrize("name", ["ssh", "slurm"])
def test_one_rank_does_not_train_here_unnoticed(
    ft: Callable[..., tuple[int, str, str]], recipe: Callable[..., dict[str, Any]], tmp_path: Path, name: str
) -> None:
    """A launcher of other machines starts ranks, and one rank is no reason to train on this one instead."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(scale={"launcher": name})))
    launched = ["launch", "--hosts=gpu-1"] if name == "ssh" else ["run"]
    code, _, err = ft(*launched, tmp_path / "recipe.yaml")
    assert code == 2 and f"scale.launcher: {name} starts several ranks" in err and "scale.devices" in err
