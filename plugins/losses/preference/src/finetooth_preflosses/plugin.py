"""Losses of preferences: pairs against a reference or without one, and single answers with a label."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, hookimpl
from finetooth_hooks.entries import Together

AGAINST = frozenset({"logprobs", "logprobs@reference"})
"""Outputs for a loss that compares the policy with a reference."""
ALONE = frozenset({"logprobs"})

PAIRS = {
    "sigmoid": "DPO: negative log-likelihood of the preference under the implicit rewards",
    "robust": "DPO for pairs of which a known share has its answers swapped",
    "hinge": "DPO with a hinge: a pair whose margin exceeds 1 / beta has no loss",
    "ipo": "IPO: regresses the margin to 1 / (2 beta), so that it cannot grow without bound",
    "exo_pair": "EXO: reverse KL to the preference distribution of a pair",
    "nca_pair": "NCA: a noise-contrastive loss that also keeps the chosen answer likely",
    "sppo_hard": "SPPO with hard labels: regresses the rewards to plus and minus 1 / (2 beta)",
    "discopop": "DiscoPOP: a blend of the logistic and the exponential loss",
    "apo_zero": "APO-zero: raises the chosen answer and lowers the rejected one",
    "apo_down": "APO-down: lowers both answers of a pair, the rejected one more",
}
BATCHES = {
    "kto_pair": "KTO on pairs: each side's KL is estimated from the other side's answers of the step",
    "bco_pair": "BCO: classifies answers as chosen or rejected, around a running mean of their rewards",
    "aot": "AOT: raises the sorted margins of a step above the sorted margins of the reference",
    "aot_unpaired": "AOT without pairs: raises the sorted rewards of chosen answers above those of rejected ones",
}
FREE = {
    "orpo": "ORPO: the chosen answer's negative log-likelihood, plus the log odds ratio of the pair",
    "simpo": "SimPO: separates the mean log-probabilities of a pair by a margin",
    "cpo": "CPO: a preference loss without a reference, plus the chosen answer's negative log-likelihood",
}
SINGLE = {
    "kto": "KTO: moves rewards of desirable answers above a reference point, of undesirable ones below it",
    "apo_zero_unpaired": "APO-zero for single answers with a label",
}

SCALARS = {
    "sft": frozenset[str](),
    "kto": frozenset({"label", "kl"}),
    **dict.fromkeys(("sigmoid", "robust", "hinge", "exo_pair", "discopop"), frozenset({"label", "margin"})),
}
"""Scalars of each sequence that a loss reads besides the label; margins count with `margin_weight`."""
EXPECTED = {"kto_pair": {"gradient_is_the_slope": "the paper lets no gradient through its estimate"}}


@hookimpl
def ft_losses() -> Iterator[Loss]:
    for name, summary in PAIRS.items():
        yield _entry(name, "pairs", summary, AGAINST, "group")
    for name, summary in BATCHES.items():
        yield _entry(name, "batches", summary, AGAINST, "step")
    for name, summary in FREE.items():
        yield _entry(name, "free", summary, ALONE, "group")
    for name, summary in SINGLE.items():
        yield _entry(name, "single", summary, AGAINST, "sequence")
    yield _entry("sft", "likelihood", "negative log-likelihood of the chosen answers", ALONE, "sequence")


def _entry(name: str, module: str, summary: str, needs: frozenset[str], together: Together) -> Loss:
    return Loss(
        name=name,
        build=f"finetooth_preflosses.{module}:{name}",
        summary=summary,
        needs=needs,
        together=together,
        scalars=SCALARS.get(name, frozenset({"label"})),
        expected_failures=EXPECTED.get(name, {}),
    )
