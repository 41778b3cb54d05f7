"""What a request's size decides is not done in the event loop, and a call's rows are read in turns."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from importlib.util import find_spec
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from finetooth_hooks import Forward, Interrupted
from finetooth_server.collector import MUCH, NEVER, WHOLE, Collector
from finetooth_server.operations import ROWS_AT_ONCE, data_of, encoded
from finetooth_server.rest import bodies, reading
from finetooth_server.settings import Settings
from finetooth_wire import json_parts, wire

ROW = {"tokens": [5, 6, 7], "targets": [6, 7, 8]}
MANY = 2 * reading.SMALL // len(json.dumps(ROW))


@pytest.fixture(scope="module")
def served(serve: Any, recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    faces = ("api", "tinker") if find_spec("tinker") else ("api",)
    return serve(Settings(tmp_path_factory.mktemp("reading"), {"tiny": recipe}, keyless=True), faces=faces)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """In which threads bodies were read, checked and made plain."""
    found: dict[str, set[str]] = {"read": set(), "checked": set(), "plain": set()}
    read, plain, told = json_parts.loads, bodies.Body.model_dump, reading.body_fault

    def noted(name: str) -> None:
        found[name].add(threading.current_thread().name.partition("_")[0])

    monkeypatch.setattr(json_parts, "loads", lambda content: (noted("read"), read(content))[1])
    monkeypatch.setattr(bodies.Body, "model_dump", lambda self, **how: (noted("plain"), plain(self, **how))[1])
    monkeypatch.setattr(reading, "body_fault", lambda fault: (noted("checked"), told(fault))[1])
    return found


def post(served: Any, path: str, body: Any, **query: Any) -> Any:
    return httpx.post(f"{served.url}{path}", json=body, params=query, timeout=60)


def test_a_large_body_is_read_beside_the_event_loop(served: Any, threads: dict[str, set[str]]) -> None:
    session = post(served, "/v1/sessions", {"base": "tiny"}).json()["session"]
    path = f"/v1/sessions/{session}/forward_backward"
    rows = {"data": [ROW] * MANY, "loss": "cross_entropy"}
    for name in threads:
        threads[name].clear()
    assert post(served, path, rows).json()["state"] == "done"
    wrong = post(served, path, {**rows, "losses": 1})
    assert (wrong.status_code, wrong.json()) == (422, {"error": "losses: unknown field (did you mean loss?)"})
    inside = post(served, path, {**rows, "loss": [1]}, seq=2).json()  # it has a place, and fails there
    assert inside["state"] == "failed" and inside["error"]["message"].startswith("loss.")
    lost = httpx.post(f"{served.url}{path}", content=b'{"data":[' + b" " * 2**16 + b"}",
                      headers={"Content-Type": "application/json"})  # fmt: skip
    assert lost.status_code == 422 and lost.json()["error"].startswith("the body cannot be read: Expecting value")
    assert threads["checked"] == threads["plain"] == {"finetooth-request"}
    assert threads["read"] == {"finetooth-request", "finetooth-call"}  # the second reads it from the log


@pytest.mark.skipif(find_spec("tinker") is None, reason="the package tinker is not installed")
def test_so_is_one_of_the_wire(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    read = json_parts.loads
    monkeypatch.setattr(json_parts, "loads", lambda c: (seen.append(threading.current_thread().name), read(c))[1])
    body = {"model_id": "none", "seq_id": 1, "adam_params": {"learning_rate": 0.1}, "more": [0] * reading.SMALL}
    assert post(served, "/api/v1/optim_step", body).status_code == 404
    assert seen and all(name.startswith("finetooth-request") for name in seen)


def test_outputs_are_written_in_turns() -> None:
    asked: list[int] = []

    def go_on() -> bool:
        asked.append(1)
        return True

    result = Forward(({"logprobs": np.zeros(1, np.float32)},) * (2 * ROWS_AT_ONCE + 1), loss=0.5)
    assert encoded(result, go_on) == wire.encode_forward(result) and len(asked) == 2


SETTLED = """
import gc, json
from finetooth_server.collector import collect, settle

class Part: pass

def left():
    return sum(isinstance(one, Part) for one in gc.get_objects())

settle()
begun = gc.get_stats()[2]["collections"]
rows = json.loads(json.dumps([{"tokens": [5], "targets": [6]}] * 60000))  # Python alone looks through everything for it
during = gc.get_stats()[2]["collections"] - begun
one = Part(); one.self = one; del one
gc.collect(1)
there = Part(); there.self = there; gc.collect(0); gc.collect(1); del there
before = left(); collect()
print(during, before, left(), gc.get_freeze_count() > 1000)
"""


def test_a_large_request_is_no_reason_to_look_through_all_memory() -> None:
    """In a process of its own: the collector is the process'. Without `settle` the rows bring two full collections."""
    said = subprocess.run([sys.executable, "-c", SETTLED], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["0", "1", "0", "True"]


@pytest.mark.parametrize(("settled", "guest"), [(True, False), (False, False), (False, True)])
def test_collections_that_are_asked_for_come_apart(monkeypatch: pytest.MonkeyPatch, settled: bool, guest: bool) -> None:
    """Who opens and closes models stops everybody once in a while; what is put off is bounded too."""
    clock, done = [0.0], list[float]()
    monkeypatch.setattr(gc, "get_threshold", lambda: (700, 10, NEVER if settled else 10))
    monkeypatch.setattr(gc, "collect", lambda: done.append(clock[0]))
    monkeypatch.setattr(gc, "get_objects", list)
    collector = Collector(lambda: clock[0])
    for clock[0] in (5, 6, 7, 16, 17, 18, 19, 20, 21, 90):
        collector.collect(guest=guest)
    every = [5, 6, 7, 16, 17, 18, 19, 20, 21, 90]
    assert done == ([5, 16, 20, 90] if settled else every if guest else [])


def test_much_that_is_left_is_put_away_once_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was put away is looked at again then: a model that was closed meanwhile goes with it."""
    clock, done = [0.0], list[tuple[str, float]]()
    monkeypatch.setattr(gc, "get_threshold", lambda: (700, 10, NEVER))
    for name in ("collect", "freeze", "unfreeze"):
        monkeypatch.setattr(gc, name, lambda name=name: done.append((name, clock[0])))
    left = [MUCH]
    monkeypatch.setattr(gc, "get_objects", lambda: range(left[0]))
    collector = Collector(lambda: clock[0])
    for clock[0], left[0] in ((0, 2_000), (20, MUCH + 1), (40, MUCH + 1), (20 + WHOLE, MUCH + 1)):
        collector.collect()
    whole = ["collect", "unfreeze", "collect", "freeze"]
    wanted = [("collect", 0), *((name, 20) for name in whole), ("collect", 40), *((name, 20 + WHOLE) for name in whole)]
    assert done == wanted


def test_rows_are_read_in_turns() -> None:
    count = 2 * ROWS_AT_ONCE + 3
    asked: list[int] = []

    def go_on() -> bool:
        asked.append(1)
        return False

    assert len(data_of({"data": [ROW] * count}, go_on)) == count and len(asked) == 2
    assert len(data_of({"data": [ROW] * ROWS_AT_ONCE}, go_on)) == ROWS_AT_ONCE and len(asked) == 2
    with pytest.raises(Interrupted):
        data_of({"data": [ROW] * count}, lambda: True)
