"""A torch optimizer that is stepped for one parameter after the other, so that what its update takes besides (its
state, weights in full precision) is there for one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetooth_torchshared.by_parameter import Settings, loss_of, places_in

Around = Callable[[Tensor, Settings, int], AbstractContextManager[None]]
"""What surrounds the update of one parameter: the weight, its state, and its place among all, counted from 1."""
KEPT_BITS = -(1 << 16)
"""The bits of a number in fp32 that bf16 has: 0xFFFF0000 as a signed number."""
PIECE = 1 << 20
"""Numbers that are corrected at once."""


class OneByOne(torch.optim.Optimizer):
    """Steps another optimizer, which then finds one gradient at a time. Groups and states are shared with it.

    The numbers are those of the other optimizer, bit for bit, if it updates each parameter from its own gradient and
    state alone.

    Args:
        inner: is stepped.
        around: entered around each parameter's update, in this order.
        keep: where a state that is restored lies until it is needed, if not with its parameter.
    """

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        around: Sequence[Around],
        keep: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(inner.param_groups, {})
        self._inner, self._around, self._keep = inner, tuple(around), keep
        self._places = places_in(inner.param_groups)
        self._share()

    def _share(self) -> None:
        """What the inner one has; it may itself share it with others."""
        self.param_groups, self.state = self._inner.param_groups, self._inner.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `torch.optim.Optimizer.load_state_dict`, but each state keeps its type, whatever that of its weight."""
        self._inner.load_state_dict(state_dict)
        self._share()
        names = [name for group in state_dict["param_groups"] for name in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for name, weight in zip(names, weights, strict=True):
            for key, saved in state_dict["state"].get(name, {}).items():
                if isinstance(saved, Tensor) and saved.dim():
                    keep = self._keep or partial(_copy, device=weight.device)
                    self.state[weight][key] = keep(saved)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update; returns what `closure`, called first, returned."""
        loss = loss_of(closure)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        try:
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is None:
                    continue
                with ExitStack() as entered:
                    for around in self._around:
                        entered.enter_context(around(weight, self.state[weight], self._places.get(weight, 1)))
                    weight.grad = gradient.to(weight.dtype)
                    try:
                        self._inner.step()
                    finally:
                        weight.grad = None
        finally:
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient
        return loss


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, copy=True)


def lent(keep: Callable[[Tensor], Tensor]) -> Around:
    """Bring the state of a parameter to it during its update, and keep it elsewhere before and after.

    Args:
        keep: a copy of a tensor where states are kept.
    """

    @contextmanager
    def around(weight: Tensor, state: Settings, place: int) -> Iterator[None]:
        if weight.is_meta:
            yield
            return
        elsewhere = {name: value for name, value in state.items() if isinstance(value, Tensor) and value.dim()}
        for name, value in elsewhere.items():
            state[name] = value.to(weight.device, copy=True)
        try:
            yield
        finally:
            for name, value in list(state.items()):
                if isinstance(value, Tensor) and value.dim():
                    there = elsewhere.get(name)
                    alike = there is not None and there.shape == value.shape and there.dtype == value.dtype
                    state[name] = there.copy_(value) if there is not None and alike else keep(value)

    return around


def rounded_by_chance(seed: int) -> Around:
    """A weight in bf16 is updated in fp32 and rounded back up or down by chance, so that on average nothing is lost
    (stochastic rounding; Zamirai et al., 2020, Revisiting BFloat16 Training, arXiv:2010.06192). Weights in other types
    are updated as they are.

    The draws follow from the seed, the parameter's place and the number of its updates, which is kept in its state.
    """

    @contextmanager
    def around(weight: Tensor, state: Settings, place: int) -> Iterator[None]:
        low = weight.data
        if low.dtype != torch.bfloat16:
            yield
            return
        weight.data = low.float()
        try:
            yield
        except BaseException:
            weight.data = low
            raise
        high, weight.data = weight.data, low
        number = state["rounded"] = state.get("rounded", 0) + 1
        if low.device.type != "meta":
            draw = torch.Generator(low.device).manual_seed((seed * 1_000_003 + place) * 1_000_003 + number)
            round_by_chance(high, low, draw)

    return around


@contextmanager
def corrected(weight: Tensor, state: Settings, place: int) -> Iterator[None]:
    """A weight in bf16 is updated in fp32 and rounded to the nearest, and its state keeps in 8 bits what that lost, as
    127ths of half a unit in the last place (FlashOptim; Gonzalez Ortiz et al., 2026, arXiv:2602.23349, section 3.1).
    Weights in other types are updated as they are."""
    low = weight.data
    if low.dtype != torch.bfloat16:
        yield
        return
    weight.data = low.float()
    if "lost" in state:
        for high, rounded, lost in _pieces(weight.data, low, state["lost"]):
            high += _scaled(lost.float() / 127, _half_unit(rounded))
    try:
        yield
    except BaseException:
        weight.data = low
        raise
    whole, weight.data = weight.data, low
    low.copy_(whole)
    if "lost" not in state:
        state["lost"] = torch.zeros_like(low, dtype=torch.int8)
    for high, rounded, lost in _pieces(whole, low, state["lost"]):
        share = _scaled(high - rounded.float(), -_half_unit(rounded))
        lost.copy_(share.nan_to_num(0, 0, 0).clamp(-1, 1).mul(127).round())


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, a few rows at a time: what is made in between is several times as much."""
    rows = max(1, PIECE * len(tensors[0]) // max(1, tensors[0].numel())) if tensors[0].dim() else 1
    return zip(*(torch.split(tensor, rows) if tensor.dim() else (tensor,) for tensor in tensors), strict=True)


def _half_unit(low: Tensor) -> Tensor:
    """The exponent of half a unit in the last place of numbers in bf16, whose subnormal ones share that of the least
    normal one."""
    exponent = torch.frexp(low.float()).exponent - 1
    return torch.where(low == 0, -126, exponent).clamp(min=-126) - 8


def _scaled(numbers: Tensor, exponent: Tensor) -> Tensor:
    """Numbers times powers of two, in two steps: 2^134 itself is more than fp32 holds."""
    half = exponent // 2
    return torch.ldexp(torch.ldexp(numbers, half), exponent - half)


def round_by_chance(high: Tensor, low: Tensor, draw: torch.Generator) -> None:
    """Round numbers in fp32 into bf16: to the two neighbours of each with the chances that make the average exact.

    Args:
        high: in fp32; is overwritten.
        low: in bf16, of the same shape.
    """
    bits = high.contiguous().view(torch.int32)
    more = torch.randint(0, 1 << 16, bits.shape, generator=draw, dtype=torch.int32, device=bits.device)
    finite = torch.isfinite(high)
    low.copy_(torch.where(finite, more.add_(bits).bitwise_and_(KEPT_BITS).view(torch.float32), high))


__all__ = ["Around", "OneByOne", "corrected", "lent", "round_by_chance", "rounded_by_chance"]
