"""The recipe's losses of a mixture's routers, and their memory."""

from __future__ import annotations

from dataclasses import dataclass

from finetooth_hooks import PlanError
from finetooth_hooks.protocols import ModelFacts


@dataclass(frozen=True)
class RouterCoefficients:
    """Factors of the routers' losses in the loss of a step; 0 is off.

    Attributes:
        balance: `backend.router_aux_loss_coef`.
        z: `backend.router_z_loss_coef`.
    """

    balance: float = 0.0
    z: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.balance or self.z)

    def bytes_per_token(self, facts: ModelFacts) -> int:
        """Memory that the losses keep for their backward pass: probabilities and logits of all layers, in fp32."""
        scores = sum(layer.experts.count for layer in facts.per_layer if layer.experts is not None)
        return 4 * scores * (bool(self.balance) + bool(self.z))


NO_ROUTERS = RouterCoefficients()


def check_routers(coefficients: RouterCoefficients, facts: ModelFacts, model_type: str) -> None:
    """Checks that the model has routers for the losses that the recipe sets.

    Raises:
        PlanError: the recipe sets a loss of routers, and the family has none.
    """
    if coefficients and not any(layer.experts is not None and layer.experts.balanced for layer in facts.per_layer):
        name = "router_aux_loss_coef" if coefficients.balance else "router_z_loss_coef"
        raise PlanError(
            f"backend.{name}: models of the type {model_type} have no routers that are trained with this loss",
            action=f"leave backend.{name} out, or train a mixture of experts such as Mixtral or Qwen3-MoE",
        )
