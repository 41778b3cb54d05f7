"""All attacks, one after the other, on one server, with another tenant at work beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from attacking import connections, costs, folders, queues, strangers, texts, theft
from attacking.ground import ATTACKS, CANARY, LORA, ROW, Attack, Ground, Theirs
from attacking.judges import QUIET, Limits, Verdict, Watch, problems, times
from attacking.server import Attacked

MODULES = (costs, connections, queues, theft, folders, texts, strangers)
"""Where attacks are: importing them puts them into `ATTACKS`."""

TURNS = 3
"""Turns of another tenant that are timed before an attack; during it at least two."""
PATIENCE = 60.0
"""Seconds until another tenant's turn is given up."""
TRIES = 3
"""Times a machine may be too busy to tell."""
GROWTH = 800 * 2**20
"""Bytes that the server may hold more after all attacks than before: what caches and allocators keep. A text of 40 MB
leaves up to 115 MiB in the arena of the thread that read it, once; the next ones find it there."""


@dataclass
class Campaign:
    """How it went.

    Attributes:
        wrong: of the whole: restarts, leaks, answers 5xx, memory.
        level, end, peak: resident bytes of the server before, after, and at most.
        bound: of the server's memory, in words.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    restarts: int = 0
    level: int = 0
    end: int = 0
    peak: int = 0
    bound: str = ""
    seconds: float = 0.0

    @property
    def failed(self) -> list[Verdict]:
        """Attacks that something did not hold against."""
        return [one for one in self.verdicts if one.wrong]


def chosen(short: bool, names: Sequence[str] = ()) -> list[Attack]:
    """The attacks to run.

    Args:
        short: the short form's alone.
        names: those whose name holds one of these words.
    """
    found = [one for one in ATTACKS if one.short or not short]
    return [one for one in found if not names or any(name in one.name for name in names)]


def run(
    place: Path, attacks: Sequence[Attack], *, group: Path | None, say: Callable[[str], None], limits: Limits = QUIET
) -> Campaign:
    """Attack a new server.

    Args:
        place: an empty folder.
        group: as for `Attacked`.
        limits: of the time that others may lose by an attack.
    """
    begun = time.monotonic()
    server = Attacked(place, group)
    server.prepare()
    server.start()
    found = Campaign(bound=server.bound)
    watches: list[Watch] = []
    try:
        theirs = settle(server)
        ground = Ground(server, theirs)
        with ground.a_model() as model:  # what the server imports with its first calls is no growth
            ground.ended(
                ground.post(f"/v1/sessions/{model}/forward_backward", {"data": [ROW], "loss": "cross_entropy"})
            )
        watches.append(health := Watch("health", server.url))
        watches.append(victim := Watch("victim", server.url, server.keys["victim"], theirs.model, theirs.sampler))
        victim.wait_for(time.monotonic(), TURNS, PATIENCE)
        found.level = server.memory
        for one in attacks:
            verdict = judged(one, ground, health, victim, limits)
            found.verdicts.append(verdict)
            say(f"{'ok  ' if not verdict.wrong else 'FAIL'} {verdict.name}: {verdict.wrong or verdict.said}"
                f" [{verdict.ratio:.1f}x, health {verdict.health:.2f} s, {verdict.grown / 2**20:+.0f} MiB,"
                f" {verdict.seconds:.0f} s, {verdict.tries}]")  # fmt: skip
            if not server.alive:
                server.restarts += 1
                server.start()
        time.sleep(2.0)
        found.end, found.peak = server.memory, server.peak
    finally:
        for watch in watches:
            watch.stop()
        server.stop()
    found.restarts, found.seconds = server.restarts, time.monotonic() - begun
    found.wrong = whole(found, server, ground)
    return found


def whole(found: Campaign, server: Attacked, ground: Ground) -> list[str]:
    """What was wrong with the campaign as a whole."""
    wrong = [f"leak: {one}" for one in ground.leaks] + [
        f"an answer of the server's fault: {one}" for one in ground.failures
    ]
    if found.restarts:
        wrong.append(f"{found.restarts} restarts")
    if found.end > found.level + GROWTH:
        wrong.append(f"memory: {found.level / 2**20:.0f} MiB before, {found.end / 2**20:.0f} MiB after")
    log = server.log.read_text(errors="replace")
    for name, secret in [
        ("another tenant's name", CANARY),
        *((f"{name}'s key", key) for name, key in server.keys.items()),
    ]:
        if secret in log:
            wrong.append(f"the log holds {name}")
    return wrong


def settle(server: Attacked) -> Theirs:
    """The other tenant: a model, a checkpoint and a sampler that carry the canary where a client chooses a name."""
    nobody = Theirs("", "", "", "")
    tenant = Ground(server, nobody)

    def post(path: str, body: Any) -> Any:
        return tenant.ended(tenant.post(path, body, key="victim"))

    id_ = "theirs-0123456789"
    made = post("/v1/sessions?wait=30", {"base": tenant.base, "adapter": LORA, "id": id_, "metadata": {"note": CANARY}})
    assert made["state"] == "done", made
    row = {**ROW, "id": f"{CANARY}-row"}
    post(f"/v1/sessions/{id_}/forward_backward?wait=30", {"data": [row], "loss": "cross_entropy"})
    saved = post(f"/v1/sessions/{id_}/save?wait=30", {"name": CANARY})
    sampler = tenant.post("/v1/samplers", {"base": tenant.base}, key="victim").json()["id"]
    return Theirs(id_, sampler, saved["id"], saved["result"]["checkpoint"])


def judged(one: Attack, ground: Ground, health: Watch, victim: Watch, limits: Limits) -> Verdict:
    """An attack, again if only the machine's noise speaks against the server."""
    verdict = once(one, ground, health, victim, limits)
    while verdict.wrong and verdict.tries < TRIES and ground.server.alive and not verdict.got_through:
        verdict = replace(once(one, ground, health, victim, limits), tries=verdict.tries + 1)
    return verdict


def once(one: Attack, ground: Ground, health: Watch, victim: Watch, limits: Limits) -> Verdict:
    """An attack between two quiet times."""
    quiet_from = time.monotonic()
    victim.wait_for(quiet_from, TURNS, PATIENCE)
    begun, memory = time.monotonic(), ground.server.memory
    said, got_through = "", ""
    try:
        said = one.run(ground)
    except Exception as error:  # a defence, or the server, is not there
        got_through = f"{type(error).__name__}: {error}"[:300]
    victim.wait_for(begun, 2, PATIENCE)
    ended = time.monotonic()
    wrong = [got_through] if got_through else []
    if not ground.server.alive:
        wrong.append(f"the server ended: code {ground.server.process.returncode}")
    quiet = [turn for turn in victim.between(quiet_from, begun) if turn.begun >= quiet_from]
    during, asked = victim.between(begun, ended), health.between(begun, ended)
    wrong += problems(asked, quiet, during, limits)
    return Verdict(
        one.name,
        one.what,
        "; ".join(wrong),
        said,
        max((answer.seconds for answer in asked), default=0.0),
        times(quiet),
        times(during),
        ground.server.memory - memory,
        ended - begun,
        got_through=bool(got_through),
    )
