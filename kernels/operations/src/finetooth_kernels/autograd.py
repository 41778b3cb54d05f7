"""Common code of the differentiable operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable as checked

__all__ = ["apply", "once_differentiable"]


class _Unsaved:
    """Stands for the context of a forward pass that nothing goes back through."""

    def __init__(self, arguments: int) -> None:
        self.needs_input_grad = (False,) * arguments

    def save_for_backward(self, *tensors: Any) -> None:
        """Nothing is kept."""


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """The function's result. While no graph is built it is called as it is: compared with what a kernel takes for a few
    rows, a node of the graph is not cheap, even one that is thrown away at once."""
    if torch.is_grad_enabled():
        return function.apply(*arguments)  # type: ignore[no-untyped-call]
    return function.forward(_Unsaved(len(arguments)), *arguments)


def once_differentiable(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that has no derivative itself; asking for one is an error, as with torch's own decorator.

    That one looks for it in every call, which for small models takes longer than what is computed here. No graph is
    built while gradients are off, as they are in backward unless somebody asks for second derivatives.
    """
    careful = checked(backward)

    @wraps(backward)
    def call(*arguments: Any) -> Any:
        return (careful if torch.is_grad_enabled() else backward)(*arguments)

    return call
