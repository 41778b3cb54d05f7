"""Picks the provider of each operation that a backend needs: the recipe's, or the best usable one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from finetooth_hooks.compute.serves import Serves
from finetooth_hooks.context import Registered
from finetooth_hooks.entries import Kernel
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import Kernel as BuiltKernel
from finetooth_hooks.protocols import KernelRequest, PickedKernel
from finetooth_toolbox.text.nearest import nearest

if TYPE_CHECKING:
    from finetooth_core.planning.context import RunContext

SETTING = "kernels"
AUTO = "auto"
RECIPE = "the recipe says so"


@dataclass(frozen=True)
class _Answer:
    """A provider's answer to a request: why it is unusable, or what it does."""

    refusal: str
    serves: Serves | None = None
    built: BuiltKernel | None = None


class KernelPicker:
    """See `finetooth_hooks.protocols.PickKernels`.

    Args:
        context: of the recipe; builds providers, only those declared for the request.
        backend: full name of its entry.
        framework: of the backend.
        device: the planned one, by the framework's name.

    Attributes:
        picked: by operation.
    """

    def __init__(self, context: RunContext, backend: str, framework: str, device: str) -> None:
        self._context, self._backend, self._framework, self._device = context, backend, framework, device
        self._built: dict[str, BuiltKernel] = {}
        self._wanted: set[str] = set()
        self._own: list[str] = []
        self._refused: list[str] = []
        self.picked: dict[str, PickedKernel] = {}
        picks = context.recipe.kernels
        self._asked: Mapping[str, Pick] = {} if isinstance(picks, str) else picks

    def __call__(self, wanted: Mapping[str, KernelRequest]) -> Mapping[str, PickedKernel]:
        for operation, of_it in wanted.items():
            self._wanted.add(operation)
            pick = self._asked.get(operation, AUTO)
            if pick == AUTO and of_it.only_named:
                continue
            kernel = self._best(operation, of_it) if pick == AUTO else self._chosen(operation, of_it, pick)
            if kernel is not None:
                self.picked[operation] = kernel
            elif operation not in self._own:
                self._own.append(operation)
        return {operation: self.picked[operation] for operation in wanted if operation in self.picked}

    def tell(self) -> None:
        """Record the choices in the plan: one line for those left open, one for each that the recipe makes.

        Raises:
            RecipeError: the recipe names an operation that nothing computes here.
            PluginError: no plugin brings the provider that it names for one.
        """
        for operation, pick in self._asked.items():
            if operation not in self._wanted:
                setting, known = f"{SETTING}.{operation}", sorted(self._wanted)
                close = None if self._providers(operation) else nearest(operation, known)
                if not close and pick != AUTO:  # a provider that is not installed is the first thing to say
                    self._context.builder.entry("kernel", pick, setting=setting, framework=self._framework)
                uses = ", or name one that it uses: " if known else ""
                problem = f"the backend {self._backend} uses no such operation in this run"
                action = f"did you mean {close}?" if close else f"leave it out{uses}{', '.join(known)}"
                raise RecipeError(setting, problem, action=action)
        named = {name for name, pick in self._asked.items() if pick != AUTO}
        left_open = {name: kernel for name, kernel in self.picked.items() if name not in named}
        if left_open:
            self._context.decide(SETTING, _summary(left_open), self._reason(left_open))
        for name in named & self.picked.keys():
            kernel = self.picked[name]
            self._context.decide(f"{SETTING}.{name}", kernel.provider, kernel.reason)

    def _reason(self, picked: Mapping[str, PickedKernel]) -> str:
        reasons = list(dict.fromkeys([*self._refused, *(kernel.reason for kernel in picked.values())]))
        if self._own:
            reasons.append(f"{', '.join(self._own)} by the backend itself")
        return "; ".join(reasons)

    def _best(self, operation: str, wanted: KernelRequest) -> PickedKernel | None:
        """The usable provider of the highest rank."""
        ranked = [(rank, r) for r in self._providers(operation) if (rank := _rank(r, operation)) is not None]
        ranked.sort(key=lambda pair: (-pair[0], pair[1].full_name))
        refusals = []
        for _, group in groupby(ranked, key=lambda pair: pair[0]):
            able = []
            for _, registered in group:
                answer = self._answer(registered, registered.full_name, operation, wanted)
                if answer.built is None:
                    refusals.append(f"{registered.entry.name} not used: {answer.refusal}")
                else:
                    able.append((registered, answer))
            if len(able) > 1:
                names = " and ".join(registered.full_name for registered, _ in able)
                raise PlanError(
                    f"{SETTING}.{operation}: {names} can both serve, and neither ranks higher",
                    action=f"name one: {SETTING}.{operation}={able[0][0].full_name}",
                )
            if able:
                return self._picked(*able[0], operation, "")
        if wanted.optional:
            return None
        why = "; ".join(refusals) or "no plugin brings one"
        raise PlanError(
            f"{SETTING}.{operation}: no provider can serve it on {self._device} in {', '.join(wanted.dtypes)} ({why})",
            action="choose another hardware or train.precision, or see ft plugins list",
        )

    def _chosen(self, operation: str, wanted: KernelRequest, pick: Pick) -> PickedKernel:
        setting = f"{SETTING}.{operation}"
        registered = self._context.builder.entry("kernel", pick, setting=setting, framework=self._framework)
        answer = self._answer(registered, pick, operation, wanted)
        if answer.built is None:
            able = []
            for one in self._providers(operation):
                with suppress(Exception):  # a broken plugin is none to name, and hides no refusal of another
                    able += [one.entry.name] if self._answer(one, one.full_name, operation, wanted).built else []
            raise PlanError(
                f"{setting}={registered.entry.name}: {answer.refusal}",
                action=f"set it to auto{''.join(f' or {name}' for name in able)}",
            )
        return self._picked(registered, answer, operation, RECIPE)

    def _picked(self, registered: Registered, answer: _Answer, operation: str, why: str) -> PickedKernel:
        assert answer.built is not None and answer.serves is not None
        how = f"{registered.entry.name}: {answer.built.reason}" if answer.built.reason else registered.entry.summary
        return PickedKernel(
            registered.full_name, answer.built.functions[operation], answer.serves.features, f"{why}; {how}" if why
            else how,
        )  # fmt: skip

    def _providers(self, operation: str) -> list[Registered]:
        return [
            registered
            for registered in self._context.catalog.all("kernel")
            if isinstance(registered.entry, Kernel)
            and self._framework in registered.entry.frameworks
            and any(served.operation == operation for served in registered.entry.serves)
        ]

    def _answer(self, registered: Registered, pick: Pick, operation: str, wanted: KernelRequest) -> _Answer:
        """Its answer; it is built only if it is declared for the request."""
        entry = registered.entry
        assert isinstance(entry, Kernel)
        if self._framework not in entry.frameworks:
            return _Answer(f"it computes with {', '.join(sorted(entry.frameworks))}, the backend is {self._framework}")
        of_it = [serves for serves in entry.serves if serves.operation == operation]
        if not of_it:
            has = ", ".join(dict.fromkeys(serves.operation for serves in entry.serves))
            return _Answer(f"it has no {operation}, only {has}")
        refusals = [_declared(serves, self._device, wanted) for serves in of_it]
        if "" not in refusals:
            return _Answer(refusals[0])
        built = self._build(registered, pick, operation)
        for dtype in wanted.dtypes:
            if missing := built.missing(operation, self._device, dtype):
                refusal = f"{entry.name} not used: {missing}"
                if refusal not in self._refused:
                    self._refused.append(refusal)
                return _Answer(missing)
        return _Answer("", of_it[refusals.index("")], built)

    def _build(self, registered: Registered, pick: Pick, operation: str) -> BuiltKernel:
        """Once for each set of options."""
        key = f"{registered.full_name} {'' if isinstance(pick, str) else sorted(pick.items())}"
        if key not in self._built:
            built: Any = self._context.build(
                "kernel",
                registered.full_name if isinstance(pick, str) else {**pick, "name": registered.full_name},
                setting=f"{SETTING}.{operation}",
            )
            self._built[key] = built
        return self._built[key]


def _rank(registered: Registered, operation: str) -> int | None:
    """Its rank for an operation; None if it must be picked by name."""
    assert isinstance(registered.entry, Kernel)
    ranks = [use.rank for use in registered.entry.serves if use.operation == operation and use.rank is not None]
    return max(ranks) if ranks else None


def _declared(serves: Serves, device: str, wanted: KernelRequest) -> str:
    """Why its declarations do not cover the request; empty if they do."""
    kind = device.partition(":")[0]
    if serves.devices and kind not in serves.devices:
        return f"it serves {serves.operation} on {', '.join(sorted(serves.devices))}, not on {kind}"
    lacking = [dtype for dtype in wanted.dtypes if dtype not in serves.dtypes]
    if lacking:
        takes = ", ".join(sorted(serves.dtypes))
        return f"it serves {serves.operation} in {takes}, not in {', '.join(lacking)}"
    if wanted.backward and not serves.backward:
        return f"it has no backward pass of {serves.operation}"
    return ""


def _summary(picked: Mapping[str, PickedKernel]) -> str:
    """`native`, or `torch; triton for linear_logprob`: the provider of most first."""
    by_provider: dict[str, list[str]] = {}
    for operation, kernel in picked.items():
        by_provider.setdefault(kernel.provider.rpartition(":")[2], []).append(operation)
    most, *others = sorted(by_provider.items(), key=_most_first)
    return "; ".join([most[0], *(f"{name} for {', '.join(operations)}" for name, operations in others)])


def _most_first(pair: tuple[str, Sequence[str]]) -> tuple[int, str]:
    return -len(pair[1]), pair[0]
