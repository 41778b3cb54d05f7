"""Poly-1: cross entropy plus epsilon times 1 - p (Leng et al., 2022, arXiv:2204.12511, eq. 6)."""

from finetooth_hooks import Context, Contribution, Loss, LossResult, Options, hookimpl
from finetooth_hooks import arrays as xp


@hookimpl
def ft_losses():
    yield Loss(name="poly", build=f"{__name__}:build", summary="cross entropy plus epsilon * (1 - p)")


class PolyOptions(Options):
    """Options of `poly`."""

    epsilon: float = 1.0
    """Weight of the second term."""


def build(options: PolyOptions, context: Context):
    def poly(outputs, data, state):
        logprobs = xp.where(data.mask, outputs["logprobs"], 0.0)
        each = -logprobs + options.epsilon * (1 - xp.exp(logprobs))
        total = xp.sum(data.fields["weights"] * each)
        return LossResult({"poly": Contribution(total, per="weights")})

    return poly
