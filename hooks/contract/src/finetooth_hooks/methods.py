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
    `finetooth_hooks.MethodBase`, where `noun`, `data`, `roles` and `read_beginning` have the answers of one that needs
    none of them.
    """

    @property
    def capabilities(self) -> frozenset[str]:
        """Words of `finetooth_hooks.capabilities.METHOD`."""
        ...

    @property
    def noun(self) -> str:
        """What a datum is, in reports: `row`, `window`, `pair`."""
        ...

    @property
    def data(self) -> Sequence[Datum]:
        """What it trains, in the order of the rows, if that is known once it is prepared, and stays the same; else
        empty. Lengths are asked for with `token_rows.positions_of`."""
        ...

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """What the engine shall hold for each role; None: nothing, the method gives the role's numbers with the data.
        A role that is not named is the policy without its adapter."""
        ...

    def prepare(self) -> Prepared:
        """Read and tokenise the data. Called once, before the engine is built, so that bad data fail early."""
        ...

    def steps(self, engine: Engine) -> Iterator[StepReport]:
        """One optimizer step per item; the run loop may log, evaluate, save or stop between two."""
        ...

    def state(self) -> Mapping[str, Any]:
        """JSON, and NumPy arrays of any type but objects at any place in its mappings (with text keys) and lists;
        `restore` gets them back with dtype, shape and content. Asked for after every step, so that the state before a
        failed one is known: keep it cheap. Arrays are copied, but for those that are read-only.

        After a failed step, the state already stands after the data of that step: a run that skips these data restores
        the state, and a new call of `steps` continues with the next data. So advance the cursor before the engine is
        called.
        """
        ...

    def restore(self, state: Mapping[str, Any]) -> None: ...

    def read_beginning(self, engine: Engine) -> None:
        """Read what the method needs from the weights before the first step of a run; no checkpoint holds these
        weights.

        Called when a run resumes, after `prepare` and before the saved state is loaded; not in a new run, whose first
        step or evaluation sees these weights anyway.

        Raises:
            FinetoothError: it could not be had.
        """
        ...
