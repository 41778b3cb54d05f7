"""Ranks by ssh: a stand-in takes the place of ssh, and runs each host's line in a shell of its own, as sshd does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import PlanError
from finetooth_kit import parametrize_with_checks
from finetooth_sshlauncher.launcher import SshLauncher, SshOptions
from pydantic import ValidationError

STAND_IN = f"""#!{sys.executable}
import os, sys
if sys.argv[-2] == "away":
    sys.exit("ssh: connect to host away port 22: Connection refused")
os.chdir("/")
os.environ["SSH_HOST"] = sys.argv[-2]
os.environ.pop("FT_API_KEY", None)
os.execvp("sh", ["sh", "-c", sys.argv[-1]])
"""


@parametrize_with_checks("finetooth_sshlauncher.plugin")
def test_checks(check: Any) -> None:
    check()


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose name a shell would split, with the stand-in on the path."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text(STAND_IN, encoding="utf-8")
    (programs / "ssh").chmod(0o755)
    folder = tmp_path / "my run; $(touch hurt)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return folder


def start(options: SshOptions, script: str, world: int, nodes: int) -> int:
    import os

    environment = {**os.environ, "HF_HOME": "a b", "FT_API_KEY": "secret"}
    return SshLauncher(options, environment).start(world, [sys.executable, "-c", script], nodes=nodes)


def test_each_rank_finds_its_place_and_no_secret(there: Path) -> None:
    script = (
        "import json, os; e = os.environ; n = e['RANK']; "
        "json.dump({k: e.get(k) for k in ('SSH_HOST', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', "
        "'HF_HOME', 'FT_API_KEY')}, open(n + '.json', 'w'))"
    )
    options = SshOptions(hosts=("me@gpu-1", "gpu-2"), port=4000)
    assert start(options, script, world=4, nodes=2) == 0
    for rank in range(4):
        assert json.loads((there / f"{rank}.json").read_text()) == {
            "SSH_HOST": ("me@gpu-1", "gpu-2")[rank // 2],
            "WORLD_SIZE": "4",
            "LOCAL_RANK": str(rank % 2),
            "MASTER_ADDR": "gpu-1",
            "MASTER_PORT": "4000",
            "HF_HOME": "a b",
            "FT_API_KEY": None,
        }
    assert sorted(file.name for file in there.iterdir()) == [f"{rank}.json" for rank in range(4)]


def test_a_host_that_does_not_answer_is_named(there: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = SshOptions(hosts=("gpu-1", "away"), grace=0.5)
    assert start(options, "import time; time.sleep(60)", world=2, nodes=2) == 1
    assert "rank 1 ended with exit code 1: ssh: connect to host away" in capfd.readouterr().err


@pytest.mark.parametrize("hosts", [(), ("a",), ("a", "a"), ("a", "b", "c")])
def test_hosts_are_as_many_as_machines(hosts: tuple[str, ...]) -> None:
    with pytest.raises(PlanError, match=r"hosts names \d hosts, and scale.nodes is 2"):
        start(SshOptions(hosts=hosts), "", world=2, nodes=2)


@pytest.mark.parametrize("host", ["-oProxyCommand=touch hurt", "a b", "a;b", "", "a@-b", "a\nb"])
def test_a_host_is_no_option_of_ssh(host: str) -> None:
    with pytest.raises(ValidationError):
        SshOptions(hosts=(host,))


def test_a_host_that_fails_once_is_started_again(there: Path) -> None:
    script = (
        "import os, pathlib, time; mark = pathlib.Path('failed'); again = mark.exists(); "
        "one = os.environ['RANK'] == '1'; mark.touch() if one else time.sleep(0 if again else 60); "
        "raise SystemExit(int(one and not again))"
    )
    options = SshOptions(hosts=("gpu-1", "gpu-2"), grace=0.5, restarts=1)
    assert start(options, script, world=2, nodes=2) == 0
    assert (there / "failed").exists()
