"""Several tenants on one base at once, adapters and a whole fine-tune: everybody's numbers are as if they were alone,
and the base is in memory once for all adapters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import finetooth
import numpy as np
import pytest
from finetooth_hooks import Sampling
from finetooth_server.settings import Settings

SHARED = {"name": "auto", "share_base": True}
"""What `ft serve` sets for base models."""

TENANTS: dict[str, dict[str, Any]] = {
    "vision": {"adapter": {"name": "lora", "rank": 4, "dropout": 0.1}, "train": {"seed": 1}},
    "search": {"adapter": {"name": "lora", "rank": 8}, "train": {"seed": 2}},
    "speech": {"adapter": "full", "optimizer": {"name": "adamw", "learning_rate": 1e-3}, "train": {"seed": 3}},
}
STEPS = 3


def tensors(engine: Any) -> dict[str, Any]:
    return {name.replace("base_layer.", "").split("base_model.model.")[-1]: p
            for name, p in engine._parts.network.model.named_parameters()}  # fmt: skip


@pytest.fixture
def served(serve: Any, recipe: dict[str, Any], tmp_path: Any) -> Any:
    return serve(Settings(tmp_path / "server", {"tiny": {**recipe, "backend": SHARED}}))


@pytest.mark.slow
def test_tenants_train_side_by_side_as_if_alone(
    served: Any, recipe: dict[str, Any], context: Any, ask: SimpleNamespace
) -> None:
    keys = {tenant: served.service.keys.create(tenant) for tenant in TENANTS}
    clients = {tenant: finetooth.Client(served.url, key, patience=30) for tenant, key in keys.items()}
    sessions = {tenant: clients[tenant].session("tiny", **TENANTS[tenant]) for tenant in TENANTS}
    have: dict[str, list[Any]] = {tenant: [] for tenant in TENANTS}
    for n in range(STEPS):  # in turns
        for place, (tenant, session) in enumerate(sessions.items()):
            have[tenant].append(session.forward_backward(ask.data(10 * place + n)).loss)
            have[tenant].append(session.step())
    for tenant, session in sessions.items():
        have[tenant] += [session.logprobs(ask.data(99)), session.generate([[5, 6]], Sampling(max_tokens=5, seed=1))]

    for place, (tenant, sections) in enumerate(TENANTS.items()):
        alone = context.engine({**recipe, **sections, "train": {**recipe["train"], **sections["train"]}})
        loss = context.context(recipe).loss("cross_entropy")
        for n in range(STEPS):
            assert alone.forward_backward(ask.data(10 * place + n), loss).loss == have[tenant][2 * n]
            assert alone.step() == have[tenant][2 * n + 1]
        assert all(np.array_equal(a, b) for a, b in zip(alone.logprobs(ask.data(99)), have[tenant][-2], strict=True))
        assert alone.generate([[5, 6]], Sampling(max_tokens=5, seed=1)) == have[tenant][-1]

    engines = {tenant: served.service.registry.in_memory(session.id).engine for tenant, session in sessions.items()}
    vision, search, speech = (tensors(engines[tenant]) for tenant in TENANTS)
    base = [name for name, p in vision.items() if not p.requires_grad]
    assert base and all(vision[name] is search[name] for name in base)
    assert all(speech[name] is not vision[name] and speech[name].requires_grad for name in base)
    unique = {id(p): p.numel() for one in (vision, search, speech) for p in one.values()}
    size = sum(p.numel() for p in speech.values())
    trained = sum(engines[tenant].info.trained for tenant in ("vision", "search"))
    assert sum(unique.values()) == 2 * size + trained  # one base for the adapters, one that trains
    assert engines["speech"].info.trained == size

    saved = sessions["speech"].save("whole")
    sampler = clients["speech"].sampler(checkpoint=saved)
    greedy = Sampling(max_tokens=5, temperature=0)
    want = sessions["speech"].generate([[5, 6]], greedy)[0]
    assert [one.tokens for one in sampler.generate([5, 6], greedy)] == [one.tokens for one in want]
    with pytest.raises(Exception, match="no checkpoint"):
        clients["vision"].sampler(checkpoint=saved)
    with pytest.raises(Exception, match="no session or model"):
        clients["vision"].attach(sessions["speech"].id)
    for client in clients.values():
        client.close()
