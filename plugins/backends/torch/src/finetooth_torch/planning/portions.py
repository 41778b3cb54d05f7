"""Chooses the tokens of a micro-batch, and whether activations are recomputed.

On an accelerator both are chosen together: if a step does not fit whole, smaller micro-batches cost little while
products keep the device busy, and recomputing costs another forward pass. On a CPU micro-batches are always small.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from finetooth_hooks import Decision, MemoryEstimate, PlanError
from finetooth_hooks.protocols import PlanRequest
from finetooth_toolbox.text.measures import size

RECIPE = "the recipe says so"
TOKENS, CHECKPOINTING = "train.micro_batch_tokens", "train.gradient_checkpointing"
CPU_TOKENS = 4096
MOST = 16384
"""Most tokens of a micro-batch on an accelerator; more make products no faster."""
BUSY = 2048
"""Fewest tokens that keep an accelerator busy; rather than go below, the plan recomputes activations."""
FEWEST = 256


class Needs(Protocol):
    """Memory of a run; see `memory.estimate`."""

    def __call__(self, micro_batch_tokens: int, *, checkpointing: bool) -> MemoryEstimate: ...


def choose_portions(request: PlanRequest, needs: Needs) -> tuple[Decision, Decision]:
    """Tokens of a micro-batch, and whether activations are recomputed.

    Raises:
        PlanError: the recipe's rows or optimizer exclude its settings.
    """
    if request.train.gradient_checkpointing and not request.updates.checkpointing:
        raise PlanError(
            f"{CHECKPOINTING}=true: optimizer {request.updates.name} does not work with it",
            action=f"set {CHECKPOINTING} to false, or choose another optimizer",
        )
    on_cpu = request.place.hardware.device == "cpu"
    if not on_cpu and request.train.micro_batch_tokens is None and request.updates.accumulation:
        return _together(request, needs)
    tokens = _tokens(request, CPU_TOKENS if on_cpu else MOST)
    return tokens, _checkpointing(request, needs, int(tokens.value))


# --- on an accelerator ------------------------------------------------------------------------------------------------


def _together(request: PlanRequest, needs: Needs) -> tuple[Decision, Decision]:
    """The first that fits; the smallest if none does."""
    tried: list[tuple[int, str]] = []
    for tokens, recomputes in _candidates(request):
        fits, figures = _fits(needs(tokens, checkpointing=recomputes), request)
        tried.append((tokens, figures))
        if fits:
            break
    first = tried[0]
    longest = tokens == request.data.longest
    reason = "as much as the longest row" if longest else "enough to keep the device busy"
    if first[0] != tokens:
        reason = f"{'the longest row; ' if longest else ''}{first[0]} would take {first[1]}"
    setting = request.train.gradient_checkpointing
    if setting is not None:
        why = RECIPE
    elif recomputes:
        why = f"without it {_fewest_kept(request)} tokens would take more than there is; with it {figures}"
    elif fits:
        why = f"activations fit: {figures}"
    else:
        why = f"optimizer {request.updates.name} does not work with it ({figures} needed)"
    return Decision(TOKENS, tokens, reason), Decision(CHECKPOINTING, recomputes, why)


def _candidates(request: PlanRequest) -> Iterator[tuple[int, bool]]:
    """Tokens, and whether to recompute, the best first. Fewer tokens than `BUSY` waste more of the device than
    recomputing does."""
    setting, able = request.train.gradient_checkpointing, request.updates.checkpointing
    stored = setting is False or not able  # recomputing is impossible
    if not setting:
        yield from ((tokens, False) for tokens in _sizes(request, FEWEST if stored else BUSY))
    if not stored:
        yield from ((tokens, True) for tokens in _sizes(request, FEWEST))


def _sizes(request: PlanRequest, fewest: int) -> list[int]:
    """Repeated halves of the most, down to the fewest or the longest row."""
    halves, tokens = [], MOST
    while tokens >= fewest:
        halves.append(max(tokens, request.data.longest))
        tokens //= 2
    return list(dict.fromkeys(halves))


def _fewest_kept(request: PlanRequest) -> int:
    return _sizes(request, BUSY)[-1]


# --- as the recipe or the host says -----------------------------------------------------------------------------------


def _tokens(request: PlanRequest, otherwise: int) -> Decision:
    tokens = request.train.micro_batch_tokens
    if tokens is not None:
        if tokens < 1:
            raise PlanError(f"{TOKENS}={tokens}: it holds no token", action="set it to auto or a positive number")
        reason = RECIPE
        if request.data.mean_length and tokens < request.data.longest:
            row = f"row {request.data.longest_id}" if request.data.longest_id else "the longest row"
            least = tokens + 1 - request.data.unbounded
            raise PlanError(
                f"{TOKENS}={tokens}: {row} has {request.data.longest} tokens, which do not fit",
                action=f"set it to auto or at least {request.data.longest}"
                + (f", or lower {request.data.bounded_by} below {least}" if least > 1 else ""),
            )
    else:
        tokens = otherwise
        reason = "enough rows to keep the GEMMs busy, little memory"
        if tokens < request.data.longest:
            tokens, reason = request.data.longest, "as much as the longest row"
    if not request.updates.accumulation:
        whole = request.train.batch_size * max(request.data.longest, 1)
        if request.train.micro_batch_tokens is not None and tokens < whole:
            raise PlanError(
                f"{TOKENS}={tokens} cuts a step of up to {whole} tokens, and optimizer {request.updates.name} cannot "
                "accumulate gradients",
                action=f"set {TOKENS} to auto, or choose another optimizer",
            )
        tokens = max(tokens, whole)
        reason = f"a whole step: optimizer {request.updates.name} cannot accumulate gradients"
    return Decision(TOKENS, tokens, reason)


def _checkpointing(request: PlanRequest, needs: Needs, tokens: int) -> Decision:
    setting = request.train.gradient_checkpointing
    if setting is not None:
        return Decision(CHECKPOINTING, setting, RECIPE)
    fits, figures = _fits(needs(tokens, checkpointing=False), request)
    if fits:
        return Decision(CHECKPOINTING, False, f"activations fit: {figures}")
    if not request.updates.checkpointing:
        return Decision(
            CHECKPOINTING, False, f"optimizer {request.updates.name} does not work with it ({figures} needed)"
        )
    return Decision(CHECKPOINTING, True, f"without it the run would take {figures}")


def _fits(memory: MemoryEstimate, request: PlanRequest) -> tuple[bool, str]:
    """Whether the device has room, and the host for activations that are there; and the figures that decide."""
    has, of_host, host = request.place.hardware.memory, request.place.hardware.host_memory, sum(memory.host.values())
    if "activations" in memory.host and memory.total <= has and 0 < of_host < host:
        return False, f"{size(host)} of the host's {size(of_host)}"
    return memory.total <= has, f"{size(memory.total)} of {size(has)}"
