"""The doctor finds nothing to mend in the packages of this repository."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from finetooth_authoring.doctor import examine
from finetooth_core.cli.start_options import StartOptions
from finetooth_core.cli.state import State


@pytest.mark.slow
def test_first_party_plugins_are_healthy() -> None:
    """All of them, every check of the kit; what fails on purpose is said by an entry, with the reason."""
    state = State(StartOptions())
    state.strict = False
    examinations = list(examine(state))
    # one needs another Pillow than the rest, one takes long to import, one brings Triton, one much else
    needs = {
        "trackio": "trackio",
        "torchao": "torchao",
        "liger": "liger_kernel",
        "deepspeed": "deepspeed",
        "raylauncher": "ray",
    }
    away = {f"finetooth-{name}" for name, module in needs.items() if find_spec(module) is None}
    faults = [
        (one.name, found.line())
        for one in examinations
        for found in one.findings
        if found.fault and one.name not in away
    ]
    assert not faults
    notes = {found.line() for one in examinations for found in one.findings if not found.fault}
    assert {note.split(" fails the check ")[0] for note in notes} == {
        "loss:cispo",
        "loss:kto_pair",
        "kernel:torch",
        "reward:reasoning_gym",
        "loss:dft",
        "adapter:relora",
        "renderer:minimax_m2",
        "method:trl",
        "sampler:kept_rollouts",
    }
    assert sum(one.passed for one in examinations) > 2000
