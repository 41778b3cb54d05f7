"""A run with `egress: never` trains in a process that reaches no network, and its record says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetooth
import pytest
from finetooth_hooks import PlanError

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


@pytest.mark.slow
def test_a_run_without_egress_reaches_no_network_and_says_so(written: Callable[..., Path], tmp_path: Path) -> None:
    if subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], check=False).returncode:
        pytest.skip("this machine allows no user namespaces")
    (tmp_path / "looks.py").write_text(LOOKS)
    data = {"train": str(tmp_path / "rows.jsonl"), "renderer": "chatml", "classification": NEVER}
    recipe = written(["Hi", "Hello"], ["Bye", "See you"], data=data, plugins=[str(tmp_path / "looks.py")])
    words = [sys.executable, "-m", "finetooth", "run", str(recipe), "train.max_steps=1", "train.batch_size=2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Network is unreachable" in (tmp_path / "said").read_text()
    manifest = json.loads((tmp_path / "run/artifact/manifest.json").read_text())
    assert manifest["environment"]["network"] == "closed"


def test_from_python_it_is_refused_where_there_is_a_network(recipe: Callable[..., Any]) -> None:
    given = recipe()
    given["data"]["classification"] = NEVER
    with pytest.raises(PlanError, match="start it with ft run"):
        finetooth.run(given)
