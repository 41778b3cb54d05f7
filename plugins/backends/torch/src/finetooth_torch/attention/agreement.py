"""Puts attention entries into a model, and checks that the model still computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from finetooth_hooks import Context, PlanError
from finetooth_hooks.compute.attention import LayerKind
from finetooth_hooks.plan import Pick
from finetooth_hooks.protocols import HardwareFacts, ModelFacts
from finetooth_steps.row_filling import ALLOWED, share
from finetooth_toolbox import blame
from torch import Tensor, nn

from finetooth_torch.attention.interface import Computes, checked, install
from finetooth_torch.layout.shared_rows import narrowed
from finetooth_torch.planning.attention import SETTING, AttentionChoice, choose_attention

TRIAL = 23
"""Positions of the trial. Windows are narrowed to less than that."""


def apply_attention(
    base: nn.Module, pick: Pick, facts: ModelFacts, config: Mapping[str, Any], hardware: HardwareFacts,
    precision: str, context: Context | None, *, of_transformers: bool, sliced: bool = False,
) -> AttentionChoice:  # fmt: skip
    """Make a model use the attention that `choose_attention` chose, and return the choice.

    If one fails in the model, the next best that the recipe allows replaces it, with a note: of transformers, unless
    only the package of the failed one is at fault, since the model's code then needs more than its config shows.

    Args:
        base: a model of transformers, in evaluation mode.
        of_transformers: see `choose_attention`. Of layers that the stream decoder computes, which it is compared with.
        sliced: ranks divide positions, so functions compute even if transformers has the implementation.

    Raises:
        PlanError: as `choose_attention` does; or as `attend_with` does, and the recipe allows no other.
    """
    body = base.get_submodule(facts.body)

    def applied(failed: Mapping[str, str], *, of_transformers: bool) -> AttentionChoice:
        made = choose_attention(
            context, pick, facts, config, hardware, precision, of_transformers=of_transformers, failed=failed
        )
        attention = replace(made, functions=sliced)
        try:
            attend_with(base, body, attention, context)
        except PlanError as error:
            functions = [made.picks[kind] for kind in made.picks if _as_function(attention, kind)]
            names = [of if isinstance(of, str) else str(of["name"]) for of in functions or made.picks.values()]
            own = of_transformers or not isinstance(error.__cause__, ImportError | OSError)
            try:
                attention = applied({**failed, **dict.fromkeys(names, error.problem)}, of_transformers=own)
            except PlanError:  # the recipe leaves nothing else
                raise error from error.__cause__
            assert context is not None  # it gave the entries
            context.note(f"{error.problem}; {attention.names} computes it instead")
        return attention

    return applied({}, of_transformers=of_transformers)


def attend_with(base: nn.Module, body: nn.Module, choice: AttentionChoice, context: Context | None) -> None:
    """Have the chosen entries compute a model's attention.

    Args:
        base: a model of transformers, in evaluation mode.
        body: the part of it that makes hidden states of tokens.
        context: builds entries.

    Raises:
        PlanError: the model computes something else than with its own attention.
    """
    model: Any = base
    computes = _built(choice, context)
    if len(set(computes.values())) == 1 and choice.implementation:
        install(base, computes)
        return
    model.set_attn_implementation("eager")  # every model has that
    with narrowed(body.config):
        own = _states(body)
    install(base, computes)  # this changes the config, so not while windows are narrowed
    with narrowed(body.config), checked():
        try:
            states = _states(body)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of a kernel
            said = str(error).strip().partition("\n")[0]
            raise PlanError(f"{SETTING}={choice.names}: it fails: {said}", action=f"set {SETTING} to auto") from error
    difference = share(*(of.cpu().double().numpy() for of in (states, own)))
    if difference > ALLOWED[states.element_size()]:
        places = "".join({blame.where(function): None for function in computes.values() if callable(function)})
        raise PlanError(
            f"{SETTING}: with {choice.names} the model computes other states than with its own attention "
            f"({difference:.1e} apart){places}",
            action=f"set {SETTING} to auto",
        )


def _built(choice: AttentionChoice, context: Context | None) -> Mapping[str, Computes]:
    """Returns the attention functions by kind of layer. If the layers' attentions differ, entries that accept lengths
    get them: their implementation in transformers would derive lengths from the positions of all layers."""
    computes: dict[str, Computes] = {}
    built: dict[str, Computes] = {}
    for kind, entry in choice.entries.items():
        pick = choice.picks[kind]
        if not _as_function(choice, kind):
            computes[kind] = entry.transformers
            continue
        assert context is not None  # it gave the entry
        if repr(pick) not in built:
            built[repr(pick)] = context.build("attention", pick, setting=f"{SETTING}.{kind}")
        computes[kind] = built[repr(pick)]
    return computes


def _as_function(choice: AttentionChoice, kind: LayerKind) -> bool:
    """Whether an entry's function computes layers of a kind, not transformers."""
    entry = choice.entries[kind]
    looks = choice.functions or (entry.serves.segments == "lengths" and not choice.implementation)
    return looks or not entry.transformers


@torch.no_grad()
def _states(body: nn.Module) -> Tensor:
    """(1, TRIAL, D) states of some tokens."""
    embedding: Any = body
    rows = int(embedding.get_input_embeddings().weight.shape[0])
    device = next(body.parameters()).device
    tokens = (torch.arange(TRIAL, device=device) * 5) % (rows - 1) + 1  # id 0 is often padding
    states: Tensor = body(input_ids=tokens[None], use_cache=False).last_hidden_state
    return states
