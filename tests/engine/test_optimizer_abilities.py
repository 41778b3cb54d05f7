"""What an engine does for optimizers that ask for more than a step: averages, updates inside backward, layers in turn,
weights in bf16 without copies, states kept elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import Datum, EngineError, NotFinite, PlanError
from finetooth_hooks.engine import StepSettings
from finetooth_kit import FakeContext, entries_of
from finetooth_kit.losses import WEIGHTED_NLL
from finetooth_kit.torch_request import FACTS, VOCABULARY, TinyLlamaLoader
from toy_numpy.making import request

torch = pytest.importorskip("torch")
pytest.importorskip("finetooth_torch")
BRINGING = ("standard", "schedules", "muon", "lowmemory", "adaptive", "schedulefree", "lomo", "full", "lora", "freeze")
WHOLE = 10_000


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(
    optimizer: dict[str, Any], precision: str = "fp32", adapter: str | dict[str, Any] = "full", *, budget: int = WHOLE,
    clip: float = 0.0,
) -> Any:  # fmt: skip
    from finetooth_torch.backend import TorchBackend, TorchOptions

    entries = tuple(entry for name in BRINGING for entry in entries_of(f"finetooth_{name}.plugin"))
    context = FakeContext(Path(), entries=entries)
    made = request(budget=budget, loader=TinyLlamaLoader())
    made = replace(
        made,
        plan=replace(made.plan, train=replace(made.plan.train, precision=precision, max_grad_norm=clip)),
        base=replace(made.base, facts=FACTS),
        trains=replace(
            made.trains,
            adapter=context.build("adapter", {"name": adapter} if isinstance(adapter, str) else adapter),
            can_disable=adapter == "lora",
            base_frozen=adapter == "lora",
        ),
        updates=replace(
            made.updates,
            optimizer=context.build("optimizer", {"learning_rate": 1e-2, **optimizer}),
            schedule=context.build("schedule", {"name": "constant"}),
        ),
    )
    return TorchBackend(TorchOptions(), FakeContext(Path(), installed=True)).engine(made)


def data(seed: int) -> list[Datum]:
    random = np.random.default_rng(seed)
    return [
        Datum.from_tokens([int(t) for t in random.integers(1, VOCABULARY, size=n)], id=f"row:{seed}:{n}")
        for n in (9, 5, 12, 7)
    ]


def train(engine: Any, steps: range) -> list[Any]:
    seen: list[Any] = []
    for step in steps:
        seen.append(engine.forward_backward(data(step), WEIGHTED_NLL).loss)
        seen.append(repr(engine.step()))
    return seen


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def saved(engine: Any, folder: Path) -> dict[str, bytes]:
    engine.save(folder)
    return files(folder)


def scored(engine: Any) -> Any:
    return np.concatenate(engine.logprobs(data(500)))


# --- averages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("precision", "adapter"), [("fp32", "lora"), ("bf16", "full")])
def test_averages_are_evaluated_and_exported_and_what_trains_comes_back(
    tmp_path: Path, precision: str, adapter: str
) -> None:
    engine = make({"name": "schedule_free_adamw"}, precision, adapter)
    train(engine, range(4))
    before, trained = saved(engine, tmp_path / "before"), scored(engine)
    with engine.averaged():
        average = scored(engine)
    assert not np.allclose(average, trained, atol=1e-6)
    np.testing.assert_array_equal(scored(engine), trained)
    engine.export(tmp_path / "artifact")
    assert saved(engine, tmp_path / "after") == before
    other = make({"name": "adamw"}, precision, adapter)
    other.restore(tmp_path / "artifact")
    np.testing.assert_array_equal(scored(other), average)


def test_others_are_evaluated_as_they_are() -> None:
    engine = make({"name": "adamw"})
    train(engine, range(2))
    plain = scored(engine)
    with engine.averaged():
        np.testing.assert_array_equal(scored(engine), plain)


def test_a_restart_forgets_where_the_weights_began() -> None:
    """Prodigy measures how far weights have come from where they began: a new A and B have come nowhere."""
    relora = {"name": "relora", "rank": 2, "every": 2, "warm_up": 0, "keep_state": 0.5}
    engine = make({"name": "prodigy", "learning_rate": 1.0}, adapter=relora)
    optimizer = engine._parts.optimizer
    train(engine, range(2))
    before = [master.clone() for group in optimizer.param_groups for master in group["params"]]
    assert not optimizer.state
    train(engine, range(2, 3))
    for begun, state in zip(before, optimizer.state.values(), strict=True):
        assert torch.equal(state["first"], begun)


def test_a_restart_keeps_moments_that_belong_together() -> None:
    """By Cauchy and Schwarz no update of Adam is longer than (1 - b1) / sqrt((1 - b2) (1 - b1^2 / b2)) rates, if both
    moments of a number are sums over the same steps: 7.3. A first moment whose second one is 0 is under no limit."""
    relora = {"name": "relora", "rank": 2, "every": 4, "warm_up": 0, "keep_state": 0.1}
    engine = make({"name": "adamw", "learning_rate": 1e-3}, adapter=relora)
    parameters, optimizer = engine._parts.parameters, engine._parts.optimizer
    for step in range(12):
        before = [master.clone() for master in parameters.masters]
        rebuilt = step % 4 == 3  # a restart draws A again
        train(engine, range(step, step + 1))
        if not rebuilt:
            steps = zip(parameters.masters, before, strict=True)
            assert max(float((master - at).abs().max()) for master, at in steps) < 7.3e-3
            continue
        for state in optimizer.state.values():
            kept = state["exp_avg"] != 0
            assert torch.equal(kept, state["exp_avg_sq"] != 0)
            assert int(kept.sum()) <= round(0.1 * kept.numel())
    assert optimizer.state


@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon", "dion", "apollo_mini", "adamw_4bit"])
def test_lora_plus_multiplies_the_update_of_b_whatever_the_optimizer_draws(name: str) -> None:
    """A rate of its own is all that is different: projections that an optimizer draws are those without it."""
    moved = {}
    for ratio in (1, 8):
        engine = make({"name": name}, adapter={"name": "lora", "rank": 4, "loraplus_ratio": ratio})
        parameters = engine._parts.parameters
        before = {of: master.clone() for of, master in parameters.named()}
        train(engine, range(1))
        moved[ratio] = {of: master - before[of] for of, master in parameters.named() if "lora_B" in of}
    for of, update in moved[1].items():
        torch.testing.assert_close(moved[8][of], 8 * update, rtol=1e-4, atol=1e-6)


# --- inside backward --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_updates_inside_backward_are_those_after_it(tmp_path: Path, precision: str) -> None:
    """LOMO is SGD: the same bits, with never more than one gradient."""
    inside, after = make({"name": "lomo", "clip": 0}, precision), make({"name": "sgd"}, precision)
    held: list[int] = []
    parameters = inside._parts.parameters
    for live in parameters.live:
        live.register_post_accumulate_grad_hook(lambda _: held.append(len(parameters.gradients())))
    one, other = train(inside, range(4)), train(after, range(4))
    assert one[::2] == other[::2]
    assert max(held) == 0, "behind each update its gradient is gone, and no other was there"
    weights = [{k: v.clone() for k, v in engine._parts.parameters.named()} for engine in (inside, after)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    norms = [[float(line.split("grad_norm=")[1].split(",")[0]) for line in lines[1::2]] for lines in (one, other)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-5)


def test_what_updates_inside_backward_resumes_bit_for_bit(tmp_path: Path) -> None:
    engine, other = make({"name": "adalomo"}), make({"name": "adalomo"})
    train(engine, range(3))
    train(other, range(7, 8))
    engine.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert train(engine, range(3, 6)) == train(other, range(3, 6))
    assert saved(engine, tmp_path / "one") == saved(other, tmp_path / "two")


def test_a_step_inside_backward_is_one_backward() -> None:
    engine = make({"name": "lomo"})
    engine.forward_backward(data(0), WEIGHTED_NLL)
    with pytest.raises(EngineError, match="a second call"):
        engine.forward_backward(data(1), WEIGHTED_NLL)
    with pytest.raises(EngineError, match="before these settings"):
        engine.step(settings=StepSettings(learning_rate=1.0))
    with pytest.raises(EngineError, match="inside backward"):
        engine.zero_grad()
    engine.step()
    small = make({"name": "lomo"}, budget=16)
    before = scored(small)
    with pytest.raises(EngineError, match=r"\d micro-batches"):
        small.forward_backward(data(0), WEIGHTED_NLL)
    np.testing.assert_array_equal(scored(small), before)


@pytest.mark.parametrize("first", [True, False])
def test_a_gradient_that_is_not_finite_stops_the_updates(tmp_path: Path, first: bool) -> None:
    """At the first parameter nothing has moved; later a state of no whole step is not kept."""
    engine = make({"name": "lomo"})
    order: list[int] = []
    lives = engine._parts.parameters.live
    hooks = [live.register_hook(lambda g, i=i: order.append(i)) for i, live in enumerate(lives)]
    train(engine, range(1))
    for hook in hooks:
        hook.remove()
    lives[order[0 if first else -1]].register_hook(lambda gradient: gradient * math.inf)
    before = scored(engine)
    with pytest.raises(NotFinite if first else EngineError, match="has the norm"):
        engine.forward_backward(data(3), WEIGHTED_NLL)
    if first:
        np.testing.assert_array_equal(scored(engine), before)
        engine.save(tmp_path / "state")
    else:
        with pytest.raises(EngineError, match="half updated"):
            engine.save(tmp_path / "state")


# --- in turn ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_layers_in_turn_have_gradients_in_turn(tmp_path: Path, precision: str) -> None:
    recipe = {"name": "badam", "switch_every": 2, "order": "ascending"}
    engine = make(recipe, precision)
    parameters, seen = engine._parts.parameters, []
    for step in range(6):
        before = {name: master.detach().clone() for name, master in parameters.named()}
        engine.forward_backward(data(step), WEIGHTED_NLL)
        active = {name for name, master in parameters.named() if master.grad is not None}
        engine.step()
        moved = {name for name, master in parameters.named() if not torch.equal(before[name], master)}
        assert moved <= active and len(active) < len(before)
        seen.append(frozenset(active))
    assert seen[0] == seen[1] != seen[2] == seen[3]
    other = make(recipe, precision)
    train(other, range(7, 10))
    other_state = tmp_path / "state"
    engine.save(other_state)
    other.load(other_state)
    assert train(engine, range(6, 10)) == train(other, range(6, 10))
    assert saved(engine, tmp_path / "one") == saved(other, tmp_path / "two")


# --- weights without copies, states elsewhere -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer", ["adamw", "sgd", "adafactor", "lion", "muon", "dion", "galore", "apollo", "adam_mini", "ademamix"]
)
def test_a_state_on_disk_or_host_changes_no_bit(tmp_path: Path, optimizer: str) -> None:
    own = {"galore": {"rank": 4, "update_every": 2}, "apollo": {"rank": 4}}.get(optimizer, {})
    stories, states = [], []
    for offload in ("none", "cpu", "disk"):
        engine = make({"name": optimizer, **own, "offload": offload})
        stories.append(train(engine, range(3)))
        states.append(saved(engine, tmp_path / offload))
    assert stories[0] == stories[1] == stories[2]
    assert (
        states[0]["optimizer.safetensors"] == states[1]["optimizer.safetensors"] == states[2]["optimizer.safetensors"]
    )
    assert states[0]["trained.safetensors"] == states[2]["trained.safetensors"]
    plain, other = make({"name": optimizer, **own}), make({"name": optimizer, **own, "offload": "disk"})
    for resumed in (plain, other):
        resumed.load(tmp_path / "disk")
    assert train(plain, range(3, 5)) == train(other, range(3, 5))


@pytest.mark.parametrize("name", ["flash_adamw", "flash_sgd", "flash_lion"])
def test_corrected_weights_resume_bit_for_bit(tmp_path: Path, name: str) -> None:
    recipe = {"name": name, "rounding": "corrected", **({"momentum": 0.9} if name == "flash_sgd" else {})}
    engine, other = make(recipe, "bf16", "full", budget=24), make(recipe, "bf16", "full", budget=24)
    train(engine, range(3))
    states = [state for state in engine._parts.optimizer.state.values() if "lost" in state]
    assert {str(value.dtype) for state in states for value in state.values() if torch.is_tensor(value)} == {
        "torch.int8", "torch.uint8", "torch.float16",
    }  # fmt: skip
    engine.save(tmp_path / "state")
    other.load(tmp_path / "state")
    assert train(engine, range(4, 6)) == train(other, range(4, 6))
    assert saved(engine, tmp_path / "one") == saved(other, tmp_path / "two")


@pytest.mark.parametrize("adapter", ["full", "lora"])
def test_weights_without_copies_are_in_bf16_and_resume_bit_for_bit(tmp_path: Path, adapter: str) -> None:
    recipe = {"name": "adamw", "rounding": "stochastic", "rounding_seed": 3}
    engine, other = make(recipe, "bf16", adapter, budget=24), make(recipe, "bf16", adapter, budget=24)
    parameters = engine._parts.parameters
    assert parameters.masters is parameters.live
    assert {master.dtype for master in parameters.masters} == {torch.bfloat16}
    train(engine, range(3))
    assert {value.dtype for state in engine._parts.optimizer.state.values() for value in state.values()
            if torch.is_tensor(value) and value.dim()} == {torch.float32}  # fmt: skip
    engine.forward_backward(data(3), WEIGHTED_NLL)
    assert {gradient.dtype for gradient in parameters.gradients()} == {torch.float32}
    engine.save(tmp_path / "state")
    train(other, range(7, 9))
    other.load(tmp_path / "state")
    assert repr(engine.step()) == repr(other.step())
    assert train(engine, range(4, 6)) == train(other, range(4, 6))
    assert saved(engine, tmp_path / "one") == saved(other, tmp_path / "two")
    different = make({**recipe, "rounding_seed": 4}, "bf16", adapter, budget=24)
    train(different, range(3))
    assert scored(different).tolist() != scored(engine).tolist()


def test_small_updates_count_that_bf16_alone_would_lose() -> None:
    """At a rate at which no update reaches half a unit of a weight in bf16, rounding to the nearest learns nothing."""
    losses = {}
    for name, recipe in {
        "masters": {"name": "sgd", "learning_rate": 1e-2},
        "chance": {"name": "sgd", "learning_rate": 1e-2, "rounding": "stochastic"},
        "corrected": {"name": "sgd", "learning_rate": 1e-2, "rounding": "corrected"},
    }.items():
        engine = make(recipe, "bf16")
        losses[name] = [engine.forward_backward(data(0), WEIGHTED_NLL).loss]
        for _ in range(30):
            engine.step()
            losses[name].append(engine.forward_backward(data(0), WEIGHTED_NLL).loss)
    gained = {name: seen[0] - seen[-1] for name, seen in losses.items()}
    assert gained["masters"] > 0
    assert gained["chance"] == pytest.approx(gained["masters"], rel=0.3)
    assert gained["corrected"] == pytest.approx(gained["masters"], rel=0.01)


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "changes", "precision", "message"),
    [
        ({"name": "lomo"}, {"max_grad_norm": 1.0}, "fp32", "train.max_grad_norm=1: .* updates inside backward"),
        ({"name": "lomo"}, {"max_grad_norm": 0.0}, "fp16", "train.precision=fp16: .* overflow"),
        ({"name": "adamw", "rounding": "stochastic"}, {}, "fp32", "train.precision=fp32: .* rounds weights into bf16"),
    ],
)
def test_what_cannot_work_is_refused_by_the_plan(
    optimizer: dict[str, Any], changes: dict[str, Any], precision: str, message: str
) -> None:
    from finetooth_torch.planning.updates import check_updates

    entries = tuple(entry for name in BRINGING for entry in entries_of(f"finetooth_{name}.plugin"))
    built = FakeContext(Path(), entries=entries).build("optimizer", optimizer)
    made = request(budget=24, loader=TinyLlamaLoader())
    asked = SimpleNamespace(
        updates=replace(made.updates, optimizer=built, name=f"ours:{optimizer['name']}"),
        train=replace(made.plan.train, **changes),
        place=made.place,
    )
    with pytest.raises(PlanError, match=message):
        check_updates(asked, precision)  # type: ignore[arg-type]
