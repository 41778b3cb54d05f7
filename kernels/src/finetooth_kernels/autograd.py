"""What the backward passes here have in common."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd.function import once_differentiable as checked

__all__ = ["once_differentiable"]


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
