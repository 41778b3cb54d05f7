"""Checks of schedules, optimizers and adapters."""

from __future__ import annotations

import copy
import json
import math
from importlib import import_module
from typing import Any

import numpy as np
from finetooth_hooks.entries import Adapter, Optimizer
from finetooth_hooks.entries import Schedule as ScheduleEntry
from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import ModelInfo, Schedule

from finetooth_kit.checks import CheckSkipped, EntryCase, check_for, expect, fail
from finetooth_kit.fake_context import FACTS

_PICKLED = {".pt", ".pth", ".bin", ".pkl", ".pickle"}


def _need(*modules: str) -> list[Any]:
    try:
        return [import_module(module) for module in modules]
    except ImportError as error:
        raise CheckSkipped(f"{error.name or modules} is not installed") from error


def _for_torch(case: EntryCase) -> None:
    assert isinstance(case.entry, Optimizer | Adapter)
    if "torch" not in case.entry.frameworks:
        raise CheckSkipped(f"for {', '.join(sorted(case.entry.frameworks))}; the kit tries torch only")


# --- schedules --------------------------------------------------------------------------------------------------------


@check_for("schedule")
def factors_are_finite_and_positive(case: EntryCase) -> None:
    """Over a long and a very short run every factor is finite and not negative, some train, and asking twice gives the
    same."""
    for total in (100, 7, 1):
        schedule = case.build()
        factors = [schedule.factor(step, total) for step in range(total)]
        called = f"factor(0..{total - 1}, {total})"
        expect(all(math.isfinite(f) and f >= 0 for f in factors), called, factors[:10], "finite, 0 or more")
        expect(max(factors) > 0, called, "0 at every step", "some step that trains")
        again = [schedule.factor(step, total) for step in range(total)]
        expect(again == factors, f"{called}, a second time", again[:10], f"{factors[:10]}")
        beyond = schedule.factor(total, total)
        expect(math.isfinite(beyond) and beyond >= 0, f"factor({total}, {total})", beyond, "finite, 0 or more")


@check_for("schedule")
def unknown_total_is_taken_or_refused(case: EntryCase) -> None:
    """Without a total it gives factors, or says in a UserError that it needs one."""
    assert isinstance(case.entry, ScheduleEntry)
    schedule = case.build()
    try:
        factors = [schedule.factor(step, None) for step in range(20)]
    except UserError as error:
        expect(case.entry.needs_total, "factor(step, None) with needs_total=False", error, "factors")
        return
    expect(all(math.isfinite(f) and f >= 0 for f in factors), "factor(0..19, None)", factors, "finite, 0 or more")


def _watch(schedule: Schedule, steps: range) -> list[float]:
    factors = []
    for step in steps:
        factors.append(schedule.factor(step, 60))
        schedule.observe({"loss": 1.0 + 0.1 * (step % 3), "eval/loss": 1.0 + 0.1 * (step % 3)})
    return factors


@check_for("schedule")
def restored_schedule_continues(case: EntryCase) -> None:
    """A state taken in the middle, through JSON, continues with exactly the same factors."""
    schedule = case.build()
    _watch(schedule, range(30))
    state = json.loads(json.dumps(dict(schedule.state())))
    wanted = _watch(schedule, range(30, 60))
    other = case.build()
    other.restore(state)
    got = _watch(other, range(30, 60))
    expect(got == wanted, "factors after restore(state)", got[:5], f"{wanted[:5]}")


# --- optimizers -------------------------------------------------------------------------------------------------------


def _parameters(torch: Any) -> list[tuple[str, Any]]:
    make = np.random.default_rng(0).normal
    shapes = {"layer.weight": (64, 64), "layer.bias": (64,), "norm.weight": (64,), "head.weight": (8, 64)}
    return [(name, torch.nn.Parameter(torch.tensor(make(size=s), dtype=torch.float32))) for name, s in shapes.items()]


def _update(torch: Any, optimizer: Any, named: list[tuple[str, Any]], steps: range) -> None:
    for step in steps:
        random = np.random.default_rng(step)
        for _, parameter in named:
            parameter.grad = torch.tensor(random.normal(size=tuple(parameter.shape)), dtype=torch.float32)
        optimizer.step()
        optimizer.zero_grad()


@check_for("optimizer")
def every_parameter_is_updated(case: EntryCase) -> None:
    """Each parameter is in exactly one group, and one step changes all that have gradients."""
    _for_torch(case)
    (torch,) = _need("torch")
    made = case.build()
    expect(made.learning_rate > 0, "learning_rate", made.learning_rate, "above 0")
    named = _parameters(torch)
    before = [parameter.detach().clone() for _, parameter in named]
    optimizer = made.create(named)
    ids = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    expect(sorted(ids) == sorted(id(p) for _, p in named), "create(named).param_groups", ids, "each parameter once")
    _update(torch, optimizer, named, range(3))
    for (name, parameter), old in zip(named, before, strict=True):
        expect(bool(torch.isfinite(parameter).all()), f"{name} after 3 steps", "not finite", "finite")
        expect(not torch.equal(parameter, old), f"{name} after 3 steps", "unchanged", "updated")


@check_for("optimizer")
def steps_go_downhill(case: EntryCase) -> None:
    """Steps along the gradients of a sum of squares make it smaller."""
    _for_torch(case)
    (torch,) = _need("torch")
    named = _parameters(torch)
    optimizer = case.build().create(named)

    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = sum(parameter.square().sum() for _, parameter in named) / 10
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
    lowest = min(losses[1:])  # a long step may go beyond the lowest point
    expect(lowest < losses[0], "a sum of squares in 5 steps", f"{lowest:g} or more", f"less than {losses[0]:g} once")


@check_for("optimizer")
def rates_of_groups_are_shares_of_the_rate(case: EntryCase) -> None:
    """Where parameter groups have rates of their own, one group has `learning_rate`: an engine scales them all by what
    a step's rate is of it."""
    _for_torch(case)
    (torch,) = _need("torch")
    made = case.build()
    rates = [float(group.get("lr", made.learning_rate)) for group in made.create(_parameters(torch)).param_groups]
    expect(
        len(set(rates)) == 1 or any(math.isclose(rate, made.learning_rate, rel_tol=1e-6) for rate in rates),
        "create(named).param_groups, their lr",
        rates,
        f"one with learning_rate, {made.learning_rate:g}, if they differ",
    )


@check_for("optimizer")
def restored_optimizer_continues(case: EntryCase) -> None:
    """A state_dict taken in the middle continues bit for bit in a fresh optimizer."""
    _for_torch(case)
    (torch,) = _need("torch")
    named = _parameters(torch)
    optimizer = case.build().create(named)
    _update(torch, optimizer, named, range(3))
    copies = [(name, torch.nn.Parameter(parameter.detach().clone())) for name, parameter in named]
    other = case.build().create(copies)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch would share its tensors
    for each, parameters in ((optimizer, named), (other, copies)):
        _update(torch, each, parameters, range(3, 6))
    for (name, wanted), (_, got) in zip(named, copies, strict=True):
        expect(torch.equal(wanted, got), f"{name} after load_state_dict and 3 steps", "other bits", "the same bits")


@check_for("optimizer")
def state_bytes_is_not_too_low(case: EntryCase) -> None:
    """The state it keeps is at most `state_bytes` a parameter, which the memory estimate relies on."""
    _for_torch(case)
    assert isinstance(case.entry, Optimizer)
    (torch,) = _need("torch")
    named = _parameters(torch)
    optimizer = case.build().create(named)
    _update(torch, optimizer, named, range(1))
    tensors = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.numel() > 1)
    per = size / sum(parameter.numel() for _, parameter in named)
    declared = case.entry.state_bytes
    expect(per <= 1.1 * declared + 0.5, "bytes of optimizer state a parameter", f"{per:.2f}", f"at most {declared}")


# --- adapters ---------------------------------------------------------------------------------------------------------


def _tiny_llama() -> tuple[Any, Any]:
    torch, transformers = _need("torch", "transformers")
    config = transformers.LlamaConfig(
        hidden_size=FACTS.hidden_size,
        num_hidden_layers=FACTS.layers,
        num_attention_heads=FACTS.heads,
        num_key_value_heads=FACTS.kv_heads,
        intermediate_size=FACTS.ffn_size,
        vocab_size=FACTS.vocab_size,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch, transformers.LlamaForCausalLM(config).eval()


def _logits(torch: Any, model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=torch.arange(12).reshape(2, 6)).logits


def _apply(case: EntryCase) -> tuple[Any, Any, Any, int]:
    """torch, the adapter, the model it trains and the size of the base."""
    _for_torch(case)
    torch, model = _tiny_llama()
    size = sum(parameter.numel() for parameter in model.parameters())
    adapter = case.build()
    model = adapter.apply(model, FACTS, np.random.default_rng(1))
    if "changes" in adapter.capabilities:  # what trains at first
        adapter.at_step(model, 0, 0)
    return torch, adapter, model, size


@check_for("adapter")
def trained_parameters_are_counted(case: EntryCase) -> None:
    """What requires gradients when training begins is as much as `trained_parameters` says, and something does."""
    _, adapter, model, size = _apply(case)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    stated = adapter.trained_parameters(FACTS, size)
    expect(trained > 0, "parameters that require gradients after apply", 0, "some")
    expect(stated == trained, f"trained_parameters(facts, {size})", stated, f"{trained}, which require gradients")


@check_for("adapter")
def trained_parameters_reach_the_logits(case: EntryCase) -> None:
    """Other values of what trains give other logits, and gradients reach each of its parameters."""
    torch, _, model, _ = _apply(case)
    before = _logits(torch, model)
    _disturb(torch, model)
    changed = model(input_ids=torch.arange(12).reshape(2, 6)).logits
    expect(
        not torch.allclose(changed, before, atol=1e-4), "logits with trained parameters changed", "as before", "others"
    )
    changed.square().mean().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expect(parameter.grad is not None, f"gradient of {name}, which trains", None, "one")


@check_for("adapter")
def new_parameters_come_from_the_generator(case: EntryCase) -> None:
    """The same generator gives the same parameters, and torch's global random state stays as it was."""
    _for_torch(case)
    torch = _need("torch")[0]
    _apply(case)  # whatever is imported is imported now
    drawn = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state().clone()
        drawn.append(dict(_apply(case)[2].named_parameters()))
        same = torch.equal(torch.get_rng_state(), before)
        expect(
            same, "apply(model, facts, generator)", "torch's global random state changed", "draws from generator only"
        )
    for name, parameter in drawn[0].items():
        expect(torch.equal(parameter, drawn[1][name]), f"{name} under another global seed", "other values", "the same")


def _disturb(torch: Any, model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()).reshape(parameter.shape))


@check_for("adapter")
def disabled_is_the_base(case: EntryCase) -> None:
    """With `can_disable`, the base's numbers come back inside `disabled`, and the adapter's after it."""
    assert isinstance(case.entry, Adapter)
    if not case.entry.can_disable:
        raise CheckSkipped("the entry does not say can_disable")
    _for_torch(case)
    torch, base = _tiny_llama()
    wanted = _logits(torch, base)
    _, adapter, model, _ = _apply(case)
    _disturb(torch, model)
    changed = _logits(torch, model)
    expect(
        not torch.allclose(changed, wanted, atol=1e-4), "logits with trained parameters changed", "the base's", "others"
    )
    with adapter.disabled(model):
        inside = _logits(torch, model)
    worst = float((inside - wanted).abs().max())
    expect(worst <= 1e-6, "logits inside disabled(model)", f"differ by {worst:.3g}", "the base's")
    expect(torch.equal(_logits(torch, model), changed), "logits after disabled(model)", "others", "the adapter's again")


@check_for("adapter")
def export_holds_what_trained(case: EntryCase) -> None:
    """`export` writes safetensors and no pickle, with every trained value in it unless the adapter `rounds`, and
    leaves the model as it was."""
    (safetensors,) = _need("safetensors.torch")
    torch, adapter, model, size = _apply(case)
    _disturb(torch, model)
    before = _logits(torch, model)
    folder = case.folder / "artifact"
    config = model.config.to_dict() if hasattr(model, "config") else {}
    info = ModelInfo("check/tiny-llama", "under-test:loader", "llama", config, size, 4 * size)
    adapter.export(model, folder, info)
    files = [path for path in folder.rglob("*") if path.is_file()]
    bad = sorted(path.name for path in files if path.suffix in _PICKLED)
    expect(not bad, "export(model, folder, info)", bad, "no pickle")
    tensors = [t for path in files if path.suffix == ".safetensors" for t in safetensors.load_file(path).values()]
    expect(tensors, "export(model, folder, info)", sorted(p.name for p in files), "a safetensors file with tensors")
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "rounds" not in adapter.capabilities:
            written = any(t.shape == parameter.shape and torch.equal(t.float(), parameter.float()) for t in tensors)
            expect(written, f"tensors that export wrote, for {name}", "none is equal", "its trained value")
    expect(torch.equal(_logits(torch, model), before), "logits after export", "others", "as before")
    _, other, fresh, _ = _apply(case)
    other.restore(fresh, folder)
    worst = float((_logits(torch, fresh) - before).abs().max())
    expect(worst <= 1e-6, "logits after restore(model, folder)", f"differ by {worst:.3g}", "those that were exported")
    empty = case.folder / "empty"
    empty.mkdir()
    try:
        other.restore(fresh, empty)
    except UserError:
        return
    fail("restore(model, an empty folder)", "no error", "a UserError")
