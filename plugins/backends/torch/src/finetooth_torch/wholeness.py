"""Whether weights and optimizer are those of a whole step: an update that breaks off half way must not be kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from finetooth_hooks import EngineError
from torch import Tensor

ACTION = "go on from the last checkpoint"


class Wholeness:
    """Watches updates. What breaks one off (no memory, a second Ctrl-C) may have moved some of the weights, or only
    the optimizer's state; torch counts the changes of every tensor, so the weights tell."""

    def __init__(self) -> None:
        self.weights = self.optimizer = True

    @contextmanager
    def update(self, masters: Sequence[Tensor]) -> Iterator[None]:
        """Around one update of the masters."""
        before = [master._version for master in masters]
        try:
            yield
        except BaseException:
            self.optimizer = False
            self.weights = self.weights and before == [master._version for master in masters]
            raise

    def restored(self) -> None:
        """Everything was loaded again."""
        self.weights = self.optimizer = True

    def check_weights(self) -> None:
        """
        Raises:
            EngineError: an update broke off after some of the weights had moved.
        """
        if not self.weights:
            raise EngineError("the weights are half updated: the last step broke off in its update", action=ACTION)

    def check_state(self) -> None:
        """
        Raises:
            EngineError: an update broke off; the optimizer's state may be that of no whole step.
        """
        self.check_weights()
        if not self.optimizer:
            raise EngineError(
                "the optimizer's state is half updated: the last step broke off in its update", action=ACTION
            )
