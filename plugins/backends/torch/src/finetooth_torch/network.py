"""The model as the engine calls it: a rectangle of tokens in, the outputs that a loss declared out."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import Adapter, ModelFacts
from torch import Tensor, nn

from finetooth_torch.head import Projection
from finetooth_torch.precision import result_dtype
from finetooth_torch.rectangles import Rectangle

OUTPUTS = ("logprobs", "entropy", "hidden", "logits")
ROLES = ("policy", "reference")


class Network:
    """A base model with its adapter.

    Args:
        base: the transformers model; the family's module paths are paths in it.
        model: what the adapter returned. It changed the modules of `base` in place, so both compute the same.
        can_disable: the adapter can be switched off.
        checkpointing: recompute activations in backward.
    """

    def __init__(
        self, base: nn.Module, model: nn.Module, facts: ModelFacts, adapter: Adapter, *, can_disable: bool,
        checkpointing: bool,
    ) -> None:  # fmt: skip
        self.base, self.model, self.facts = base, model, facts
        self._adapter, self._can_disable = adapter, can_disable
        self.config: Any = base.config
        self._body: Any = base.get_submodule(facts.body)
        self.head = Projection(lambda: base.get_submodule(facts.head.module), facts.head, facts.vocab_size)
        self._training: bool | None = None
        if checkpointing:
            # transformers renamed it in 5.x
            named = hasattr(base, "activation_checkpointing_enable")
            enable: Any = getattr(base, "activation_checkpointing_enable" if named else "gradient_checkpointing_enable")
            enable({"use_reentrant": False})

    def train(self, mode: bool) -> None:
        """Dropout and checkpointing on or off; walking the modules costs, so only when it changes."""
        if self._training is not mode:
            self.model.train(mode)
            self._training = mode

    def role(self, role: str) -> AbstractContextManager[Any]:
        """While entered, the model computes as `role`.

        Raises:
            PlanError: no such role, or the adapter cannot be switched off.
        """
        if role == "policy":
            return nullcontext()
        if role != "reference":
            raise PlanError(
                f"method: it needs the role {role!r}, which the torch backend does not have",
                action=f"choose a method with the roles {', '.join(ROLES)}",
            )
        if not self._can_disable:
            raise PlanError(
                "method: it needs the reference role, but the adapter cannot be switched off",
                action="choose an adapter that can be disabled, such as a low-rank one",
            )
        return self._adapter.disabled(self.model)

    def hidden(self, tokens: Tensor, *, positions: Tensor | None = None, **extra: Any) -> Any:
        """The body's output for (S, T) ids; `last_hidden_state` is (S, T, D)."""
        if positions is not None and "attention_mask" not in extra:
            # without a mask transformers takes a jump in the positions for a packed second sequence
            extra["attention_mask"] = torch.ones_like(tokens)
        if positions is not None:
            extra["position_ids"] = positions
        extra.setdefault("use_cache", False)
        return self._body(input_ids=tokens, **extra)

    def outputs(self, rectangle: Rectangle, needs: Collection[str], *, everywhere: bool = False) -> dict[str, Tensor]:
        """What `needs` names, of the role that is entered.

        Args:
            needs: of `logprobs` (S, T) or (S, T, K), `entropy` (S, T), `hidden` (S, T, D), `logits` (S, T, V).
            everywhere: hidden and logits at every position, not only where the mask is true (0 elsewhere).

        Raises:
            PlanError: something else is named.
        """
        for need in needs:
            if need not in OUTPUTS:
                raise PlanError(
                    f"loss: it needs the output {need!r}, which the torch backend does not have",
                    action=f"choose a loss that reads {', '.join(OUTPUTS)}",
                )
        hidden = self.hidden(rectangle.tokens, positions=rectangle.positions).last_hidden_state
        found: dict[str, Tensor] = {}
        if "logprobs" in needs or "entropy" in needs:
            logprobs, entropy = self.head.scores(hidden, rectangle.targets, rectangle.mask, entropy="entropy" in needs)
            if "logprobs" in needs:
                found["logprobs"] = logprobs
            if entropy is not None:
                found["entropy"] = entropy
        mask = rectangle.mask.unsqueeze(-1)
        if "hidden" in needs:
            wide = hidden.to(result_dtype(hidden.dtype))
            found["hidden"] = wide if everywhere else torch.where(mask, wide, 0.0)
        if "logits" in needs:
            logits = self.head.logits(hidden)
            found["logits"] = logits if everywhere else torch.where(mask, logits, 0.0)
        return found
