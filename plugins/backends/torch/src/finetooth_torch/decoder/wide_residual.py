"""A residual stream in float32 for layers of transformers' own code that compute in fp16.

Layers add to the stream, and some models' streams exceed 65,504, fp16's largest number; what a layer computes does not,
since it reads the stream through a norm. So the stream enters the first layer in float32, norms that read it give fp16,
and sums with it are float32 by torch's rule for two dtypes. What a norm after attention or a feed-forward block gives
(Gemma 2) is added to the stream, so it is float32 too. A linear module that reads the stream itself (Gemma 4) reads it
divided by a power of two.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack
from functools import cache, wraps
from typing import Any

import torch
from finetooth_hooks import Context
from finetooth_hooks.protocols import ModelFacts
from torch import Tensor, nn
from torch.nn import functional

NARROW = torch.float16
ROOM = 2.0**10
"""Largest number of a stream that a linear module reads; its sums are larger."""
PROBE = 2.0**20
"""Largest number of the stream in the trial; beyond fp16."""


def widen_residual(base: Any, facts: ModelFacts, context: Context | None = None) -> None:
    """Make a model in fp16 keep its residual stream in float32, unless a trial shows that its code cannot.

    Args:
        base: a transformers model; in other precisions it stays as it is.
        context: tells why the stream stays in fp16.
    """
    reason = _widened(base, facts) if getattr(base, "dtype", None) == NARROW else ""
    if reason and context:
        context.note(
            f"train.precision=fp16: {base.config.model_type}'s residual stream is fp16 too, and numbers beyond 65,504 "
            f"in it end the run; train.precision: fp32 has room for them (not in float32: {reason})"
        )


def _widened(base: nn.Module, facts: ModelFacts) -> str:
    """Why the stream stays in fp16; empty if it is float32 from now on."""
    try:
        body, stack = base.get_submodule(facts.body), base.get_submodule(facts.layer_path.rpartition(".")[0])
        layers = list(base.get_submodule(facts.layer_path).children())
    except AttributeError:
        return f"it has no {facts.layer_path}"
    training = body.training
    with ExitStack() as undo:
        undo.callback(layers[0].register_forward_pre_hook(_enter, with_kwargs=True).remove)
        for module, wide in _readers(stack, layers, facts.linear_targets).items():
            undo.callback(setattr, module, "__class__", type(module))
            module.__class__ = wide
        body.eval()
        try:
            reason = _trial(body, layers)
        finally:
            body.train(training)
        if not reason:
            undo.pop_all()
    return reason


def _readers(stack: nn.Module, layers: list[nn.Module], linear: Collection[str]) -> dict[nn.Module, type[nn.Module]]:
    """Modules that may read the stream, and a class for each; those in attention and other blocks do not.

    Args:
        linear: names of linear modules, of whatever class an adapter gives them.
    """
    found: dict[nn.Module, type[nn.Module]] = {}
    for holder in (stack, *layers):
        for name, module in holder.named_children():
            if "norm" in f"{name} {type(module).__name__}".lower():
                found[module] = _norm(type(module), holder is not stack)  # type: ignore[arg-type]
            elif name in linear and not any("bias" in path for path, _ in module.named_parameters()):
                found[module] = _linear(type(module))  # type: ignore[arg-type]
    return found


def _enter(_: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The first layer's arguments, with the stream in float32."""
    if args:
        return (args[0].float(), *args[1:]), more
    return args, {**more, "hidden_states": more["hidden_states"].float()}


@cache
def _norm(kind: type[nn.Module], in_layer: bool) -> type[nn.Module]:
    """A class like `kind`, of a norm that gives fp16 for the stream.

    Args:
        in_layer: what it gives for anything else is added to the stream.
    """

    @wraps(kind.forward)
    def forward(self: Any, hidden: Tensor, *args: Any, **more: Any) -> Tensor:
        adds = in_layer and hidden.dtype == NARROW
        if kind.forward is nn.LayerNorm.forward:  # its operation takes weights in the input's dtype alone
            weight, bias = (None if of is None else of.float() for of in (self.weight, self.bias))
            made = functional.layer_norm(hidden.float(), self.normalized_shape, weight, bias, self.eps)
        else:
            made = kind.forward(self, hidden.float(), *args, **more)
        return made if adds else made.to(NARROW)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


@cache
def _linear(kind: type[nn.Module]) -> type[nn.Module]:
    """A class like `kind`, of a linear module without bias, that gives float32 for the stream."""

    @wraps(kind.forward)
    def forward(self: Any, hidden: Tensor, *args: Any, **more: Any) -> Any:
        if hidden.dtype == NARROW:
            return kind.forward(self, hidden, *args, **more)
        times = (hidden.detach().abs().amax(-1, keepdim=True) / ROOM).clamp_min(1.0).log2().ceil().exp2()
        return kind.forward(self, (hidden / times).to(NARROW), *args, **more).float() * times

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})


@torch.no_grad()
def _trial(body: nn.Module, layers: list[nn.Module]) -> str:
    """Why a stream beyond fp16 does not pass through the layers in float32; empty if it does."""
    seen: list[Tensor] = []

    def enlarge(_: nn.Module, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        stream = args[0] if args else more["hidden_states"]
        large = stream * (PROBE / stream.abs().amax().clamp_min(1e-30))
        return ((large, *args[1:]), more) if args else (args, {**more, "hidden_states": large})

    def keep(_: nn.Module, __: Any, made: Any) -> None:
        seen.append(made[0] if isinstance(made, tuple) else made)

    with ExitStack() as hooks:
        hooks.callback(layers[0].register_forward_pre_hook(enlarge, with_kwargs=True).remove)
        for layer in layers:
            hooks.callback(layer.register_forward_hook(keep).remove)
        try:
            device = next(body.parameters()).device
            vocabulary = int(body.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
            tokens = (torch.arange(4, device=device)[None] * 5) % (vocabulary - 1) + 1
            states = body(input_ids=tokens, use_cache=False).last_hidden_state
        except Exception as error:  # of the model's own code
            return f"its code fails: {(str(error) or type(error).__name__).splitlines()[0]}"
    if len(seen) != len(layers) or any(stream.dtype != torch.float32 for stream in seen):
        return "a layer rounds it"
    if states.dtype != NARROW or not bool(torch.isfinite(states).all()):
        return "a module reads it without a norm, or gives more than fp16 holds"
    return ""
