"""What a server does with sessions whose models are spread over ranks: weights without their optimizer, models that
wait on a disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_primitives import CASES, SECTIONS, begun, children, folder, rows, serving  # noqa: F401 - folder is a fixture

pytestmark = pytest.mark.slow
LOSS = "cross_entropy"


@pytest.fixture(scope="module")
def one_in_memory(folder: Path) -> Iterator[tuple[Any, int]]:  # noqa: F811
    """A client of a server that holds one model in memory, and its process id."""
    with serving(folder, "one-in-memory", "--live", "1") as (client, process):
        yield client, process.pid


@pytest.mark.parametrize("strategy", CASES)
def test_weights_are_taken_without_their_optimizer(one_in_memory: tuple[Any, int], strategy: str) -> None:
    """A second engine of as many ranks takes the place of the first."""
    client, process = one_in_memory

    def numbers(session: Any) -> list[float]:
        begun(session).step()
        saved = session.save("state")
        session.forward_backward(rows(6, 4), LOSS)
        session.step()
        session.load(saved, optimizer=False)
        found = []
        for seed in (7, 8):
            found += [session.forward_backward(rows(seed, 4), LOSS).loss, session.step().grad_norm]
        return found

    sessions = [client.session("model", **SECTIONS, strategy=pick) for pick in (strategy, None)]
    ranked, alone = map(numbers, sessions)
    np.testing.assert_allclose(ranked, alone, rtol=1e-5, atol=1e-6)
    for session in sessions:
        session.close()
    assert not children(process)


@pytest.mark.parametrize("strategy", CASES)
def test_models_take_turns_in_memory(one_in_memory: tuple[Any, int], strategy: str) -> None:
    """Two models of two ranks in a server that holds one: with each call the other goes to disk with its gradients,
    and its ranks end. Both train as one that stays in memory."""
    client, process = one_in_memory
    alone = client.session("model", **SECTIONS)
    expected = [begun(alone).step().grad_norm, alone.forward_backward(rows(9, 4), LOSS).loss]
    alone.close()
    pair = [client.session("model", **SECTIONS, strategy=strategy) for _ in range(2)]
    for session in pair:
        begun(session)
        assert len(children(process)) == 2
    norms = [session.step().grad_norm for session in pair]
    losses = [session.forward_backward(rows(9, 4), LOSS).loss for session in pair]
    np.testing.assert_allclose([*zip(norms, losses, strict=True)], [expected] * 2, rtol=1e-5)
    for session in pair:
        session.close()


LATER = """
import time
from pathlib import Path
from finetooth_hooks import hookimpl
from finetooth_server.keeping import pruning

pruning.EVERY = 0.2
pruning.now = lambda: time.time() + 10 * 86400 * Path("later").exists()


@hookimpl
def ft_run_start(run):
    pass
"""
"""A server that looks five times a second for what is to end, and whose clock is ten days fast while a file exists."""


@pytest.mark.parametrize("strategy", CASES)
def test_a_session_that_nobody_uses_ends_its_ranks(folder: Path, strategy: str) -> None:  # noqa: F811
    """After a week its processes and their files are gone. Its checkpoint stays, and begins another session that trains
    as one that stays in use, over ranks again."""
    (folder / "later.py").write_text(LATER, encoding="utf-8")
    scratch = folder / f"idle-scratch-{strategy}"
    scratch.mkdir()
    flags = ("--plugins", "later.py", "--scratch", str(scratch))
    with serving(folder, f"idle-{strategy}", *flags) as (client, process):
        left = begun(client.session("model", **SECTIONS, strategy=strategy))
        left.step()
        saved = left.save("kept")
        assert len(children(process.pid)) == 2 and list(scratch.rglob("ft-ranks-*"))
        (folder / "later").touch()
        until = time.monotonic() + 60
        while children(process.pid) and time.monotonic() < until:
            time.sleep(0.2)
        (folder / "later").unlink()
        assert not children(process.pid) and not list(scratch.rglob("ft-ranks-*"))
        with pytest.raises(Exception, match="the model was closed"):
            left.step()
        again = client.session("model", **SECTIONS, strategy=strategy, checkpoint=saved)
        assert len(children(process.pid)) == 2
        used = begun(client.session("model", **SECTIONS, strategy=strategy))
        used.step()
        losses = [session.forward_backward(rows(9, 4), LOSS).loss for session in (again, used)]
        assert losses[0] == losses[1]
