"""An optimizer step as one function that MLX may compile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
from finetooth_hooks import PlanError

from finetooth_mlx.arrays import NamedArrays, named, nested
from finetooth_mlx.optimizers import applied

__all__ = ["Update"]

Options = Mapping[str, float | tuple[float, ...]]


class Update:
    """Updates the trainable parameters from their gradients.

    Shapes are the same in every step, so MLX traces a compiled update once for each set of options. A compiled update
    reads and writes each number once; its rounding may differ.

    Attributes:
        optimizer: the update changes its state.

    Args:
        compiled: whether MLX compiles it.

    Raises:
        PlanError: MLX cannot compile on this machine.
    """

    def __init__(self, optimizer: Any, *, compiled: bool) -> None:
        self.optimizer, self._compiled = optimizer, compiled
        self._traced: dict[tuple[Any, ...], Callable[..., tuple[NamedArrays, Any]]] = {}
        if compiled:
            _try()

    def __call__(self, grads: NamedArrays, masters: NamedArrays, options: Options) -> NamedArrays:
        """The weights after the step, lazy.

        Args:
            options: of the optimizer, for this step.
        """
        before = self.optimizer.state
        with applied(self.optimizer, options):
            if not self._compiled:
                return self._moved(grads, masters, before)[0]
            key = tuple(sorted(options.items()))
            if key not in self._traced:
                self._traced[key] = mx.compile(self._moved)
            try:
                moved, after = self._traced[key](grads, masters, before)
            except Exception:
                self.optimizer.state = before  # tracers hold no numbers
                raise
        self.optimizer.state = after
        return moved

    def _moved(self, grads: NamedArrays, masters: NamedArrays, state: Any) -> tuple[NamedArrays, Any]:
        self.optimizer.state = state
        moved = named(self.optimizer.apply_gradients(nested(grads), nested(masters)))
        return moved, self.optimizer.state


def _try() -> None:
    try:
        mx.eval(mx.compile(lambda x: mx.sqrt(x) * 2 + 1)(mx.ones(4)))
    except Exception as error:  # on a CPU MLX calls a C++ compiler
        raise PlanError(
            f"backend.compile=true: MLX cannot compile here: {(str(error) or 'no message').splitlines()[0]}",
            action="install a C++ compiler, or set backend.compile to false",
        ) from None
