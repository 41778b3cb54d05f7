"""Turns are fair by what they take: a small call waits for a part of each other tenant's, and everybody computes what
they would compute alone."""

from __future__ import annotations

import itertools
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

from finetooth_hooks import Sampling
from finetooth_server.batches.scheduling import AWAITED, IN_VAIN, Running, Scheduler
from finetooth_server.batches.turns import SHARED_MOST
from finetooth_server.keys import Caller
from finetooth_server.limits.fairness import Shares
from finetooth_server.settings import Limits
from hypothesis import given, settings
from hypothesis import strategies as st

QUANTUM = 64
SCOPES = frozenset({"train", "sample", "read"})


class Fake:
    """Calls of a list of parts each, on models that are one number: what they compute depends on the order."""

    def __init__(self) -> None:
        self.sampling: Counter[str] = Counter()
        self.rows: dict[str, int] = {}  # of each who samples; one where nothing is said
        self.weights: dict[str, float] = {}  # of each whose calls do not weigh 1
        self._spent: Counter[str] = Counter()
        self.waiting: dict[str, list[tuple[int, Sequence[float]]]] = {}
        self.state: dict[str, float] = {}
        self.ended: dict[int, float] = {}
        self.clock = 0.0
        self.later: tuple[float, Callable[[], None]] | None = None
        self.waited = 0.0
        self.row = 1  # seconds that a row of a step takes
        self.scheduler = self.made(live=16)

    def made(self, live: int) -> Scheduler:
        """A scheduler for which a token takes a second."""
        return Scheduler(Limits(live=live), self._execute, self, clock=lambda: self.clock)

    def come(self, tenant: str, queue: str, id_: int, parts: Sequence[float]) -> None:
        self.waiting.setdefault(queue, []).append((id_, parts))
        if not self.scheduler.running(queue):
            self.scheduler.offer(queue, (tenant, 0))

    def turn(self) -> None:
        ended = self.scheduler.turn()
        if ended is not None and self.waiting[ended.queue]:
            self.scheduler.offer(ended.queue, (ended.tenant, 0))

    def pause(self, seconds: float) -> None:
        """As the server's: until something comes."""
        end = self.clock + seconds
        if self.later is not None and self.later[0] <= end:
            end = max(self.clock, self.later[0])
        self.waited += end - self.clock
        self.clock = end
        self.arrive()

    def arrive(self) -> None:
        """What was to come by now."""
        if self.later is not None and self.later[0] <= self.clock:
            (_, come), self.later = self.later, None
            come()

    def _execute(self, running: Running) -> None:
        id_, parts = self.waiting[running.queue].pop(0)
        running.call = str(id_)
        running.weight = self.weights.get(running.tenant, 1.0)
        for tokens in parts:
            if self.scheduler.asked():
                return
            self.clock += tokens
            self.state[running.queue] = self.state.get(running.queue, 0.1) * 1.1 + tokens
        self.ended[id_] = self.clock

    @property
    def tenants(self) -> set[str]:
        return set(+self.sampling)

    @property
    def calls(self) -> dict[str, int]:
        return self.rows

    def step(self) -> None:
        for tenant in self.tenants:
            rows = self.rows.get(tenant, 1)
            self.clock += rows * self.row
            self.sampling[tenant] -= rows
            self._spent[tenant] += rows

    def spent(self) -> Counter[str]:
        found, self._spent = self._spent, Counter()
        return found


PARTS = st.lists(st.integers(1, QUANTUM), min_size=1, max_size=12)
CALLS = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 1), PARTS, st.integers(0, 6)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(CALLS, st.integers(0, 40), st.integers(1, QUANTUM), st.booleans())
def test_a_small_call_waits_for_a_part_of_each_other_tenant(
    calls: list[Any], before: int, small: int, sampling: bool
) -> None:
    fake = Fake()
    if sampling:
        fake.sampling["s"] = 500
    for id_, (tenant, model, parts, turns) in enumerate(calls):
        fake.come(tenant, f"{tenant}{model}", id_, parts)
        for _ in range(turns):
            fake.turn()
    for _ in range(before):
        fake.turn()
    came = fake.clock
    fake.come("small", "small", -1, [small])
    while -1 not in fake.ended:
        fake.turn()
    assert fake.ended[-1] - came <= small + QUANTUM * (4 + sampling)
    while len(fake.scheduler):
        fake.turn()

    for queue in {f"{tenant}{model}" for tenant, model, _, _ in calls}:
        alone = Fake()
        for id_, (tenant, model, parts, _) in enumerate(calls):
            if f"{tenant}{model}" == queue:
                alone.come(tenant, queue, id_, parts)
        while len(alone.scheduler):
            alone.turn()
        assert struct.pack("d", alone.state[queue]) == struct.pack("d", fake.state[queue])
        alone.scheduler.leave()
    fake.scheduler.leave()


def test_tenants_share_by_what_calls_take_and_not_by_calls_or_models() -> None:
    fake = Fake()
    for n in range(200):
        fake.come("many", f"many{n % 4}", n, [16])
    fake.come("one", "one0", 1000, [64] * 30)
    had = Counter[str]()
    while len(had) < 2 or sum(had.values()) < 1600:
        before = dict(fake.state)
        clock = fake.clock
        fake.turn()
        for queue in fake.state:
            if fake.state[queue] != before.get(queue):
                had[queue[:-1]] += fake.clock - clock
    assert abs(had["many"] - had["one"]) <= 2 * QUANTUM
    fake.scheduler.leave()


def test_calls_that_weigh_twice_have_a_third_and_what_is_done_for_a_tenant_counts() -> None:
    """As models that are made and let go of, one after the other."""
    fake = Fake()
    fake.weights["makes"] = 2.0
    for n in range(200):
        fake.come("makes", f"makes{n % 4}", n, [16])
    fake.come("one", "one0", 1000, [16] * 100)

    def had(seconds: float) -> float:
        """Seconds of the one that makes, of so many."""
        begun, found = fake.clock, 0.0
        while fake.clock < begun + seconds:
            before, clock = dict(fake.state), fake.clock
            fake.turn()
            changed = [queue for queue in fake.state if fake.state[queue] != before.get(queue)]
            found += fake.clock - clock if changed and changed[0].startswith("makes") else 0
        return found

    assert abs(had(960) - 320) <= 32
    fake.scheduler.charge("makes", 200)
    assert had(192) <= 16  # the other one has what it was charged
    fake.scheduler.leave()


def test_a_tenants_samplings_have_as_much_as_as_many_models_of_its_own() -> None:
    """Three that are written together beside three models: half of the time; other tenants have no less."""
    fake = Fake()
    fake.rows["both"] = 3
    fake.sampling["both"] = 10**6
    for n in range(3):
        fake.come("both", f"both{n}", n, [3] * 10**4)
    fake.come("other", "other0", 9, [3] * 10**4)
    while fake.clock < 3000:
        fake.turn()
    sampled, whole = 10**6 - fake.sampling["both"], fake.clock
    assert abs(sampled - whole / 4) < 30, "half of what its tenant has, which is half"
    fake.scheduler.leave()


def test_small_calls_one_after_the_other_wait_for_one_part_each() -> None:
    """Each comes while another tenant has a part: that part ends, and the small call is next."""
    fake = Fake()
    fake.come("long", "long", 0, [QUANTUM] * 200)
    for n in range(1, 21):
        fake.turn()  # of the other: the small call comes meanwhile
        came = fake.clock
        fake.come("small", "small", n, [QUANTUM])
        fake.turn()
        assert fake.ended.get(n) == came + QUANTUM
    fake.scheduler.leave()


def test_a_token_of_sampling_counts_for_what_it_takes() -> None:
    """Four rows whose step takes as long as a part of training, beside one small call after the other: a call waits for
    one step, not for as many as have its number of tokens."""
    fake = Fake()
    fake.sampling["many"], fake.rows["many"], fake.row = 10**6, 4, QUANTUM // 4
    fake.turn()
    for n in range(20):
        came = fake.clock
        fake.come("small", "small", n, [QUANTUM])
        while n not in fake.ended:
            fake.turn()
        assert fake.ended[n] - came <= 2 * QUANTUM
    fake.scheduler.leave()


def test_what_has_no_tokens_counts_for_the_time_that_it_takes() -> None:
    """A tenant that has models made, ten times as long as another one's part each, has half of the time."""
    fake = Fake()
    for n in range(100):
        fake.come("makes", f"makes{n}", n, [10 * QUANTUM])
    fake.come("trains", "trains", 1000, [QUANTUM] * 100)
    while 1000 not in fake.ended:
        fake.turn()
    assert fake.ended[1000] <= 2 * 100 * QUANTUM + 10 * QUANTUM
    fake.scheduler.leave()


def test_a_step_is_borne_by_its_tenants_by_their_rows() -> None:
    """One row beside 63 of another tenant's has hardly had anything: its tenant's training goes on."""
    fake = Fake()
    fake.sampling.update(many=63 * 50, few=50)
    fake.rows["many"] = 63
    for _ in range(10):
        fake.turn()
    fake.come("few", "few", 0, [QUANTUM] * 5)
    fake.come("many", "many", 1, [QUANTUM] * 5)
    while 0 not in fake.ended:
        fake.turn()
    assert 1 not in fake.ended
    fake.scheduler.leave()


def test_nothing_is_saved_up_by_being_idle_and_accounts_do_not_pile_up() -> None:
    shares: Shares[str] = Shares()
    for n in range(10_000):
        name = shares.next(["busy", f"visitor{n}"])
        shares.charge(name, 10)
    assert len(shares) < 10
    had = Counter[str]()
    for _ in range(20):
        name = shares.next(["busy", "back"])
        shares.charge(name, 10)
        had[name] += 1
    assert abs(had["busy"] - had["back"]) <= 1


def test_calls_of_a_tenant_leave_places_to_others() -> None:
    fake = Fake()
    fake.scheduler = fake.made(live=4)
    for n in range(10):
        fake.come("greedy", f"greedy{n}", n, [QUANTUM] * 50)
    for _ in range(40):
        fake.turn()
    assert sum(fake.scheduler.running(f"greedy{n}") for n in range(10)) == 2
    fake.come("late", "late", 99, [2])
    before = fake.clock
    while 99 not in fake.ended:
        fake.turn()
    assert fake.ended[99] - before <= 2 + QUANTUM
    assert list(fake.scheduler.leave())


def long_call(ask: SimpleNamespace) -> tuple[str, dict[str, Any]]:
    data = ask.sent(ask.data(0, 60))
    return "forward_backward", {"data": data, "loss": "cross_entropy"}


def parts_of(service: Any, begin: threading.Event | None = None) -> list[str]:
    """The models whose parts are computed, in their order, from now on; none ends before `begin`."""
    trace: list[str] = []
    asked = service.registry.asked

    def tracing() -> bool:
        trace.append(service.writer._scheduler._at_work.queue)
        if begin is not None:
            begin.wait()
        return bool(asked())

    service.registry.asked = tracing
    return trace


def made(service: Any, ask: SimpleNamespace, who: Caller) -> str:
    call = service.create_model(who, service.open_session(who), "tiny", {}, face="test")
    ask.result(service, who, call)
    return str(call.queue)


def test_a_small_call_does_not_wait_for_the_long_one_of_another_tenant(small_parts: Any, ask: SimpleNamespace) -> None:
    service, ticks = small_parts(), itertools.count()
    service.writer._scheduler._clock = lambda: float(next(ticks))  # turns cost alike, however busy the machine is
    long, small = Caller("long", "", SCOPES), Caller("small", "", SCOPES)
    first, second = made(service, ask, long), made(service, ask, small)
    both_wait = threading.Event()  # on a busy machine the long call could be over before the small one comes
    trace = parts_of(service, both_wait)
    begun = service.submit(long, first, *long_call(ask), face="test")
    short = service.submit(small, second, "logprobs", {"data": ask.sent(ask.data(1, 1))}, face="test")
    both_wait.set()
    ask.result(service, small, short)
    ask.result(service, long, begun)
    assert trace.count(second) == 1
    assert trace.index(second) < trace.count(first) - 1  # not behind it; the long one has some six parts


def test_interleaved_calls_have_the_bits_of_calls_one_after_the_other(
    small_parts: Any, ask: SimpleNamespace, tmp_path: Any
) -> None:
    found, changes = [], []
    for folder, live in (("alone", 1), ("beside", 8)):
        service = small_parts(tmp_path / folder, limits={"live": live})
        both_wait = threading.Event()  # on a busy machine the first call could be over before the second comes
        both_wait.set()
        trace = parts_of(service, both_wait)
        callers = [Caller(name, "", SCOPES) for name in ("one", "two")]
        models = [made(service, ask, who) for who in callers]
        results = []
        for operation, arguments in (long_call(ask), ("generate", {"prompts": [[5, 6]], "sampling": {"max_tokens": 9}}),
                                     ("step", {}), ("logprobs", {"data": ask.sent(ask.data(3, 1))})):  # fmt: skip
            both_wait.clear()
            calls = [
                service.submit(who, model, operation, arguments, face="test")
                for who, model in zip(callers, models, strict=True)
            ]
            both_wait.set()
            results += [ask.result(service, who, call) for who, call in zip(callers, calls, strict=True)]
        changes.append(sum(a != b for a, b in itertools.pairwise(trace)))
        found.append(results)
        service.stop()
    assert found[0] == found[1] and changes[0] < changes[1]


def test_a_long_sampling_call_leaves_room_for_a_small_one(small_parts: Any, ask: SimpleNamespace) -> None:
    """The batch has room for four times 128 positions."""
    service = small_parts()
    long, small = Caller("long", "", SCOPES), Caller("small", "", SCOPES)
    for who in (long, small):
        service.open_sampler(who, service.open_session(who), who.tenant, base="tiny")
    one = Sampling(max_tokens=2, seed=1)
    alone = ask.result(service, small, service.sample(small, "small", [6, 7], one, seeded=True, face="test"))
    many = Sampling(max_tokens=20, n=300, seed=1, stop_ids=())
    begun = service.sample(long, "long", [5], many, seeded=True, face="test")
    while not service.writer._turns.count:
        pass
    short = service.sample(small, "small", [6, 7], one, seeded=True, face="test")
    have = ask.result(service, small, short)
    feed = service.streams._feeds[begun.id]
    assert sum(len(tokens) for tokens, _ in list(feed.written.values())) < 300 * 20 / 2
    assert have["completions"][0]["tokens"] == alone["completions"][0]["tokens"]
    completions = ask.result(service, long, begun)["completions"]
    assert len(completions) == 300 and all(len(of["tokens"]) == 20 for of in completions)
    context = service.context.engine(service.settings.models["tiny"]).generate([[5]], many)
    assert [tuple(of["tokens"]) for of in completions] == [of.tokens for of in context.completions[0]]


def test_a_tenant_with_many_sampling_calls_leaves_the_step_small_for_another(start: Any, ask: SimpleNamespace) -> None:
    """A step takes as long as what is written in it, so a tenant has `SHARED_MOST` calls while another samples."""
    service = start()
    many, one = Caller("many", "", SCOPES), Caller("one", "", SCOPES)
    for who in (many, one):
        service.open_sampler(who, service.open_session(who), who.tenant, base="tiny")
    turns, seen = service.writer._turns, list[Counter[str]]()
    step = turns.step

    def counting() -> None:
        seen.append(Counter(one.call.tenant for one in turns._writing.values()))
        step()

    turns.step = counting
    long, short = Sampling(max_tokens=200, seed=1, stop_ids=()), Sampling(max_tokens=4, seed=1, stop_ids=())
    first = service.sample(one, "one", [5], long, seeded=True, face="test")
    while not turns.count:
        pass
    others = [service.sample(many, "many", [5], short, seeded=True, face="test") for _ in range(3 * SHARED_MOST)]
    for who, call in [(one, first), *((many, call) for call in others)]:
        assert ask.result(service, who, call)["completions"]
    beside = [counts["many"] for counts in seen if counts["one"]]
    assert max(beside) == SHARED_MOST


def beside_long_turns(pauses: bool, away: float, calls: int = 60) -> tuple[Fake, float]:
    """A tenant that asks for one part of 0.1 s after the other, away for a while after each, beside one whose parts
    take ten times as long; and when it was done."""
    fake, last = Fake(), 0
    pause = fake.pause if pauses else None
    fake.scheduler = Scheduler(Limits(live=16), fake._execute, fake, clock=lambda: fake.clock, pause=pause)
    fake.come("long", "long", 0, [1.0] * 200)
    fake.come("small", "small", 1, [0.1])
    for last in range(1, calls + 1):
        while last not in fake.ended:
            fake.turn()
            fake.arrive()
        fake.later = fake.ended[last] + away, partial(fake.come, "small", "small", last + 1, [0.1])
    return fake, fake.ended[last]


def test_a_tenant_that_comes_back_at_once_is_waited_for_where_it_is_its_turn() -> None:
    """It has half of the time; where nobody is waited for, it finds a long turn begun each time."""
    took = {pauses: beside_long_turns(pauses, AWAITED / 3) for pauses in (True, False)}
    assert took[True][1] <= 2 * 60 * (0.1 + AWAITED / 3) + 2.0 < 60 * 1.0 <= took[False][1]
    for fake, _ in took.values():
        fake.scheduler.leave()


def test_who_did_not_come_is_not_waited_for_again_soon() -> None:
    fake, _ = beside_long_turns(True, 3 * AWAITED)
    assert 0 < fake.waited <= AWAITED * (6 + 60 / IN_VAIN)
    fake.scheduler.leave()
