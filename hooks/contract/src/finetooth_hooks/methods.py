"""Methods, which turn examples into data and drive the engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from finetooth_hooks.data.datum import Datum
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.reports import Prepared, StepReport


class Method(Protocol):
    """Turns examples into data and drives the engine: a generator of steps.

    Everything that must survive a `yield` (cursor, replay buffer, controllers) is in `state()`. A method derives from
    `finetooth_hooks.MethodBase`, which has defaults of `noun`, `data`, `roles` and `read_beginning`.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities.METHOD`."""
        ...

    @property
    def noun(self) -> str:
        """The word for a datum in reports: `row`, `window`, `pair`."""
        ...

    @property
    def data(self) -> Sequence[Datum]:
        """The training data in the order of the rows, if preparation determines them for the whole run; else empty.
        `token_rows.positions_of` gives their lengths."""
        ...

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """The model that the engine holds for each role; None: no model, since the method's data contain the role's
        numbers. A role without an item is the policy without its adapter."""
        ...

    def prepare(self) -> Prepared:
        """Read and tokenise the data. Called once, before the engine is built, so that bad data fail early."""
        ...

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """Train, one optimizer step per item; between two items the run loop may log, evaluate, save or stop."""
        ...

    def state(self) -> Mapping[str, Any]:
        """The state for `restore`: JSON values, and NumPy arrays of any type except objects, anywhere in mappings (with
        text keys) and lists; arrays keep dtype, shape and content. The run loop calls this after every step, to have
        the state before a failed one: keep it cheap. It copies arrays, except read-only ones.

        After a failed step, the state must already be past the data of that step: a run that skips these data restores
        the state, and a new call of `steps` continues with the next data. So advance the cursor before calling the
        engine.
        """
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def read_beginning(self, engine: Engine) -> None:
        """Read what the method needs from the weights before the first step of a run; no checkpoint holds these
        weights.

        Called when a run resumes, after `prepare` and before the saved state is loaded; not in a new run, whose first
        step or evaluation sees these weights anyway.

        Raises:
            FinetoothError: the needed values could not be read or computed.
        """
        ...
