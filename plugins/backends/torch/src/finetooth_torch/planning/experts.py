"""What the plan says of a mixture's experts with LoRA."""

from __future__ import annotations

from collections.abc import Mapping

from finetooth_hooks import Decision
from finetooth_hooks.protocols import ModelFacts, PickedKernel

HOW = {
    "fused": "one kernel multiplies by the weight and, up to rank {rank}, by LoRA",
    "split": "few and large: the weight's product, then LoRA's two",
}


def experts_form(facts: ModelFacts, kernels: Mapping[str, PickedKernel]) -> tuple[Decision, ...]:
    """How experts with LoRA are multiplied, if their provider has both forms; see `finetooth_kernels.grouped`."""
    from finetooth_kernels.grouped import WIDE_RANK, form_of  # torch: not before a plan needs it

    from finetooth_torch.compute import EXPERTS

    if EXPERTS not in kernels or not HOW.keys() <= kernels[EXPERTS].features:
        return ()
    sizes: dict[str, dict[str, None]] = {}
    for experts in dict.fromkeys(layer.experts for layer in facts.per_layer if layer.experts is not None):
        hidden, width = facts.hidden_size, experts.width
        for depth, outputs in ((hidden, width * (1 + experts.gated)), (width, hidden)):
            form = form_of(experts.count, depth, outputs, rank=1)
            sizes.setdefault(form, {})[f"{experts.count} of {depth} x {outputs}"] = None
    if not sizes:  # no family describes them
        return ()
    why = [f"experts, {' and '.join(of)}: {HOW[form].format(rank=WIDE_RANK)}" for form, of in sizes.items()]
    return (Decision(f"kernels.{EXPERTS}.form", " and ".join(sizes), "; ".join(why)),)
