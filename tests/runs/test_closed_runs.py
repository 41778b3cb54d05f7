"""A run with `egress: never` trains in a process that reaches no network, and its record says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import finetooth
import pytest
import yaml
from finetooth_hooks import UserError

LOOKS = '''
"""Tries to reach a network when the run starts."""
import socket
from pathlib import Path
from finetooth_hooks import hookimpl

@hookimpl
def ft_run_start(run):
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=5)
        said = "reached"
    except OSError as error:
        said = str(error)
    Path(__file__).with_name("said").write_text(said)
'''
NEVER = {"customer_data": False, "egress": "never"}


@pytest.fixture
def closed(written: Callable[..., Path], tmp_path: Path) -> Path:
    """A recipe without egress, whose plugin tries to reach a network."""
    if subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], check=False).returncode:
        pytest.skip("this machine allows no user namespaces")
    (tmp_path / "looks.py").write_text(LOOKS)
    data = {"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml", "classification": NEVER}
    train = {"max_steps": 1, "batch_size": 2, "max_length": 256, "precision": "fp32"}
    return written(["Hi", "Hello"], ["Bye", "See you"], data=data, plugins=[str(tmp_path / "looks.py")], train=train)


def ft(*words: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "finetooth", *words], capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def reached(recipe: Path) -> str:
    """What the plugin of the last run said."""
    said = recipe.with_name("said")
    text = said.read_text()
    said.unlink()
    return text


def network(run: Path) -> str:
    manifest = json.loads((run / "artifact/manifest.json").read_text())
    return str(manifest["environment"].get("network"))


@pytest.mark.slow
def test_a_run_without_egress_reaches_no_network_and_says_so(closed: Path, tmp_path: Path) -> None:
    ft("run", str(closed), folder=tmp_path)
    assert "Network is unreachable" in reached(closed) and network(tmp_path / "run") == "closed"
    again = ft("reproduce", str(tmp_path / "run"), "--output", str(tmp_path / "again"), folder=tmp_path)
    assert "is reproduced bit for bit" in again
    assert "Network is unreachable" in reached(closed) and network(tmp_path / "again") == "closed"


@pytest.mark.slow
def test_a_sweep_without_egress_reaches_no_network(closed: Path, tmp_path: Path) -> None:
    space = {"optimizer.learning_rate": [0.01, 0.02]}
    given = yaml.safe_load(closed.read_text())
    given["data"]["eval"] = given["data"]["train"]
    closed.write_text(yaml.safe_dump({**given, "sweep": {"metric": "eval/loss", "trials": 1, "space": space}}))
    ft("sweep", str(closed), "--output", str(tmp_path / "sweep"), folder=tmp_path)
    assert "Network is unreachable" in reached(closed) and network(tmp_path / "sweep/trial-0") == "closed"


@pytest.mark.slow
def test_python_closes_the_network_too(closed: Path, tmp_path: Path) -> None:
    result = finetooth.run(closed, "export=[]")
    assert "Network is unreachable" in reached(closed) and network(tmp_path / "run") == "closed"
    assert result.status == "done" and result.artifact == tmp_path / "run/artifact"
    assert [set(row) >= {"loss", "grad_norm"} for row in result.rows()] == [True]
    with pytest.raises(UserError, match=r"^output: .*run already holds a run"):  # the line that ft run prints
        finetooth.run(closed)


@pytest.mark.slow
def test_python_closes_the_network_of_a_run_that_it_resumes(closed: Path, tmp_path: Path) -> None:
    finetooth.run(closed, "checkpoint.every=1", "train.max_steps=2", "export=[]")
    reached(closed)
    (tmp_path / "run/result.json").unlink()
    shutil.rmtree(tmp_path / "run/artifact")
    result = finetooth.resume(tmp_path / "run/checkpoints/step-1", "train.max_steps=3", accept_changes=True)
    assert "Network is unreachable" in reached(closed) and network(tmp_path / "run") == "closed"
    assert result.status == "done" and [row["step"] for row in result.rows()] == [1, 2, 3]
    with pytest.raises(UserError, match=r"^train.nothing"):  # the line that ft resume prints
        finetooth.resume(tmp_path / "run", "train.nothing=3")
