"""Which provider the plan picks for an operation, and what it says of the choice."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_core.planning.kernels import KernelPicker
from finetooth_core.plugins.catalog import Catalog, Registered
from finetooth_hooks import Kernel, PlanError, RecipeError, Serves
from finetooth_hooks.plan import Decision
from finetooth_hooks.protocols import Kernel as Built
from finetooth_hooks.protocols import KernelRequest

NORM = {"norm": KernelRequest(("bf16", "fp32"))}


def serves(**changes: Any) -> Serves:
    return Serves(**{"operation": "norm", "rank": 10, **changes})


def entry(name: str, *served: Serves, **changes: Any) -> Kernel:
    return Kernel(name=name, build="acme:build", summary=f"{name}'s way", serves=served, **changes)


class Context:
    """Builds providers whose functions are their names, and remembers which."""

    def __init__(self, *entries: Kernel, kernels: Any = "auto", missing: Mapping[str, str] | None = None) -> None:
        self.catalog = Catalog(
            [Registered(one, "apple" if one.frameworks == {"mlx"} else "acme", "1") for one in entries]
        )
        self.recipe, self.builder = SimpleNamespace(kernels=kernels), self
        self.missing, self.built, self.decisions = missing or {}, list[str](), dict[str, Decision]()

    def entry(self, kind: str, pick: Any, *, setting: str = "", framework: str = "") -> Registered:
        name = pick if isinstance(pick, str) else pick["name"]
        found = self.catalog.get(kind, name, setting=setting, framework=framework)
        assert isinstance(found, Registered)
        return found

    def build(self, kind: str, pick: Any, *, setting: str = "") -> Built:
        registered = self.entry(kind, pick)
        name, kernel = registered.entry.name, registered.entry
        if name == "broken":
            raise AttributeError("no library")
        assert isinstance(kernel, Kernel)
        self.built.append(name)
        functions = {one.operation: (lambda name=name: name) for one in kernel.serves}
        return Built(functions, missing=lambda operation, device, dtype: self.missing.get(name, ""))

    def decide(self, setting: str, value: Any, reason: str) -> None:
        self.decisions[setting] = Decision(setting, value, reason)


def picked(context: Context, wanted: Mapping[str, KernelRequest] = NORM, device: str = "cpu") -> dict[str, str]:
    picker = KernelPicker(context, "acme:backend", "torch", device)  # type: ignore[arg-type]
    found = picker(wanted)
    picker.tell()
    assert found == picker.picked
    return {name: one.function() for name, one in found.items()}


def test_the_highest_rank_that_can_serve_is_taken_and_no_other_is_built() -> None:
    quick = entry("quick", serves(rank=20, devices=frozenset({"cuda"})))
    context = Context(entry("plain", serves()), quick)
    assert picked(context) == {"norm": "plain"} and context.built == ["plain"]
    assert context.decisions["kernels"].value == "plain"
    context = Context(entry("plain", serves()), quick)
    assert picked(context, device="cuda:0") == {"norm": "quick"} and context.built == ["quick"]


@pytest.mark.parametrize(
    "changes", [{"dtypes": frozenset({"fp32"})}, {"backward": False}, {"rank": None}, {"operation": "other"}]
)
def test_what_does_not_cover_all_that_is_wanted_is_passed_over(changes: dict[str, Any]) -> None:
    assert picked(Context(entry("plain", serves()), entry("quick", serves(**{"rank": 20, **changes})))) == {
        "norm": "plain"
    }


def test_what_is_missing_here_is_passed_over_and_said_once() -> None:
    quick = entry("quick", serves(rank=20), serves(operation="other", rank=20))
    context = Context(entry("plain", serves(), serves(operation="other")), quick, missing={"quick": "no compiler"})
    wanted = {**NORM, "other": KernelRequest(("fp32",))}
    assert picked(context, wanted) == {"norm": "plain", "other": "plain"}
    assert context.decisions["kernels"].reason == "quick not used: no compiler; plain's way"
    assert context.built.count("quick") == 1


def test_a_provider_for_another_framework_is_not_seen() -> None:
    other = entry("quick", serves(rank=20), frameworks=frozenset({"mlx"}))
    assert picked(Context(entry("plain", serves()), other)) == {"norm": "plain"}
    with pytest.raises(PlanError, match="it computes with mlx, the backend is torch"):
        picked(Context(entry("plain", serves()), other, kernels={"norm": "quick"}))


def test_a_name_is_that_of_the_backends_framework() -> None:
    """A second provider of the same name, for another framework, is no ambiguity."""
    mine, other = entry("same", serves()), entry("same", serves(), frameworks=frozenset({"mlx"}))
    assert picked(Context(mine, other, kernels={"norm": "same"})) == {"norm": "same"}


def test_equal_ranks_are_an_error_that_names_both() -> None:
    with pytest.raises(PlanError, match=r"kernels\.norm: acme:one and acme:two can both serve"):
        picked(Context(entry("one", serves()), entry("two", serves())))


def test_the_recipes_choice_is_taken_whatever_its_rank_and_said() -> None:
    context = Context(entry("plain", serves()), entry("slow", serves(rank=None)), kernels={"norm": "slow"})
    assert picked(context) == {"norm": "slow"}
    assert context.decisions["kernels.norm"] == Decision("kernels.norm", "acme:slow", "the recipe says so; slow's way")


def test_a_choice_that_cannot_serve_is_refused_with_the_reason() -> None:
    quick = entry("quick", serves(rank=20, devices=frozenset({"cuda"})))
    with pytest.raises(PlanError, match=r"kernels\.norm=quick: it serves norm on cuda, not on cpu") as caught:
        others = entry("plain", serves()), entry("unable", serves(devices=frozenset({"rocm"})))
        picked(Context(*others, quick, kernels={"norm": "quick"}))
    assert caught.value.action == "set it to auto or plain"
    context = Context(entry("plain", serves()), kernels={"norm": "plain"}, missing={"plain": "no compiler"})
    with pytest.raises(PlanError, match="no compiler"):
        picked(context)


def test_a_broken_provider_hides_no_refusal_of_another() -> None:
    entries = (entry("quick", serves(devices=frozenset({"cuda"}))), entry("broken", serves()), entry("plain", serves()))
    with pytest.raises(PlanError, match="it serves norm on cuda, not on cpu") as refused:
        picked(Context(*entries, kernels={"norm": "quick"}))
    assert refused.value.action == "set it to auto or plain"
    with pytest.raises(AttributeError, match="no library"):
        picked(Context(*entries, kernels={"norm": "broken"}))


def test_an_operation_that_nothing_computes_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"kernels\.nrm: .*uses no such operation") as caught:
        picked(Context(entry("plain", serves()), kernels={"nrm": "plain"}))
    assert caught.value.action == "did you mean norm?"
    with pytest.raises(RecipeError, match=r"kernels\.form: .*uses no such operation in this run") as caught:
        picked(Context(entry("plain", serves()), entry("far", serves(operation="form")), kernels={"form": "far"}))
    assert caught.value.action == "leave it out, or name one that it uses: norm"  # form is an operation too


def test_nobody_for_an_operation_is_an_error_unless_the_backend_has_its_own_way() -> None:
    wanted = {**NORM, "cached": KernelRequest(("fp32",), optional=True)}
    context = Context(entry("plain", serves()))
    assert picked(context, wanted) == {"norm": "plain"}
    assert "cached by the backend itself" in context.decisions["kernels"].reason
    with pytest.raises(PlanError, match=r"kernels\.cached: no provider can serve it on cpu in fp32"):
        picked(context, {**NORM, "cached": KernelRequest(("fp32",))})


def test_what_is_wanted_of_whom_the_recipe_names_is_picked_for_nobody_else() -> None:
    wanted = {**NORM, "products": KernelRequest(("fp32",), optional=True, only_named=True)}
    plain = entry("plain", serves(), serves(operation="products"))
    context = Context(plain)
    assert picked(context, wanted) == {"norm": "plain"}
    assert "products" not in context.decisions["kernels"].reason
    context = Context(plain, kernels={"products": "plain"})
    assert picked(context, wanted) == {"norm": "plain", "products": "plain"}
    assert context.decisions["kernels.products"].reason == "the recipe says so; plain's way"
    assert picked(Context(plain, kernels={"products": "auto"}), wanted) == {"norm": "plain"}
