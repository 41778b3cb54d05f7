"""Floods of cheap requests: rates by clocks that the tests move, and what a server answers who comes too often."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import finetooth
import httpx2 as httpx
import pytest
from finetooth_hooks import Datum
from finetooth_server import client_sessions
from finetooth_server.audit import Audit, audit_key, verify
from finetooth_server.batches import streams
from finetooth_server.faults import TooMuch, Unknown
from finetooth_server.keeping.records import Records, sessions
from finetooth_server.keys import Caller, Keys
from finetooth_server.limits import admission as admission_module
from finetooth_server.limits.admission import ASKED, LONGEST, PATIENCE, RECENT, Admission
from finetooth_server.limits.connections import BoundedConnection
from finetooth_server.limits.rates import DEBT, NAMES, Rates, network_of
from finetooth_server.refusals import CAUSES, Refusals
from finetooth_server.settings import Limits, Settings
from sqlalchemy import event, select

ME = Caller("local", "", frozenset({"train", "sample", "read"}))


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- rates ------------------------------------------------------------------------------------------------------------


def test_a_rate_is_a_token_bucket() -> None:
    """Against a bucket that is filled step by step, as textbooks have it, for random arrivals."""
    dice = random.Random(0)
    for _ in range(40):
        rate, burst, clock = dice.uniform(0.5, 50), dice.randint(1, 20), Clock()
        rates, bucket, last = Rates(rate, burst, clock), float(burst), clock.now
        for _ in range(200):
            clock.now += dice.expovariate(2 * rate)
            bucket, last = min(burst, bucket + (clock.now - last) * rate), clock.now
            passes = bucket >= 1 - 1e-6
            assert (rates.delay("one") <= 1e-6 / rate) == passes
            if passes:
                bucket -= 1
                rates.take("one")


def test_tokens_that_are_taken_before_they_come_are_given_one_after_the_other() -> None:
    clock = Clock()
    rates = Rates(4, 2, clock)
    assert [rates.take("one") for _ in range(5)] == pytest.approx([0, 0, 0.25, 0.5, 0.75])
    assert rates.take("another") == 0
    for _ in range(10**4):
        rates.take("one")
    assert rates.delay("one") <= DEBT + 0.26, "what a flood took keeps its address out for long"


def test_a_bounded_number_of_names_is_remembered() -> None:
    """Those that are full are forgotten first, then those that soon will be: who came most often stays for longest."""
    clock = Clock()
    rates = Rates(1, 1, clock)
    for _ in range(8):
        rates.take("often")
    for n in range(3 * NAMES):
        rates.take(str(n))
    assert len(rates) <= NAMES and rates.delay("often") == 8
    clock.now += 100
    rates.take("new")
    for n in range(NAMES):
        rates.take(f"later {n}")
    assert len(rates) <= NAMES and rates.delay("often") == 0


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("a socket", "a socket"),
    ],
)
def test_addresses_that_one_client_has_together_share_a_name(host: str, name: str) -> None:
    assert network_of(host) == name


# --- tenants ----------------------------------------------------------------------------------------------------------


def test_who_has_the_server_alone_is_not_held_up() -> None:
    clock = Clock()
    found = Admission(Limits(requests=10), 100, clock)
    for _ in range(1000):
        assert found.begin("one") == 0
        found.end("one")


def test_beside_others_requests_begin_at_a_rate_and_those_that_would_wait_for_long_are_refused() -> None:
    clock = Clock()
    found = Admission(Limits(requests=10), 10**6, clock)
    found.begin("other")
    delays = []
    with pytest.raises(TooMuch, match="more than 10 requests a second while others are at work") as caught:
        while True:
            delays.append(found.begin("one"))
    assert delays == pytest.approx([0.0] * 10 + [n / 10 for n in range(1, len(delays) - 9)], abs=1e-6)
    assert PATIENCE - 0.11 < delays[-1] <= PATIENCE and caught.value.after == 6
    clock.now += 1
    assert [found.begin("one") > 4 for _ in range(9)] == [True] * 9
    clock.now -= 0.2
    with pytest.raises(TooMuch):
        found.begin("one")
    assert found.begin("other") == 0, "another one pays for it"


def test_others_are_at_work_while_they_wait_for_answers_and_shortly_after() -> None:
    clock = Clock()
    found = Admission(Limits(), 100, clock)
    found.begin("other")
    clock.now += 100
    assert found.others_at_work("one") and not found.others_at_work("other")
    found.end("other")
    clock.now += RECENT - 0.1
    found.begin("one")
    assert found.others_at_work("one") and found.others_at_work("other")
    clock.now += 0.2
    assert not found.others_at_work("one")
    found.end("one")


def test_a_tenant_has_so_many_requests_under_way_and_leaves_connections_to_others() -> None:
    for limits, most, allowed in ((Limits(connections=5), 100, 5), (Limits(), 30, 20)):
        found = Admission(limits, most, Clock())
        for _ in range(allowed):
            found.begin("one")
        with pytest.raises(TooMuch, match=f"{allowed} requests are under way"):
            found.begin("one")
        found.begin("other")
        found.end("one")
        assert found.begin("one") >= 0


def test_a_key_is_known_by_its_hash_until_it_is_not_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_module, "KEYS", 3)
    found = Admission(Limits(), 100)
    found.learn("ft_a_b", "vision")
    assert found.tenant("ft_a_b") == "vision" and found.tenant("ft_a_c") == ""
    assert "ft_a_b" not in repr(vars(found))
    found.forget("ft_a_b")
    assert found.tenant("ft_a_b") == ""
    for n in range(5):
        found.learn(str(n), "search")
    assert [found.tenant(str(n)) for n in range(5)] == ["", "", "search", "search", "search"]


# --- strangers --------------------------------------------------------------------------------------------------------


def test_strangers_of_an_address_are_suspected_after_some_and_forgiven_with_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admission_module, "HELD", 0.0)
    clock = Clock()
    found = Admission(Limits(strangers=2), 100, clock)
    for _ in range(8):
        assert not found.suspects("10.0.0.7")
        found.note_stranger("10.0.0.7")
    assert found.suspects("10.0.0.7") and not found.suspects("10.0.0.8")
    assert asyncio.run(found.refuse("10.0.0.7")).after == 1
    clock.now += 0.5
    assert not found.suspects("10.0.0.7")


def test_what_anybody_may_ask_is_answered_at_a_rate_and_never_late() -> None:
    clock = Clock()
    found = Admission(Limits(), 100, clock)
    delays = [found.ask("10.0.0.7") for _ in range(1000)]
    at_once, later = int(ASKED), [min(n / ASKED, LONGEST) for n in range(1, 1000 - int(ASKED) + 1)]
    assert delays == pytest.approx([0.0] * at_once + later, abs=1e-6)
    assert found.ask("10.0.0.8") == 0, "one address keeps another one waiting"
    assert found.begin("one") == 0 and not found.suspects("10.0.0.7")
    for _ in range(100):  # as often as who looks after a server asks
        clock.now += 0.2
        assert found.ask("10.0.0.9") == 0


def test_answers_are_held_back_for_a_bounded_number_of_strangers() -> None:
    async def refuse_all() -> tuple[int, int]:
        found = Admission(Limits(), 100)
        asked = [asyncio.create_task(found.refuse("10.0.0.7")) for _ in range(admission_module.HOLDS + 5)]
        await asyncio.sleep(0.05)
        early = sum(one.done() for one in asked)
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return early, len(found._holding)

    assert asyncio.run(refuse_all()) == (5, 0)


def test_ids_of_keys_are_asked_for_once_a_second(tmp_path: Path) -> None:
    clock = Clock()
    records = Records(Settings(tmp_path, {}).database_url)
    found = Keys(records, clock)
    key, asked = found.create("vision"), []
    event.listen(records.engine, "before_cursor_execute", lambda *arguments: asked.append(arguments[2]))
    id_ = key.split("_")[1]
    for _ in range(100):
        assert found.named_by(key) == found.named_by(f"tml-{key}") == found.named_by(f"ft_{id_}_wrong") == id_
        assert found.named_by("ft_0123456789ab_00") == found.named_by("nonsense") == found.named_by("") == ""
    assert len(asked) == 1
    later = found.create("search")
    clock.now += 1.1
    assert found.named_by(later) == later.split("_")[1]
    records.close()


# --- what they leave --------------------------------------------------------------------------------------------------


def test_refusals_of_one_cause_are_counted_in_the_record(tmp_path: Path) -> None:
    key = audit_key(tmp_path)
    audit = Audit(tmp_path / "audit.jsonl", key)
    refusals = Refusals(audit)
    for _ in range(2000):
        refusals.add("GET unknown", "", "401")
    refusals.add("GET unknown", "vision", "429")
    refusals.flush()
    refusals.flush()
    refusals.add("GET unknown", "", "401")
    audit.close()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(one["tenant"], one["outcome"]) for one in lines] == [
        ("", "401"), ("vision", "429"), ("", "401, 1999 more"), ("", "401"),
    ]  # fmt: skip
    assert verify(tmp_path / "audit.jsonl", key=key).lines == 4


def test_causes_of_refusals_do_not_fill_the_memory(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl", audit_key(tmp_path))
    refusals = Refusals(audit)
    for n in range(3 * CAUSES):
        refusals.add(f"GET {n}", "", "401")
        refusals.add(f"GET {n}", "", "401")
    assert len(refusals._more) <= CAUSES
    refusals.flush()
    audit.close()
    lines = [json.loads(line)["outcome"] for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert sorted(lines) == ["401"] * 3 * CAUSES + ["401, 1 more"] * 3 * CAUSES


def test_one_heartbeat_in_a_while_is_written_down(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    clock.now = client_sessions.now()  # the pruner has the true clock, and would end a session that is decades silent
    monkeypatch.setattr(client_sessions, "now", clock)
    service = start()
    session = service.open_session(ME)
    written: list[float] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE sessions"):
            written.append(clock.now)

    event.listen(service.records.engine, "before_cursor_execute", note)
    for _ in range(600):
        clock.now += 0.1
        service.note_contact(ME, session, heartbeat=True)
    assert len(written) == 4 and max(b - a for a, b in itertools.pairwise(written)) < 15.2
    last = written[-1]
    with pytest.raises(Unknown):
        service.note_contact(Caller("other", "", ME.scopes), session, heartbeat=True)
    with service.records.read() as connection:
        assert connection.scalar(select(sessions.c.seen).where(sessions.c.id == session)) == last
    service.finish_session(ME, session)
    with pytest.raises(Unknown):
        service.note_contact(ME, session, heartbeat=True)


def test_heartbeats_are_written_more_often_where_sessions_may_be_silent_for_a_short_time_only(start: Any) -> None:
    assert start(limits={"silent": 8.0})._beat_every == 2.0


def test_streams_of_a_tenant_share_their_looks(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 streams of one call look as often in a second as one that has 100 looks in it, and miss nothing."""
    rested: list[float] = []
    sleep = asyncio.sleep

    async def rest(seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():  # servers of other tests rest, too
            await sleep(seconds)
            return
        rested.append(seconds)
        await sleep(0)

    monkeypatch.setattr(streams.asyncio, "sleep", rest)
    service = start()
    caller = Caller("vision", "", ME.scopes)
    fetch = service.log.fetch
    monkeypatch.setattr(service.log, "fetch", lambda who, id_: _Waits() if id_ == "call" else fetch(who, id_))

    async def follow(others: int) -> list[int]:
        with service.streams.place(caller):
            held = [service.streams.place(caller) for _ in range(others)]
            for one in held:
                one.__enter__()
            seen: list[int] = []
            following = service.streams.follow(caller, "call")
            for token in range(6):
                service.streams.write("call", 0, token, 0.0)
                service.streams.ring("call")
                seen += (await anext(following)).tokens
            await following.aclose()
            for one in held:
                one.__exit__(None, None, None)
        service.streams._feeds.clear()
        return seen

    assert asyncio.run(follow(0)) == list(range(6)) and not rested
    assert asyncio.run(follow(63)) == list(range(6))
    assert rested == [63 / streams.LOOKS] * 5


class _Waits:
    """A call that is not finished."""

    state = "queued"


# --- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(serve: Any, recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(admission_module, "HELD", 0.01)
    limits = Limits(requests=20, strangers=1, connections=8)
    server = serve(Settings(tmp_path / "server", {"tiny": recipe}, limits=limits))
    server.one, server.other = (server.service.keys.create(tenant) for tenant in ("vision", "search"))
    yield server


def test_who_makes_keys_up_is_told_to_wait_and_nobody_else_of_that_address(served: Any) -> None:
    """Also a key that nobody used so far is taken."""

    http, begun = httpx.Client(base_url=served.url, timeout=60), time.monotonic()

    def ask(key: str) -> httpx.Response:
        return http.get("/v1/models", headers={"X-API-Key": key})

    asked: list[str] = []
    found = [ask(f"ft_{n:012x}_{n:064x}") for n in range(4)]
    assert [one.status_code for one in found] == [401] * 4
    event.listen(served.service.records.engine, "before_cursor_execute", lambda *all_: asked.append(all_[2]))
    found = [ask(f"ft_{n:012x}_{n:064x}") for n in range(4, 40)]
    told = [one for one in found if one.status_code == 429]
    passed = int(time.monotonic() - begun) + 1
    assert len(told) >= 36 - passed and {one.status_code for one in found} <= {401, 429}
    assert told[0].headers["retry-after"] == "1"
    assert told[0].json() == {"error": "too many requests without a valid API key (send a valid key)"}
    of_keys = [one for one in asked if "FROM keys" in one]
    assert len(of_keys) <= 2 * passed + 1, f"{len(of_keys)} looks into the database for 36 keys that there are not"
    assert ask(served.one).status_code == ask(f"tml-{served.other}").status_code == 200
    begun = time.monotonic()
    guessed = [ask(served.one[:-4] + f"{n:04x}").status_code for n in range(12)]
    assert guessed.count(429) >= 12 - 4 - int(time.monotonic() - begun) - 1, "secrets can be tried without end"
    assert ask(served.one).status_code == 200
    served.service.keys.revoke(served.one.split("_")[1])
    assert ask(served.one).status_code in (401, 429)
    served.service.refusals.flush()
    record = [json.loads(line) for line in (served.service.settings.folder / "audit.jsonl").read_text().splitlines()]
    refused = [one["outcome"] for one in record if one["outcome"][:3] in ("401", "429")]
    assert len(refused) <= 5 and sum("more" in one for one in refused) == 2, refused
    http.close()


def test_who_asks_for_health_again_and_again_waits_and_reaches_no_thread(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers say that it works, also those that were held back; one count of calls serves them all."""
    asked, counted, slept = [], [], []
    monkeypatch.setattr(Admission, "ask", lambda self, name: asked.append(name) or (0.01 if len(asked) > 3 else 0.0))
    real, rest = type(served.service.log).count_waiting, asyncio.sleep
    monkeypatch.setattr(type(served.service.log), "count_waiting", lambda log: counted.append(1) or real(log))
    monkeypatch.setattr("finetooth_server.log.now", lambda: 1.8e9)

    async def sleep(seconds: float, *more: Any) -> None:
        slept.append(seconds)
        await rest(seconds, *more)

    monkeypatch.setattr("finetooth_server.guard.asyncio.sleep", sleep)
    for _ in range(6):
        answer = httpx.get(f"{served.url}/health")
        assert answer.status_code == 200 and answer.json()["status"] == "ok"
    assert set(asked) == {"127.0.0.1"} and len(asked) == 6
    assert slept.count(0.01) == 3 and len(counted) == 1


def test_beside_others_a_tenant_is_told_when_to_come_again_and_clients_do(served: Any) -> None:
    async def flood() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=served.url, headers={"X-API-Key": served.one}, timeout=60) as http:
            await http.get("/v1/models")
            await _ask(served, served.other)
            return await asyncio.gather(*(http.get("/v1/models") for _ in range(40)))

    found = asyncio.run(flood())
    told = [one for one in found if one.status_code == 429]
    # how many are told depends on how quickly those before them are answered
    assert {one.status_code for one in found} == {200, 429}
    assert all(int(one.headers["retry-after"]) >= 1 for one in told)
    assert "requests are under way (wait until some are answered)" in told[0].text
    assert httpx.get(f"{served.url}/v1/models", headers={"X-API-Key": served.other}, timeout=60).status_code == 200
    with finetooth.Client(served.url, served.one, patience=120) as client:
        session = client.session("tiny")
        for _ in range(4):
            httpx.get(f"{served.url}/v1/models", headers={"X-API-Key": served.other}, timeout=60)
            session.forward_backward([Datum.from_tokens(range(5, 14))])
        assert session.step().step == 1


async def _ask(served: Any, key: str) -> None:
    async with httpx.AsyncClient(base_url=served.url, headers={"X-API-Key": key}, timeout=60) as http:
        await http.get("/v1/models")


def test_who_sends_noise_waits_for_the_answer(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(BoundedConnection, "_noise", Rates(1, 2, clock))
    monkeypatch.setattr("finetooth_server.limits.connections.HELD", 0.5)

    def send() -> bytes:
        with socket.create_connection(("127.0.0.1", served.port), timeout=0.25) as connection:
            connection.sendall(b"\x00\xff nonsense\r\n\r\n")
            try:
                return connection.recv(100)
            except TimeoutError:
                connection.settimeout(20)
                return b"later: " + connection.recv(100)

    found = [send() for _ in range(4)]
    assert [one.startswith(b"later: HTTP/1.1 400 ") for one in found] == [False, False, True, True]
    clock.now += 100
    assert send().startswith(b"HTTP/1.1 400 ")
    assert httpx.get(f"{served.url}/health").status_code == 200


def test_rates_are_flags_and_are_shown(served: Any, tmp_path: Path) -> None:
    from click.testing import CliRunner
    from finetooth_server.commands.serve import command

    shown = CliRunner().invoke(command, ["status", "--folder", str(tmp_path / "server")]).output
    for flag, value in (("--tenant-requests", 20), ("--tenant-connections", 8), ("--address-requests", 1)):
        assert f"{flag} {value} " in shown
    limits = httpx.get(f"{served.url}/v1/limits", headers={"X-API-Key": served.one}).json()["limits"]
    assert (limits["requests"], limits["connections"], limits["strangers"]) == (20, 8, 1)
