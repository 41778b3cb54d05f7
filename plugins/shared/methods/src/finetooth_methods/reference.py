"""Which model is the reference, and how it moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from finetooth_hooks.compute.losses import LossSpec
from finetooth_hooks.engine import Engine, RoleModel
from finetooth_hooks.errors import PlanError, RecipeError
from finetooth_hooks.options import Options
from finetooth_toolbox.combined_losses import with_known_role
from pydantic import BeforeValidator, Field

ROLE = "reference"
AUTO, ADAPTER_OFF, FROZEN_COPY, PRECOMPUTED = "auto", "adapter-off", "frozen-copy", "precomputed"


class ReferenceOptions(Options):
    """The reference that the policy is kept close to."""

    policy: str = Field(default=AUTO, min_length=1)
    """`adapter-off` is the policy without its adapter, and takes no memory. `frozen-copy` is a copy of the trained
    weights from before the first step. `precomputed` computes the reference's log-probabilities once, before training,
    and keeps them. Any other text is another model with the same tokenizer: a name, folder or hub id. `auto` is
    `adapter-off` if the adapter can be switched off, else `frozen-copy`."""
    sync_every: int | None = Field(default=None, ge=1)
    """The copy moves towards the policy every so many steps (TR-DPO). Left out, it never moves."""
    mix: float = Field(default=0.6, gt=0, le=1)
    """How far the copy moves: the share of the policy's weights; 1 replaces the copy."""


def _as_mapping(value: Any) -> Any:
    return {"policy": value} if isinstance(value, str) else value


Reference = Annotated[ReferenceOptions, BeforeValidator(_as_mapping)]
"""The section, or only its `policy`."""


class ReferencePolicy:
    """A recipe's settings of the reference.

    Raises:
        RecipeError: a fixed reference is set to follow the policy.
    """

    def __init__(self, options: ReferenceOptions) -> None:
        self.options = options
        follows = options.sync_every is not None
        if follows and options.policy not in (AUTO, FROZEN_COPY):
            raise RecipeError(
                "method.reference.sync_every",
                f"the reference {options.policy!r} cannot follow the policy",
                action="set method.reference.policy to frozen-copy, or leave sync_every out",
            )
        self.precomputed = options.policy == PRECOMPUTED

    @property
    def roles(self) -> Mapping[str, RoleModel | None]:
        """The reference model for the engine, as in `protocols.Method.roles`."""
        policy = self.options.policy
        if policy == ADAPTER_OFF:
            return {}
        if policy == PRECOMPUTED:
            return {ROLE: None}
        if policy == AUTO:
            return {ROLE: RoleModel(only_if_needed=self.options.sync_every is None)}
        return {ROLE: RoleModel("" if policy == FROZEN_COPY else policy)}

    def loss(self, spec: LossSpec) -> LossSpec:
        """The loss as the engine gets it."""
        return with_known_role(spec, ROLE) if self.precomputed else spec

    def follow(self, engine: Engine, step: int) -> None:
        """After a step: move the reference if it is due.

        Raises:
            PlanError: the engine cannot.
        """
        every = self.options.sync_every
        if every is None or step % every:
            return
        if "roles" not in engine.capabilities:
            raise PlanError("method.reference.sync_every: the engine holds no copy", action="leave it out")
        engine.move_role(ROLE, self.options.mix)
