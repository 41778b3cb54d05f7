"""How much a token counts: what the types of loss differ in that are called after whole algorithms.

The loss of a step is the sum over tokens of weight times loss, so these weights hold all normalisation. With B
rollouts, of which those that count have n_i tokens, and L the most that a completion may have:

    grpo, sapo                 1 / (B n_i)        the mean over tokens, then over rollouts
    bnpo, dapo, cispo, vespo   1 / sum of n_i     the mean over tokens
    dr_grpo                    1 / (B L)          no length divides
    luspo                      1 / B              the mean over rollouts of the sum over tokens

Sources: Shao et al., 2024, arXiv:2402.03300, eq. 3 (grpo); Yu et al., 2025, arXiv:2503.14476, eq. 8 (dapo); MiniMax,
2025, arXiv:2506.13585, eq. 4 (cispo); Liu et al., 2025, arXiv:2503.20783 (dr_grpo); arXiv:2511.20347 (sapo);
arXiv:2602.05261 (luspo); arXiv:2602.10693 (vespo). bnpo is TRL's name for dapo's mean over what is seen at once.

`bnpo` counts the tokens of the optimizer step, `dapo`, `cispo` and `vespo` those of the whole batch of rollouts, spread
evenly over its steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo"]


def token_weights(
    loss_type: LossType, lengths: Sequence[int], *, longest: int, whole: float | None = None
) -> list[float]:
    """The weight of a token, for each of B rollouts; 0 for those that do not count.

    Args:
        lengths: their tokens; 0 for a rollout that does not count (cut off and masked).
        longest: L.
        whole: tokens by which `dapo`, `cispo` and `vespo` divide; default: those in `lengths`.
    """
    rollouts, tokens = len(lengths), float(sum(lengths))
    if loss_type in ("dapo", "cispo", "vespo") and whole is not None:
        tokens = whole

    def weight(length: int) -> float:
        if loss_type in ("grpo", "sapo"):
            return 1.0 / (rollouts * length)
        if loss_type == "dr_grpo":
            return 1.0 / (rollouts * longest)
        return 1.0 / rollouts if loss_type == "luspo" else 1.0 / tokens

    return [weight(length) if length else 0.0 for length in lengths]
