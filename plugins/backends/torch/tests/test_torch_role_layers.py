"""Layers of other models that lie elsewhere: the same numbers, less memory, and what cannot work is refused."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import PlanError
from finetooth_hooks.protocols import BackendPlan, ModelInfo, PlanRequest, RoleRequest
from finetooth_torch.backend import TorchBackend, TorchOptions
from finetooth_torch.roles.layer_places import spread
from torch import nn

pytest.importorskip("accelerate", reason="needs accelerate: pip install finetooth-torch[accelerate]")


def other(kit: SimpleNamespace, **changes: Any) -> dict[str, RoleRequest]:
    config = kit.config(hidden_size=32, num_hidden_layers=3)
    info = replace(ModelInfo("other", "test:other", "llama", {}, 20_000, 0), **changes)
    return {"reference": RoleRequest(info, kit.facts(config), kit.loader(config))}


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_layers_on_disk_give_the_same_numbers(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    options = {"decoder": "transformers"}
    here = kit.engine(roles=other(kit), precision=precision, options=options)
    wanted = here.logprobs(kit.data(), role="reference")
    engine = kit.engine(roles=other(kit), precision=precision, options={**options, "role_layers": "disk"})
    for _ in range(2):
        for mine, theirs in zip(engine.logprobs(kit.data(), role="reference"), wanted, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    base = engine._parts.network.holders["reference"].base
    places = {name.partition("layers.")[2][:1]: p.device.type for name, p in base.named_parameters()}
    assert places == {"": "cpu", "0": "meta", "1": "meta", "2": "meta"}
    (folder,) = tmp_path.glob("finetooth-role-*")
    assert len(list(folder.glob("*layers.2*"))) == 9
    del engine, base
    gc.collect()
    assert not folder.exists()


def test_layers_go_to_the_first_device_with_room_and_the_last_to_the_host() -> None:
    layers = nn.ModuleList([nn.Linear(16, 16, bias=False) for _ in range(5)])  # of 1,024 bytes each
    assert spread(layers, {0: 0, 1: 10**6, "cpu": 10**6}) == [1] * 5
    places = spread(layers, {0: 0, 1: 2_500, 2: 2_500, "cpu": 10**6})
    assert places[0] == 1 and places[-1] == "cpu" and 2 in places
    assert sorted(places, key=str) == places


def planned(kit: SimpleNamespace, where: str, **request: Any) -> BackendPlan:
    given: PlanRequest = kit.plan_request(kit.facts(kit.config()), **request)
    return TorchBackend(TorchOptions(role_layers=where)).plan(given)  # type: ignore[arg-type]


def test_the_plan_says_what_is_where(kit: SimpleNamespace) -> None:
    here, apart = (planned(kit, where, roles=other(kit)) for where in ("device", "disk"))
    saved = here.memory.parts["roles"] - apart.memory.parts["roles"]
    facts = other(kit)["reference"].facts
    assert facts is not None
    of_layer = 2 * 32 * 32 + 2 * 32 * facts.kv_heads * facts.head_dim + 3 * 32 * facts.ffn_size
    assert saved == 4 * (3 * of_layer - 32 * facts.ffn_size) == apart.memory.disk["roles"]
    assert [(of.setting, of.value) for of in apart.decisions if "role" in of.setting] == [
        ("backend.role_layers", "disk")
    ]


@pytest.mark.parametrize(
    ("where", "roles", "said"),
    [
        ("host", {}, "backend.role_layers=host: on a CPU"),
        ("spread", {}, "backend.role_layers=spread: on a CPU"),
        ("disk", None, "backend.role_layers=disk: the method asks no other model"),
        ("disk", {"stored": SimpleNamespace(name="int4")}, "the model of the role reference is stored in fewer bits"),
    ],
)
def test_what_cannot_work_is_refused(kit: SimpleNamespace, where: str, roles: Any, said: str) -> None:
    asked = {"reference": RoleRequest()} if roles is None else other(kit, **roles)
    with pytest.raises(PlanError, match=said):
        planned(kit, where, roles=asked)


def test_it_names_what_installs_accelerate(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetooth_torch.planning.offload.find_spec", lambda name: None)
    with pytest.raises(PlanError, match="accelerate is not installed") as refused:
        planned(kit, "disk", roles=other(kit))
    assert "accelerate" in str(refused.value.action)
