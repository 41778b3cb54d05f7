"""On which of a machine's devices the kit tries what serves several."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from finetooth_hooks import Attention, AttentionServes
from finetooth_hooks.compute.kernels import Kernel as Built
from finetooth_hooks.entries import Kernel, Serves
from finetooth_kit.checks import CheckSkipped, EntryCase
from finetooth_kit.entries.attention import _function_on_device
from finetooth_kit.entries.kernel import _trials

torch = pytest.importorskip("torch")


class Case(EntryCase):
    """Its builder is not looked for."""

    def build(self, context: Any = None) -> Any:
        return Built(functions={"rms_norm": min}, reason="", missing=lambda *_: "")


@pytest.mark.parametrize("devices, tried", [((), "cuda"), (("cpu", "cuda"), "cuda"), (("cpu",), "cpu")])
def test_kernels_are_tried_on_the_gpu_where_they_serve_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, devices: tuple[str, ...], tried: str
) -> None:  # fmt: skip
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    serves = Serves(operation="rms_norm", devices=frozenset(devices), dtypes=frozenset({"fp32"}))
    entry = Kernel(name="tried", build="a:b", summary="tried", serves=(serves,))
    for here, on in ((True, tried), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=here: here)
        assert [case.device for case in _trials(Case(entry, (), tmp_path))] == [on]


@pytest.mark.parametrize("hip, own, taken", [("6.4", "gfx90a:sramecc+:xnack-", True), ("6.4", "gfx1100", False),
                                             (None, "", False)])  # fmt: skip
def test_architectures_of_amd_are_compared_by_their_own_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hip: str | None, own: str, taken: bool
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=own))
    monkeypatch.setattr(torch.version, "hip", hip)
    serves = AttentionServes(devices=frozenset({"cuda"}), architectures=("gfx90a",), precisions=frozenset({"bf16"}))
    entry = Attention(name="tried", build="a:b", summary="tried", serves=serves)
    if taken:
        assert _function_on_device(Case(entry, (), tmp_path))[1] == "cuda"
    else:
        with pytest.raises(CheckSkipped, match="this machine has none of its devices"):
            _function_on_device(Case(entry, (), tmp_path))
