"""Chooses the attention of each kind of layer, with the reason. No weights, no framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from finetooth_hooks import Attention, Context, Decision, PlanError, PluginError, install_command
from finetooth_hooks.compute.attention import LayerKind, Segments
from finetooth_hooks.context import Registered
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import HardwareFacts, ModelFacts
from finetooth_steps.row_filling import Filling
from finetooth_toolbox.attention_choice import OTHER_HARDWARE, Demand, demands_of, obstacle

SETTING = "backend.attention"
AUTO = "auto"
KINDS: tuple[LayerKind, ...] = ("full", "sliding")
RECIPE = "the recipe says so"
FRAMEWORK = "torch"


@dataclass(frozen=True)
class AttentionChoice:
    """The chosen attention.

    Attributes:
        picks: for each kind of layer the pick, with its full name.
        entries: their entries.
        decisions: for the plan; a single one if all kinds have the same.
        functions: the entries' functions compute, even if transformers has the implementation.
    """

    picks: Mapping[LayerKind, Pick]
    entries: Mapping[LayerKind, Attention]
    decisions: tuple[Decision, ...]
    functions: bool = False

    @property
    def names(self) -> str:
        """Of the entries."""
        return " and ".join(dict.fromkeys(entry.name for entry in self.entries.values()))

    @property
    def segments(self) -> frozenset[Segments]:
        """How attention keeps sequences that share a row apart."""
        return frozenset(entry.serves.segments for entry in self.entries.values())

    @property
    def filling(self) -> Filling | None:
        """How examples may share rows: under a mask, or without computing anything between them; None if they are not
        kept apart."""
        if "none" in self.segments:
            return None
        return "rows" if "mask" in self.segments else "stream"

    @property
    def fused(self) -> bool:
        """See `AttentionServes.fused`."""
        return all(entry.serves.fused for entry in self.entries.values())

    @property
    def implementation(self) -> str:
        """The implementation of transformers, if one computes all layers; else empty."""
        names = {entry.transformers for entry in self.entries.values()}
        return names.pop() if len(names) == 1 and not self.functions else ""


def choose_attention(
    context: Context | None, asked: Pick, facts: ModelFacts, config: Mapping[str, Any], hardware: HardwareFacts,
    precision: str, *, of_transformers: bool = False, failed: Mapping[str, str] = MappingProxyType({}),
    instead_of: AttentionChoice | None = None,
) -> AttentionChoice:  # fmt: skip
    """The attention of each kind of a model's layers.

    Args:
        context: has the entries; without one there are none.
        asked: `auto`, a name, a mapping with `name` and options, or one of these by kind of layer.
        config: of the model, in transformers' shape.
        of_transformers: `auto` takes only implementations of transformers, which torch compiles. It always does for
            models with towers, whose code makes its own masks, which functions do not get.
        failed: why entries failed in the model, by full name; they are passed over.
        instead_of: `auto` takes another attention of transformers, of any rank, that stores no scores and that the
            model's code is known to accept.

    Raises:
        PlanError: the named attention cannot be used, or none can.
        RecipeError: the entry has no such option.
        PluginError: no entry has the name.
    """
    installed: tuple[Registered, ...] = context.catalog.all("attention") if context is not None else ()
    entries = tuple(registered for registered in installed if _entry(registered).framework == FRAMEWORK)
    leaner: tuple[Registered, ...] = ()
    if instead_of is not None:
        before = instead_of.entries.values()
        leaner = tuple(
            registered
            for registered in entries
            if (entry := _entry(registered)).serves.fused and entry not in before and _accepts(config, entry)
        )
    demands = demands_of(config, facts)
    by_kind = _by_kind(asked, demands)
    shared = not isinstance(asked, Mapping) or "name" in asked
    picks: dict[LayerKind, Pick] = {}
    chosen: dict[LayerKind, Attention] = {}
    decided: dict[LayerKind, Decision] = {}
    for demand in demands:
        setting = SETTING if shared else f"{SETTING}.{demand.kind}"
        pick = by_kind[demand.kind]
        own = of_transformers or bool(facts.towers)
        wanted = _AttentionRequest(setting, pick, demand, hardware, precision, context, own, failed)
        if leaner and wanted.name == AUTO:
            registered, reason = _best(wanted, leaner, entries)
        else:
            registered, reason = _choose(wanted, entries)
        options = {key: value for key, value in pick.items() if key != "name"} if isinstance(pick, Mapping) else {}
        picks[demand.kind] = {"name": registered.full_name, **options} if options else registered.full_name
        chosen[demand.kind] = _entry(registered)
        decided[demand.kind] = Decision(f"{SETTING}.{demand.kind}", registered.full_name, reason)
    same = len({(decision.value, decision.reason) for decision in decided.values()}) == 1
    first = next(iter(decided.values()))
    decisions = (Decision(SETTING, first.value, first.reason),) if same else tuple(decided.values())
    return AttentionChoice(picks, chosen, decisions)


@dataclass(frozen=True)
class _AttentionRequest:
    """The needs of one kind of layer, and the recipe's setting for it.

    Attributes:
        of_transformers: `auto` takes only implementations of transformers.
        failed: why entries failed, by full name.
    """

    setting: str
    pick: Pick
    demand: Demand
    hardware: HardwareFacts
    precision: str
    context: Context | None
    of_transformers: bool
    failed: Mapping[str, str]

    @property
    def name(self) -> str:
        name = self.pick.get("name") if isinstance(self.pick, Mapping) else self.pick
        if not isinstance(name, str):
            raise PlanError(f"{self.setting}: the mapping has no name", action="add name: NAME, or full: and sliding:")
        return name

    def obstacle(self, registered: Registered) -> str:
        """Why the entry cannot be used; empty if it can. If nothing it declares forbids it, it is built: that checks
        the recipe's options, and its builder may know more, such as that its package cannot be imported."""
        entry = _entry(registered)
        reason = self.failed.get(registered.full_name) or obstacle(entry, self.demand, self.hardware, self.precision)
        if reason or self.context is None:
            return reason
        pick: Pick = registered.full_name
        if isinstance(self.pick, Mapping) and (self.name in (AUTO, entry.name, pick) or _meant(registered, self.name)):
            pick = {**self.pick, "name": pick}
        try:
            self.context.build("attention", pick, setting=self.setting)
        except (PlanError, PluginError) as error:
            return error.problem.removeprefix(f"{SETTING}={entry.name}: ")
        return ""


def _by_kind(asked: Pick, demands: Sequence[Demand]) -> Mapping[LayerKind, Pick]:
    """The pick for each kind of layer.

    Raises:
        PlanError: an unknown kind.
    """
    if not isinstance(asked, Mapping) or "name" in asked:
        return dict.fromkeys(KINDS, asked)
    has = [demand.kind for demand in demands]
    for kind in asked:
        if kind not in KINDS:
            raise PlanError(
                f"{SETTING}: {kind!r} is not a kind of layer", action="give full: and sliding:, or one name"
            )
        if kind not in has:
            raise PlanError(
                f"{SETTING}.{kind}: the model has no such layers, only {' and '.join(has)} ones", action="leave it out"
            )
    return {kind: asked.get(kind, AUTO) for kind in KINDS}


def _choose(request: _AttentionRequest, entries: Sequence[Registered]) -> tuple[Registered, str]:
    context = request.context
    if request.name == AUTO:
        ranked = [registered for registered in entries if _entry(registered).rank is not None]
        return _best(request, [r for r in ranked if _entry(r).transformers or not request.of_transformers], entries)
    alike = [registered for registered in entries if _meant(registered, request.name)]
    if len(alike) > 1 or (alike and request.name in _entry(alike[0]).aliases):
        return _best(request, alike, entries)[0], RECIPE
    assert context is not None or not entries
    if not entries or context is None:
        raise PlanError(f"{request.setting}: no plugin brings attention", action=install_command("finetooth-sdpa"))
    registered = context.catalog.get("attention", request.name, setting=request.setting, framework="torch")
    reason = request.obstacle(registered) if registered in entries else f"it is for {_entry(registered).framework}"
    if reason:
        raise PlanError(f"{request.setting}={request.name!r}: {reason}", action=_instead(request, entries))
    return registered, RECIPE


def _best(
    request: _AttentionRequest, candidates: Sequence[Registered], entries: Sequence[Registered]
) -> tuple[Registered, str]:
    """The first usable candidate, in `_order`. The reason names the ones before it that are for this hardware.

    Args:
        entries: all that a refusal may suggest.
    """
    passed: list[str] = []
    here: list[str] = []
    for registered in sorted(candidates, key=partial(_order, device=request.hardware.device)):
        reason = request.obstacle(registered)
        if not reason:
            first = f"the first choice on {request.hardware.label}"
            return registered, f"not {'; not '.join(here)}" if here else first
        passed.append(f"{registered.entry.name}: {reason}")
        if not reason.startswith(OTHER_HARDWARE):
            here.append(passed[-1])
    tried = "; ".join(passed) or "no plugin brings any"
    asks = request.setting if request.name == AUTO else f"{request.setting}={request.name!r}"
    action = "choose another model, precision or hardware" if request.name == AUTO else _instead(request, entries)
    raise PlanError(f"{asks}: nothing here computes the model's {request.demand.kind} layers ({tried})", action=action)


def _instead(request: _AttentionRequest, entries: Sequence[Registered]) -> str:
    ordered = sorted(entries, key=partial(_order, device=request.hardware.device))
    serving = [registered.entry.name for registered in ordered if not request.obstacle(registered)]
    return f"set {request.setting} to {' or '.join([AUTO, *serving])}"


SUPPORTS = {"flex_attention": "_supports_flex_attn", "sdpa": "_supports_sdpa"}
"""By transformers' name of an attention the attribute of a model's class that says whether its code accepts it."""


def _accepts(config: Mapping[str, Any], entry: Attention) -> bool:
    """Whether transformers' code of a model is known to accept an implementation of transformers."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if entry.transformers not in SUPPORTS or config.get("auto_map"):
        return False
    named = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type")), "")
    code = getattr(transformers, named, None) if isinstance(named, str) else None
    return getattr(code, SUPPORTS[entry.transformers], False) is True


def _meant(registered: Registered, name: str) -> bool:
    """Whether the name is an alias of the entry."""
    source, _, bare = name.rpartition(":")
    return bare in _entry(registered).aliases and (not source or source == registered.distribution)


def _order(registered: Registered, device: str) -> tuple[bool, float, str]:
    """Highest rank first. On an accelerator, those that get the beginnings of sequences come before all others: shared
    rows then need no dense mask, which fused kernels do not accept."""
    entry = _entry(registered)
    masked = device == "cpu" or entry.rank is None or entry.serves.segments != "lengths"
    return (masked, float("inf") if entry.rank is None else -entry.rank, registered.full_name)


def _entry(registered: Registered) -> Attention:
    entry = registered.entry
    assert isinstance(entry, Attention)
    return entry
