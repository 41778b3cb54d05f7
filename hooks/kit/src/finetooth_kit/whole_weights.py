"""Proof of a torch adapter that exports the whole model: what it writes is what it reads back, and nothing else is.

    @pytest.mark.parametrize("tied", [False, True])
    def test_restored_weights_are_those_exported(tmp_path, tied):
        assert_restored(FullAdapter(), tmp_path, tied=tied)

Needs torch and transformers, which are imported when a model is made.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from finetooth_hooks.errors import UserError
from finetooth_hooks.protocols import Adapter

from finetooth_kit.adapter_fixtures import tiny_llama, token_ids


def assert_restored(adapter: Adapter, folder: Path, *, tied: bool) -> None:
    """A fresh model that takes an artifact back computes what the exported one does, to the bit.

    Args:
        folder: scratch.
        tied: embedding and head are one.
    """
    torch = import_module("torch")
    model = adapted(adapter, tied=tied)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapter.export(model, folder / "artifact", tiny_llama(tied=tied).info)
    fresh = adapted(adapter, tied=tied)
    adapter.restore(fresh, folder / "artifact")
    with torch.no_grad():
        assert torch.equal(fresh(token_ids()).logits, model(token_ids()).logits)


def assert_others_are_refused(adapter: Adapter, folder: Path) -> None:
    """An empty folder, an artifact of a deeper or a flatter model, and a torn file are refused, each by what is wrong.

    Args:
        folder: scratch, empty.
    """
    model, info = adapted(adapter), tiny_llama().info
    adapter.export(tiny_llama(layers=3).model, folder / "deeper", info)
    adapter.export(tiny_llama(layers=1).model, folder / "flatter", info)
    adapter.export(model, folder / "torn", info)
    (folder / "torn" / "model.safetensors").write_bytes(b"torn")
    for name, wrong in (
        ("", "no config.json"),
        ("deeper", "unexpected model.layers.2"),
        ("flatter", "missing model.layers.1"),
        ("torn", "cannot be read"),
    ):
        try:
            adapter.restore(model, folder / name)
        except UserError as error:
            assert wrong in str(error), f"{wrong!r} is not in {str(error)!r}"
        else:
            raise AssertionError(f"restored from an artifact with {wrong!r}")


def assert_equally_public(adapter: Adapter, folder: Path) -> None:
    """All files of an artifact may be read by the same users."""
    made = tiny_llama()
    adapter.export(made.model, folder / "artifact", made.info)
    assert len({path.stat().st_mode for path in (folder / "artifact").iterdir()}) == 1


def assert_silent(adapter: Adapter, folder: Path, capfd: Any) -> None:
    """Nothing is printed while weights are saved and read, and the caller's own choice of progress bars is back.

    Args:
        capfd: pytest's fixture.
    """
    logging = import_module("transformers.utils").logging
    model = adapted(adapter)
    assert logging.is_progress_bar_enabled()
    adapter.export(model, folder / "artifact", tiny_llama().info)
    adapter.restore(model, folder / "artifact")
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


def adapted(adapter: Adapter, *, tied: bool = False) -> Any:
    """A tiny Llama as the adapter trains it."""
    made = tiny_llama(tied=tied)
    return adapter.apply(made.model, made.facts, np.random.default_rng(0))
