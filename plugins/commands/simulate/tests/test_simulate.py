"""What a run would send, held against a ring that is walked hop by hop."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from finetooth_hooks import RecipeError, Strategy, UserError
from finetooth_hooks.protocols import Foreseen, Sharding, Traffic
from finetooth_kit import parametrize_with_checks
from finetooth_simulate.command import command, foreseen, strategy_of
from finetooth_simulate.links import Link, Machines, sent
from finetooth_simulate.overlap import Overlap, Pass, pass_of


@parametrize_with_checks("finetooth_simulate.plugin")
def test_checks(check: Any) -> None:
    check()


def walked(parts: int, peers: int, *, summed: bool) -> int:
    """Parts that one peer sends until each has what it wants: of a sum, reduced and then spread; else of everybody's
    arrays. Every peer begins with `parts` parts, as many as there are peers."""
    assert parts == peers
    count = 0
    if summed:
        held = [{part: {peer} for part in range(parts)} for peer in range(peers)]
        for turn in range(peers - 1):
            moved = [(peer, (peer - turn) % peers) for peer in range(peers)]
            for peer, part in moved:
                held[(peer + 1) % peers][part] |= held[peer][part]
            count += 1
        done = [{part for part, of in held[peer].items() if len(of) == peers} for peer in range(peers)]
    else:
        done = [{peer} for peer in range(peers)]
    while any(len(of) < parts for of in done):
        before = [set(of) for of in done]
        for peer in range(peers):
            missing = before[peer] - before[(peer + 1) % peers]
            done[(peer + 1) % peers] |= set(sorted(missing)[:1])
        count += 1 if summed else parts
    return count


@pytest.mark.parametrize("peers", [2, 3, 4, 7])
@pytest.mark.parametrize("summed", [True, False])
def test_bytes_on_the_link_are_those_of_a_ring(peers: int, summed: bool) -> None:
    size = 12 * peers
    found = sent(Traffic(every=5, sent=size, peers=peers, summed=summed), Link(8.0, 0.0), 11)
    assert (found.exchanges, found.given) == (3, 3 * size)
    assert found.wire == 3 * walked(peers, peers, summed=summed) * size / peers
    assert found.seconds == pytest.approx(found.wire * 1514 / 1448)  # a byte a second, of packets of 1,514 bytes


def test_the_last_step_of_fragments_sends_everything() -> None:
    """Eleven steps, a quarter after steps 5 and 10, four quarters after the last."""
    found = sent(Traffic(every=5, sent=12, peers=2, last=48), Link(8.0, 0.0), 11)
    assert (found.exchanges, found.given, found.wire) == (3, 72, 72)


def test_every_passing_on_waits_half_a_round_trip() -> None:
    found = sent(Traffic(every=1, sent=0, peers=4), Link(1e9, 0.08), 10)
    assert found.seconds == pytest.approx(10 * 6 * 0.04)


class Commands:
    """A context with a recipe of 1,000 numbers and 250 steps."""

    said_json = False

    def __init__(self, scale: dict[str, Any], words: frozenset[str] = frozenset({"traffic"})) -> None:
        train = SimpleNamespace(batch_size=32, micro_batch_tokens=100, precision="bf16", gradient_checkpointing=True)
        memory = SimpleNamespace(total=3_000_000_000)
        plan = SimpleNamespace(recipe={"scale": scale}, total_steps=250, train=train, memory=memory)
        facts = SimpleNamespace(
            layers=3, vocab_size=40, hidden_size=10, tied=True, kv_heads=2, head_dim=5, linear_targets=("q", "k", "v")
        )
        base = SimpleNamespace(model=SimpleNamespace(parameters=5000), facts=facts, stored=None)
        request = SimpleNamespace(trains=SimpleNamespace(parameters=1000, base_frozen=True), base=base)
        prepared = SimpleNamespace(report=SimpleNamespace(tokens=900, examples=30))
        decided = SimpleNamespace(plan=plan, request=request, prepared=prepared)
        self.rows = lambda recipe, overrides: SimpleNamespace(decided=decided)
        entry = Strategy(name="any", build="any:build", capabilities=words)
        self.catalog = SimpleNamespace(get=lambda kind, name, setting: SimpleNamespace(entry=entry))

    def build(self, kind: str, pick: Any, *, setting: str = "") -> Any:
        every = 1 if pick == "ddp" else 100
        return SimpleNamespace(traffic=lambda parameters, world: Traffic(every, 4 * parameters, world))


class Grouped(Commands):
    """With a strategy of pairs that compute the same rows, and send something inside of a pair."""

    def __init__(self, scale: dict[str, Any]) -> None:
        super().__init__(scale, frozenset({"traffic", "shards"}))

    def build(self, kind: str, pick: Any, *, setting: str = "") -> Any:
        def traffic(parameters: int, world: int, *, run: Foreseen) -> Traffic:
            pairs = Traffic(1, run.positions, 2, False, what="states")
            return Traffic(1, 4 * parameters, world // 2, span=world, also=(pairs, Traffic(1, 9, 1, what="nothing")))

        return SimpleNamespace(traffic=traffic, sharding=lambda world: Sharding(1, 1, 1, positions=2))


def test_a_recipe_is_compared_with_ddp() -> None:
    done = CliRunner().invoke(
        command, ["r.yaml", "--link", "100Mbit", "--rtt", "80ms", "--islands", "4", "--json"], obj=Commands({}),
        catch_exceptions=False,
    )  # fmt: skip
    found = json.loads(done.output)
    assert (found["strategy"], found["ranks"], found["sent"]["exchanges"]) == ("diloco", 4, 3)
    assert found["sent"]["given"] == 3 * 4000 and found["ddp"]["given"] == 250 * 4000
    assert found["times_less"] == {"bytes": 83.33, "seconds": 83.33}
    shown = CliRunner().invoke(command, ["r.yaml", "--link", "1Gbit", "--islands", "2"], obj=Commands({}))
    assert "83.3 times fewer bytes" in shown.output


def test_islands_are_those_of_the_recipe_or_of_the_command() -> None:
    picked = {"name": "diloco", "num_islands": 2, "outer_lr": 0.5, "within": {"name": "fsdp", "replicas": 2}}
    assert strategy_of({"strategy": picked, "devices": 4, "nodes": 2}, None) == (picked, 8, 4)
    assert strategy_of({"strategy": picked, "devices": 4}, 16) == ({"name": "diloco", "outer_lr": 0.5}, 16, 1)
    with pytest.raises(RecipeError, match="give --islands"):
        strategy_of({}, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--link", "fast", "--islands", "2"], "--link='fast' is not a number with a unit"),
        (["--link", "0Mbit", "--islands", "2"], "--link is 0"),
        (["--link", "1Mbit", "--within", "0Mbit", "--islands", "2"], "--within is 0"),
        (["--link", "1Mbit", "--rtt", "8", "--islands", "2"], "--rtt='8' is not a number with a unit"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(command, ["r.yaml", *arguments], obj=Commands({}), catch_exceptions=False)


def test_a_strategy_that_says_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="does not say what it sends"):
        CliRunner().invoke(
            command, ["r.yaml", "--link", "1Gbit", "--islands", "2"], obj=Commands({}, frozenset()),
            catch_exceptions=False,
        )  # fmt: skip


def test_what_a_step_puts_through_the_model() -> None:
    """32 rows of 30 tokens among four ranks: 240 tokens, which are three micro-batches of 100."""
    decided = Commands({}).rows("r.yaml", ()).decided
    assert foreseen(decided, 4) == Foreseen(
        weights=12_000, outside=800, layers=3, passes=3, size=2, positions=80, hidden=10, keys=20, linears=3,
        recomputes=True,
    )  # fmt: skip
    decided.request.base.stored = SimpleNamespace(bytes_per_weight=0.5)
    assert foreseen(decided, 4).weights == 4_600 // 2 + 2 * (400 + 1_000)  # of layers; of the others and the adapter
    assert foreseen(decided, 64).passes == 1


def test_an_exchange_inside_a_machine_goes_over_its_link() -> None:
    """Four ranks on each machine, of which two neighbours exchange; four that lie among eight; three neighbours, whose
    groups do not fit into machines."""
    slow, fast = Link(1.0, 1.0), Link(2.0, 0.0)
    machines = Machines(4, slow, fast)
    assert machines.link(Traffic(1, 1, 2)) is machines.link(Traffic(1, 1, 2, span=4)) is fast
    assert machines.link(Traffic(1, 1, 4, span=8)) is machines.link(Traffic(1, 1, 3)) is slow


def test_groups_of_ranks_are_shown_with_their_links_and_the_memory_of_a_rank() -> None:
    """Sixteen ranks in pairs, four on a machine: eight pairs share 32 rows of 30 tokens, two micro-batches of 60."""
    scale = {"devices": 4, "nodes": 4, "strategy": "pairs"}
    arguments = ["r.yaml", "--link", "8Mbit", "--within", "80Mbit", "--steps", "1"]
    done = CliRunner().invoke(command, [*arguments, "--json"], obj=Grouped(scale), catch_exceptions=False)
    found = json.loads(done.output)
    between, inside = found["parts"]
    assert (between["what"], between["peers"], between["within"]) == ("gradients", 8, False)
    assert (inside["what"], inside["peers"], inside["within"], inside["given"]) == ("states", 2, True, 60)
    assert between["seconds"] == pytest.approx(2 * 7 / 8 * 4000 * 1514 / 1448 / 1e6)
    assert inside["seconds"] == pytest.approx(60 * 1514 / 1448 / 1e7)
    assert found["sent"]["seconds"] == between["seconds"] + inside["seconds"]
    assert (found["ranks"], found["memory"]) == (16, 3_000_000_000)
    shown = CliRunner().invoke(command, arguments, obj=Grouped(scale), catch_exceptions=False).output
    assert "states, 2 ranks of a machine" in shown and "a rank takes 3.00 GB of memory" in shown


def test_every_call_waits_for_the_link() -> None:
    found = sent(Traffic(every=1, sent=0, peers=4, summed=False, calls=5), Link(1e9, 0.08), 10)
    assert found.seconds == pytest.approx(10 * 5 * 3 * 0.04)


THREE = Pass(3, layer=(2, 5), head=(1, 2), gathered=(3, 3), outside=(4, 4), summed=6, outside_summed=7)


@pytest.mark.parametrize(
    ("one", "seconds"),
    [
        # forward: outside 4, layer one 3, two layers of max(2, 3), the last 2, the head 1. Back: outside 4, layer three
        # behind the head max(2, 3), max(5, 3), max(5, 3 + 6), max(5, 6), and the gradients of the first 6 and outside 7
        (THREE, (4 + 3 + 6 + 2 + 1) + (4 + 3 + 5 + 9 + 6 + 6 + 7)),
        # a fast link: all but the ends hides
        (Pass(3, (20, 50), (1, 2), (3, 3), (4, 4), 6, 7), (4 + 3 + 60 + 1) + (4 + 3 + 150 + 6 + 7)),
        # layers that are kept
        (Pass(3, (2, 5), (1, 2), (3, 0), (4, 4), 6, 7), (4 + 3 + 6 + 2 + 1) + (4 + 2 + 5 + 6 + 6 + 6 + 7)),
        (Pass(1, (2, 5), (1, 2), (3, 3), (4, 4), 6, 7), (4 + 3 + 2 + 1) + (4 + 3 + 5 + 6 + 7)),
    ],
)  # fmt: skip
def test_a_layer_takes_what_lasts_longer_its_computing_or_what_comes_meanwhile(one: Pass, seconds: float) -> None:
    assert one.lasts() == seconds


def test_what_does_not_hide_is_what_a_step_takes_beyond_its_computing() -> None:
    """24 s computed and 9 + 9 + 8 + 18 + 7 = 51 s given in 56 s: 19 s hide, in each of two passes."""
    assert (THREE.computing, THREE.given) == (24, 51)
    assert Overlap.of(THREE, 2, 10) == Overlap(step=2 * 56 + 10, computing=48, link=112, hidden=38)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_pass_is_made_of_what_the_strategy_says(kept: bool, frozen: bool) -> None:
    """Two ranks of 4 layers of 1,000 numbers in 2 bytes, and 500 outside: a rank gives 1,000 bytes of a layer and 500
    outside, a byte a second and the headers. Ten positions at 20 operations a second: a second a number of a layer."""
    trained = 40 if frozen else 4500
    gradients = 4 * trained // 2
    again = 500 if kept else 4500
    run = Foreseen(weights=9000, outside=1000, layers=4, passes=3, size=2, positions=10, recomputes=frozen)
    traffic = Traffic(1, 3 * (4500 + again + gradients), 2, False)
    one = pass_of(traffic, run, trained, head=500, divided=1, rate=20.0, link=Link(8.0 * 1514 / 1448, 0.0))
    assert (one.layers, one.layer, one.head) == (4, (1000, 2000), (500, 500 if frozen else 1000))
    assert one.gathered == pytest.approx((1000, 0 if kept else 1000)) and one.outside == pytest.approx((500, 500))
    assert one.summed == pytest.approx(20 if frozen else 2000)
    assert one.outside_summed == pytest.approx(0 if frozen else 1000)
    assert one.given == pytest.approx(traffic.sent / 3)


def test_a_strategy_that_gathers_fewer_bytes_gathers_them_in_both_directions() -> None:
    run = Foreseen(weights=9000, outside=1000, layers=4, passes=1, size=2, positions=10)
    one = pass_of(Traffic(1, 4000 + 80, 2, False), run, 40, head=0, divided=1, rate=1.0, link=Link(8.0, 0.0))
    assert one.gathered[0] == one.gathered[1] > 0 and one.outside[0] == one.outside[1]
    assert one.given == pytest.approx(4080 * 1514 / 1448)


class Gathering(Commands):
    """With a strategy that divides everything, and another exchange of 100 bytes."""

    def __init__(self, scale: dict[str, Any]) -> None:
        super().__init__(scale, frozenset({"traffic", "shards"}))

    def build(self, kind: str, pick: Any, *, setting: str = "") -> Any:
        def traffic(parameters: int, world: int, *, run: Foreseen) -> Traffic:
            sent = run.passes * (2 * run.weights + 4 * parameters) // world
            return Traffic(1, sent, world, False, also=(Traffic(1, 100, 2, what="others"),))

        return SimpleNamespace(traffic=traffic, sharding=lambda world: Sharding(world, world, world))


class Islands(Commands):
    """With a strategy whose islands hold a whole model each; what is asked what it divides fails, as DiLoCo does."""

    def __init__(self, scale: dict[str, Any]) -> None:
        super().__init__(scale, frozenset({"traffic"}))

    def build(self, kind: str, pick: Any, *, setting: str = "") -> Any:
        def sharding(world: int) -> Sharding:
            raise AttributeError("sharding")

        return SimpleNamespace(traffic=lambda *given: Traffic(1, 10, 2), sharding=sharding, capabilities=frozenset())


def test_what_hides_is_said_with_what_is_assumed() -> None:
    scale = {"devices": 4, "strategy": "gathering"}
    arguments = ["r.yaml", "--link", "8Mbit", "--steps", "1", "--compute"]
    done = CliRunner().invoke(command, [*arguments, "1Gflop", "--json"], obj=Gathering(scale), catch_exceptions=False)
    found = json.loads(done.output)
    given = 3 * (2 * 12_000 + 4_000) // 4 * 3 + 100
    overlap = found["overlap"]
    assert overlap["link"] == pytest.approx(given * 1514 / 1448 / 1e6, rel=1e-3)
    assert overlap["step"] == pytest.approx(overlap["computing"] + overlap["link"] - overlap["hidden"])
    assert 0 < overlap["hidden"] < overlap["computing"]
    shown = CliRunner().invoke(command, [*arguments, "1Gflop"], obj=Gathering(scale), catch_exceptions=False).output
    assert ", 1 step\n" in shown and ", 1 steps" not in shown
    assert "of computing, behind which" in shown and "one ahead" in " ".join(shown.split())
    whole = ("1Tflop", Grouped(scale), "leave it out"), ("1Tflop", Islands(scale), "leave it out")
    for rate, scaled, said in (("0Gflop", Gathering(scale), "is 0"), *whole):
        with pytest.raises(UserError, match="--compute") as refusal:
            CliRunner().invoke(command, [*arguments, rate], obj=scaled, catch_exceptions=False)
        assert said in str(refusal.value)
