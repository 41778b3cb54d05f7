"""Ranks in a real Ray cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from finetooth_hooks import PlanError
from finetooth_kit import parametrize_with_checks

sys.path.insert(0, str(Path(__file__).parent))
from clusters import two_nodes


@parametrize_with_checks("finetooth_raylauncher.plugin")
def test_checks(check: Any) -> None:
    check()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with two_nodes(tmp_path_factory.mktemp("home"), cpus=2) as address:
        yield address


def start(address: str, script: str, world: int = 2, nodes: int = 1, **options: Any) -> int:
    from finetooth_raylauncher.launcher import RayLauncher
    from finetooth_raylauncher.options import RayOptions

    launcher = RayLauncher(RayOptions(address=address, grace=1, **options), {**os.environ, "HF_TOKEN": "secret"})
    command = [sys.executable, "-c", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{script}"]
    return launcher.start(world, command, nodes=nodes)


@pytest.mark.slow
def test_ranks_share_machines_evenly_and_rank_0_speaks(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    script = (
        "from finetooth_environmentlauncher.places import place\n"
        "p = place(os.environ); print('I am', rank, 'HF_TOKEN' in os.environ)\n"
        "open(f'{rank}', 'w').write(f'{p.world} {p.local} {p.port > 0} {os.getppid()}')\n"
        "sys.exit(3 if rank == 0 else 0)"
    )
    assert start(cluster, script, world=4, nodes=2) == 3
    written = [(tmp_path / str(rank)).read_text().rsplit(" ", 1)[0] for rank in range(4)]
    assert written == ["4 0 True", "4 1 True", "4 0 True", "4 1 True"]
    assert capfdbinary.readouterr().out == b"I am 0 False\n"


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_others(cluster: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = (
        f"open(r'{tmp_path}/' + str(os.getpid()), 'w')\n"
        "if rank == 0: time.sleep(120)\nimport signal\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert start(cluster, script) == 1
    assert "rank 1 was ended by signal 9 (SIGKILL); continue with ft resume" in capfd.readouterr().err
    assert not [file.name for file in tmp_path.iterdir() if Path(f"/proc/{file.name}").exists()]


@pytest.mark.slow
def test_a_lost_actor_takes_its_rank_with_it(cluster: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = f"open(r'{tmp_path}/' + str(os.getpid()), 'w')\nif rank: os.kill(os.getppid(), 9)\ntime.sleep(120)"
    assert start(cluster, script) == 1
    assert "rank 1 was ended by signal 9" in capfd.readouterr().err
    deadline = time.monotonic() + 60
    while alive := [file.name for file in tmp_path.iterdir() if Path(f"/proc/{file.name}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.2)


@pytest.mark.slow
def test_the_interrupt_key_reaches_rank_0(cluster: str, tmp_path: Path) -> None:
    script = (
        "if rank: time.sleep(1); sys.exit()\n"
        f"try: open(r'{tmp_path}/there', 'w'); time.sleep(120)\n"
        "except KeyboardInterrupt: sys.exit(5)"
    )

    def interrupt() -> None:
        while not (tmp_path / "there").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert start(cluster, script) == 5


@pytest.mark.slow
def test_a_cluster_without_room_is_named(cluster: str) -> None:
    with pytest.raises(PlanError, match=r"no room for 1 machines with 3 CPU each after 1 s; all of it has 4 CPU"):
        start(cluster, "", world=3, patience=1)


@pytest.mark.slow
def test_no_cluster_is_one_line() -> None:
    script = (
        "from finetooth_raylauncher.launcher import RayLauncher; from finetooth_raylauncher.options import RayOptions\n"
        "from finetooth_hooks import PlanError\n"
        "try: RayLauncher(RayOptions(address='127.0.0.1:1'), {}).start(2, ['true'])\n"
        "except PlanError as error: print(error)"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run([sys.executable, "-c", script], env=kept, text=True, capture_output=True, check=True)
    assert done.stdout.startswith("scale.launcher: no Ray cluster answers at 127.0.0.1:1: "), done
    assert len(done.stdout.splitlines()) <= 2
