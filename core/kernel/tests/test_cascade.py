"""What a cascade tries, in which order, what it takes, and what it says: figures that are given by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.planning import cascade
from finetooth_core.planning.plan import Job
from finetooth_core.settings.recipe import Recipe, load
from finetooth_hooks import (
    Adapter,
    Backend,
    MemoryEstimate,
    Plan,
    PlanError,
    PluginError,
    Quantizer,
    RecipeError,
    Saving,
)
from finetooth_hooks.plan import Decision
from finetooth_hooks.protocols import Device, HardwareFacts, Stored

GB = 10**9
NOTHING: Any = None
SAVINGS = (
    Saving(label="near", options={"near": True}, costs="time"),
    Saving(label="near and far", options={"near": True, "far": 2}, costs="more time"),
)
ENTRIES = (
    Backend(name="plain", build="x:x", framework="torch", capabilities=frozenset(), default=True, savings=SAVINGS),
    Adapter(name="low", build="x:x", base_frozen=True, accepts_quantised=True, default=True),
    Adapter(name="whole", build="x:x"),
    Adapter(name="top", build="x:x"),
    Quantizer(name="eight", build="x:x"),
    Quantizer(name="four", build="x:x"),
    Quantizer(name="other_four", build="x:x", rank=10),
    Quantizer(name="broken", build="x:x", rank=99),
    Quantizer(name="absent", build="x:x", rank=99),
)
STORED = {"eight": 1.0, "four": 0.56, "other_four": 0.52}
TRAINED = {"low": 10, "whole": 1000, "top": 100}
TAKES = {("whole", None): 16.0, ("low", None): 8.0, ("low", "eight"): 4.5, ("low", "other_four"): 3.0}
"""GB by adapter and quantizer; recomputing halves them, and each option of the backend once more."""


class Context:
    """A context of a recipe whose plans are looked up in `TAKES`."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.framework, self.facts, self.log = recipe, "torch", NOTHING, {}
        self.notes: list[str] = []
        self.note = self.notes.append
        self.model = SimpleNamespace(parameters=1000)
        registered = [SimpleNamespace(entry=entry, full_name=f"t:{entry.name}") for entry in ENTRIES]

        def of_kind(kind: str, framework: str = "") -> list[Any]:
            return [one for one in registered if one.entry.kind == kind]

        def default(kind: str, **_: str) -> Any:
            return next(one for one in of_kind(kind) if one.entry.default)

        def get(kind: str, name: str, **_: str) -> Any:
            return next(one for one in of_kind(kind) if one.entry.name == name)

        self.catalog = SimpleNamespace(all=of_kind, speaking=of_kind, default=default, get=get)

    def build(self, kind: str, pick: str, *, setting: str) -> Any:
        name = pick.partition(":")[2]
        if kind == "adapter":
            return SimpleNamespace(trained_parameters=lambda facts, parameters: TRAINED[name])
        if name in ("broken", "absent"):
            cause = RuntimeError("no driver") if name == "broken" else ModuleNotFoundError("no module")
            raise PluginError("acme", f"quantizer {name!r} cannot be imported: {cause}") from cause
        return SimpleNamespace(stored=Stored(name, STORED[name]))

    def beside(self, recipe: Recipe) -> Context:
        return Context(recipe)

    def decide(self, setting: str, value: Any, reason: str) -> None:
        self.log[setting] = reason

    def planned(self, plan: Plan) -> None:
        self.plan = plan


@dataclass(frozen=True)
class RequestOf:
    """What a cascade reads of a request."""

    place: Any
    plan: Plan


def decided(memory: float, available: float | None = None) -> Any:
    """Plans on a device with so many GB."""
    free = None if available is None else int(available * GB)
    device = Device("gpu:0", "a GPU", int(memory * GB), available=free)
    place = SimpleNamespace(hardware=HardwareFacts("t:gpu", (device,), ("bf16",)))

    def decide(context: Any) -> Job:
        recipe = context.recipe
        if recipe.adapter == "top":
            raise RecipeError("adapter.layers", "it says not how many", action="set it")
        if recipe.adapter == "whole" and recipe.quantization is not None:
            raise PlanError("quantization: whole needs plain numbers", action="remove it")
        takes = TAKES[recipe.adapter, recipe.quantization] / (1 + (recipe.train.gradient_checkpointing is True))
        if not isinstance(recipe.backend, str):
            takes /= 2 ** (len(recipe.backend) - 1)
        decisions = [Decision("adapter", recipe.adapter, "the recipe says so"), Decision("method", "sft", "default")]
        plan = Plan(
            recipe.as_dict(), {}, {}, recipe.train.settings(), tuple(decisions),
            MemoryEstimate({"weights": int(takes * GB)}), notes=("what was said before",),
        )  # fmt: skip
        request: Any = RequestOf(place, plan)
        return Job(context, plan, None, NOTHING, NOTHING, request, NOTHING, (), (), ())

    return decide


def chosen(memory: float, available: float | None = None, **sections: Any) -> Job:
    recipe = load({"model": "m", "adapter": "auto", "quantization": "auto", **sections})
    assert cascade.is_open(recipe)
    context: Any = Context(recipe)
    return cascade.choose(context, decided(memory, available))


def made(job: Job) -> Mapping[str, Any]:
    recipe = job.context.recipe.as_dict()
    return {"adapter": recipe["adapter"], "quantization": recipe["quantization"], **recipe["train"]}


@pytest.mark.parametrize(
    ("memory", "adapter", "quantization", "recomputed"),
    [
        (17, "whole", None, False),
        (15, "low", None, False),
        (7, "low", "eight", False),
        (4, "low", "other_four", False),
        (2, "low", "other_four", True),
        (1, "low", "other_four", True),
        (0.1, "low", "other_four", True),  # nothing fits: the least of all, which whoever starts it refuses
    ],
)
def test_the_first_step_that_fits_is_written_into_the_recipe(
    memory: float, adapter: str, quantization: str | None, recomputed: bool
) -> None:
    job = chosen(memory)
    assert made(job) == {"adapter": adapter, "quantization": quantization, "gradient_checkpointing": recomputed}
    assert not cascade.is_open(job.context.recipe)  # it never decides twice
    assert job.request.plan is job.plan is job.context.plan


def test_every_step_is_said_with_its_figure_and_what_it_gives_up() -> None:
    job = chosen(4)
    assert job.plan.notes == (
        "passed over: acme: quantizer 'broken' cannot be imported: no driver",
        "adapter: auto, quantization: auto: whole would take 16.00 GB at the peak (weights 16.00 GB), and a GPU has "
        "4.00 GB: not taken",
        "adapter: auto, quantization: auto: low would take 8.00 GB at the peak (weights 8.00 GB), and a GPU has "
        "4.00 GB: not taken",
        "adapter: auto, quantization: auto: low over eight would take 4.50 GB at the peak (weights 4.50 GB), and a GPU "
        "has 4.00 GB: not taken",
        "adapter: auto, quantization: auto: low over other_four is taken: 3.00 GB at the peak; given up: the weights "
        "of the base stay as they are, the linear weights of the base are rounded to 4 bits",
        "what was said before",
    )
    reasons = {one.setting: one.reason for one in job.plan.decisions}
    assert reasons == {"adapter": "auto: low over eight would take 4.50 GB, this takes 3.00 GB", "method": "default"}


def test_bits_that_save_nothing_are_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model, computed by other code once it is quantised, may take more than before."""
    for name, takes in (("eight", 9.0), ("other_four", 8.5)):
        monkeypatch.setitem(TAKES, ("low", name), takes)
    job = chosen(5)
    assert made(job) == {"adapter": "low", "quantization": None, "gradient_checkpointing": True}
    assert "low over eight would take 9.00 GB" in job.plan.notes[3]
    assert job.plan.notes[3].endswith("not taken (no less than low)")
    assert "low, activations recomputed is taken: 4.00 GB" in job.plan.notes[5]
    assert "rounded" not in job.plan.notes[5]


def test_what_is_free_now_counts() -> None:
    assert made(chosen(32, available=9))["adapter"] == "low"
    assert "has 9.00 GB of 32.00 GB free now" in chosen(32, available=9).plan.notes[1]


def test_only_what_is_left_open_is_chosen() -> None:
    assert made(chosen(7, adapter="low"))["quantization"] == "eight"
    assert made(chosen(7, quantization="eight"))["adapter"] == "low"
    assert "whole cannot work: quantization: whole needs plain numbers" in chosen(7, quantization="eight").plan.notes[0]
    assert made(chosen(5, quantization=None))["gradient_checkpointing"] is True
    kept = made(chosen(15, train={"gradient_checkpointing": True, "epochs": 2}))
    assert kept == {"adapter": "whole", "quantization": None, "gradient_checkpointing": True, "epochs": 2}


def test_a_recipe_without_adapter_takes_the_default_one() -> None:
    assert not cascade.is_open(load({"model": "m"}))
    assert not cascade.is_open(load({"model": "m", "adapter": {"name": "auto", "rank": 4}}))


def test_what_the_backend_keeps_elsewhere_comes_last() -> None:
    job = chosen(1)
    assert job.context.recipe.backend == {"name": "plain", "near": True}
    *_, before, taken, _ = job.plan.notes
    assert "low over other_four, activations recomputed would take 1.50 GB" in before
    assert "low over other_four, activations recomputed, near is taken: 750 MB at the peak; given up: " in taken
    assert taken.endswith("time: the layers compute their forward pass twice, time")
    assert chosen(0.5).context.recipe.backend == {"name": "plain", "near": True, "far": 2}


def test_what_the_recipe_says_of_the_backend_is_kept() -> None:
    job = chosen(0.1, backend={"name": "plain", "near": False})
    assert job.context.recipe.backend == {"name": "plain", "near": False}
    job = chosen(0.5, backend={"name": "plain", "other": 1})
    assert job.context.recipe.backend == {"name": "plain", "other": 1, "near": True}


def test_what_was_passed_over_is_named_where_nothing_fits() -> None:
    assert chosen(0.1).passed == (
        "whole 16.00 GB",
        "low 8.00 GB",
        "low over eight 4.50 GB",
        "low over other_four 3.00 GB",
        "low, activations recomputed 4.00 GB",
        "low over eight, activations recomputed 2.25 GB",
        "low over other_four, activations recomputed 1.50 GB",
        "low over other_four, activations recomputed, near 750 MB",
    )


def test_where_nothing_works_it_says_why() -> None:
    recipe = load({"model": "m", "adapter": "whole", "quantization": "auto"})

    def never(context: Any) -> Job:
        raise PlanError("method: it cannot", action="another")

    context: Any = Context(recipe)
    with pytest.raises(PlanError, match=r"quantization: auto: no way of training works \(whole: method: it cannot; "):
        cascade.choose(context, never)
