"""Memory of roles' models, on the device and elsewhere."""

from __future__ import annotations

from finetooth_hooks.protocols import ModelFacts, PlanRequest, Quantizer
from finetooth_modelfiles.sizes import role_quantizer, shapes

from finetooth_torch.planning.offload import DEVICE, Offload


def role_bytes(request: PlanRequest, size: int, offload: Offload) -> int:
    """Bytes on the device of all models and copies for roles.

    Args:
        size: bytes of a weight.
    """
    saved = 0.0
    for role in request.roles.values():
        quantizer = role_quantizer(request.base, role)
        if quantizer is not None and role.facts is not None:
            saved += linear_weights(quantizer, role.facts) * (size - quantizer.stored.bytes_per_weight)
    return int(request.role_parameters * size - saved) - role_layers_apart(request, offload, size)


def role_layers_apart(request: PlanRequest, offload: Offload, size: int) -> int:
    """Bytes of the decoder layers of other models that are not on the device; the largest matrix at a time is.

    Args:
        size: bytes of a weight.
    """
    if offload.roles == DEVICE:
        return 0
    elsewhere = 0
    for role in request.roles.values():
        if role.facts is not None:
            inside = [inputs * outputs for _, (inputs, outputs) in _in_layers(role.facts)]
            elsewhere += size * (sum(inside) - max(inside, default=0))
    return elsewhere


def linear_weights(quantizer: Quantizer, facts: ModelFacts) -> int:
    """How many weights of the decoder layers a quantizer will store, those of linear modules whose shape follows from
    the facts."""
    return sum(
        inputs * outputs for path, (inputs, outputs) in _in_layers(facts) if quantizer.takes(path, (outputs, inputs))
    )


def _in_layers(facts: ModelFacts) -> list[tuple[str, tuple[int, int]]]:
    """Linear modules of the decoder layers, with their inputs and outputs."""
    return [(path, shape) for path, shape in shapes(facts).items() if path.startswith(f"{facts.layer_path}.")]
