"""The methods against the conformance kit."""

from __future__ import annotations

from typing import Any

import pytest
from finetooth_distillation.on_policy import OnPolicyOptions
from finetooth_distillation.self_distilled import SelfDistilledOptions
from finetooth_kit import parametrize_with_checks
from pydantic import ValidationError


@parametrize_with_checks("finetooth_distillation.plugin", installed=True)
def test_conforms(check: Any) -> None:
    check()


def test_the_teacher_of_sdft_may_follow_the_policy_without_a_kl() -> None:
    """As in docs/recipes/sdft-lora.yaml; of other methods the reference is for a KL alone."""
    moving = {"reference": {"sync_every": 1, "mix": 0.05}}
    assert SelfDistilledOptions.model_validate(moving).reference.sync_every == 1
    with pytest.raises(ValidationError, match="set beta too"):
        OnPolicyOptions.model_validate({**moving, "teacher": {"policy": "smollm2-135m"}})
