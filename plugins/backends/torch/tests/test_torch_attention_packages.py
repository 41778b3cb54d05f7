"""Attention whose package is installed and fails: the plan passes over it with the reason, or refuses its name; what
fails only in the model is replaced by the next best."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from finetooth_hooks import Attention, AttentionServes, PlanError
from finetooth_hooks.protocols import HardwareFacts
from finetooth_kit import FakeContext
from finetooth_torch.planning.attention import choose_attention
from finetooth_torchshared.attention import by_name

pytestmark = pytest.mark.parametrize("kit", ["transformers"], indirect=True)

WORKS = "def flash_attn_varlen_func(): ..."
SYMBOL = "raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E')"
LIBRARY = "raise OSError('libcudart.so.12: cannot open shared object file')"
SIZES = {"hidden_size": 64, "head_dim": 16}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Puts modules, each with its code, and distributions on the path."""

    def install(modules: Mapping[str, str], *distributions: str) -> None:
        for module, code in modules.items():
            folder = tmp_path.joinpath(*module.split("."))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "__init__.py").write_text(code, encoding="utf-8")
        for name in distributions:
            described = tmp_path / f"{name.replace('-', '_')}-2.8.3.dist-info"
            described.mkdir()
            (described / "METADATA").write_text(f"Name: {name}\nVersion: 2.8.3\n", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    for name in [name for name in sys.modules if name.partition(".")[0] in ("flash_attn", "flash_attn_interface")]:
        del sys.modules[name]


def on_a_gpu(kit: SimpleNamespace, asked: str) -> tuple[str, str]:
    """What a plan for a made-up GPU picks, and why."""
    device = replace(kit.hardware.devices[0], name="cuda:0", label="a GPU", architecture="sm_90")
    hardware: HardwareFacts = replace(kit.hardware, devices=(device,))
    facts, context = kit.facts(kit.config(**SIZES)), FakeContext(Path(), installed=True)
    decision = choose_attention(context, asked, facts, {}, hardware, "bf16").decisions[0]
    return decision.value.partition(":")[2], decision.reason


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (SYMBOL, "ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c105ErrorC2E"),
        (LIBRARY, "OSError: libcudart.so.12: cannot open shared object file"),
        ("", "AttributeError: module 'flash_attn' has no attribute 'flash_attn_varlen_func'"),
    ],
)
def test_one_that_cannot_be_imported_is_passed_over_or_refused(
    kit: SimpleNamespace, installed: Callable[..., None], code: str, said: str
) -> None:
    pytest.importorskip("torch.nn.attention.varlen")
    installed({"flash_attn": code}, "flash-attn")
    why = f"flash_attn cannot be imported: {said}"
    name, reason = on_a_gpu(kit, "auto")
    assert name == "varlen" and f"not flash_attention_2: {why}" in reason
    with pytest.raises(PlanError) as caught:
        on_a_gpu(kit, "flash_attention_2")
    instead = "(set backend.attention to auto or varlen or sdpa or "
    assert str(caught.value).startswith(f"backend.attention='flash_attention_2': {why} {instead}")


@pytest.mark.parametrize("cute", [LIBRARY, ""], ids=["cannot be imported", "unfinished, from a wheel of 2"])
def test_another_version_is_taken_where_one_cannot_be_imported(
    kit: SimpleNamespace, installed: Callable[..., None], cute: str
) -> None:
    installed({"flash_attn": WORKS, "flash_attn.cute": cute}, "flash-attn", "flash-attn-4")
    for asked in ("auto", "flash"):
        assert on_a_gpu(kit, asked)[0] == "flash_attention_2"
    assert "not flash_attention_4: flash_attn.cute cannot be imported: " in on_a_gpu(kit, "auto")[1]
    installed({"flash_attn_interface": WORKS}, "flash-attn-3")
    assert on_a_gpu(kit, "flash")[0] == "flash_attention_3"


def test_where_it_works_it_is_taken(kit: SimpleNamespace, installed: Callable[..., None]) -> None:
    installed({"flash_attn": WORKS}, "flash-attn")
    assert on_a_gpu(kit, "auto")[0] == "flash_attention_2"


def test_nothing_is_imported_for_another_device(kit: SimpleNamespace, installed: Callable[..., None]) -> None:
    installed({"flash_attn": "raise SystemExit"}, "flash-attn")
    context, facts = FakeContext(Path(), installed=True), kit.facts(kit.config(**SIZES))
    assert choose_attention(context, "auto", facts, {}, kit.hardware, "bf16").names == "sdpa"


@pytest.mark.parametrize("asked", ["auto", "first", "both"])
def test_the_next_best_replaces_one_that_fails_in_the_model(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """transformers has no package for the first; the second is a function."""
    monkeypatch.setitem(sys.modules, "second_attention", SimpleNamespace(build=lambda: by_name("sdpa")))
    serves = AttentionServes(devices=frozenset({"cpu"}))
    entries = [
        Attention(
            name=name, build="second_attention:build", summary=name, serves=serves, aliases=("both",), rank=rank,
            transformers=transformers,
        )
        for name, rank, transformers in (("first", 900, "flash_attention_2"), ("second", 800, ""))
    ]  # fmt: skip
    torch.manual_seed(3)
    config = kit.config(**SIZES)

    def engine() -> Any:
        return kit.engine(
            config=config, options={"attention": asked}, model={"config": config.to_dict()}, entries=tuple(entries)
        )

    if asked == "first":
        with pytest.raises(PlanError, match=r"LlamaForCausalLM does not compute attention with flash_attention_2: .*"):
            engine()
        return
    network = engine()._parts.network
    assert network.base.config._attn_implementation.startswith("finetooth_")
    (note,) = [note for note in network.draws.note.__self__.notes if "instead" in note]
    assert "does not compute attention with flash_attention_2: " in note and note.endswith("second computes it instead")
