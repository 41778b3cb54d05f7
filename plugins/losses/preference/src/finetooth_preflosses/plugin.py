"""Losses of preferences: pairs against a reference or without one, and single answers with a label."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Loss, hookimpl
from finetooth_hooks.entries import Together

AGAINST = frozenset({"logprobs", "logprobs@reference"})
"""What a loss reads that compares the policy with a reference."""
ALONE = frozenset({"logprobs"})

PAIRS = {
    "sigmoid": "DPO: how likely the preference is under the implicit rewards",
    "robust": "DPO for labels of which a known share is swapped",
    "hinge": "DPO with a hinge: pairs apart by more than 1 / beta are done",
    "ipo": "IPO: the margin is regressed to 1 / (2 beta), never driven without end",
    "exo_pair": "EXO: reverse KL to the preference distribution of a pair",
    "nca_pair": "NCA: noise contrast that also holds the chosen answer up",
    "sppo_hard": "SPPO with hard labels: rewards regressed to plus and minus 1 / (2 beta)",
    "discopop": "DiscoPOP: a blend of the logistic and the exponential loss",
    "apo_zero": "APO-zero: chosen up, rejected down",
    "apo_down": "APO-down: both down, the rejected one more",
}
BATCHES = {
    "kto_pair": "KTO on pairs, its KL taken from the other side of the step",
    "bco_pair": "BCO: tells chosen from rejected around a running mean",
    "aot": "AOT: margins of the step, sorted, above those of the reference",
    "aot_unpaired": "AOT without pairs: sorted rewards of chosen above those of rejected answers",
}
FREE = {
    "orpo": "ORPO: log-likelihood and the odds ratio of a pair",
    "simpo": "SimPO: mean log-probabilities apart by a margin",
    "cpo": "CPO: preference without a reference, and log-likelihood",
}
SINGLE = {
    "kto": "KTO: desirable answers above, undesirable ones below the reference point",
    "apo_zero_unpaired": "APO-zero for single answers",
}

SCALARS = {
    "sft": frozenset[str](),
    "kto": frozenset({"label", "kl"}),
    **dict.fromkeys(("sigmoid", "robust", "hinge", "exo_pair", "discopop"), frozenset({"label", "margin"})),
}
"""What a loss reads of each sequence, where that is not its label alone; margins count with `margin_weight`."""
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
    yield _entry("sft", "likelihood", "log-likelihood of the chosen answers", ALONE, "sequence")


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
