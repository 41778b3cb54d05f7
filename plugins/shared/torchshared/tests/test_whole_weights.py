"""A whole model is written as it is, and without being copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from finetooth_torchshared.whole_weights import export_weights, read_weights  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402


class Copies(TorchDispatchMode):
    """Counts the bytes of copies."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.clone.default:
            self.bytes += found.nbytes
        return found


def side_by_side(model: Any) -> None:
    """As the stream decoder lays queries, keys and values."""
    for layer in model.model.layers:
        parts = [layer.self_attn.q_proj.weight, layer.self_attn.k_proj.weight, layer.self_attn.v_proj.weight]
        fused = torch.cat([part.detach() for part in parts])
        for part, rows in zip(parts, fused.split([len(part) for part in parts]), strict=True):
            part.data = rows


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_lie_beside_each_other_are_written_and_not_copied(dtype: Any, tied: bool, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(dtype)
    side_by_side(model)
    with Copies() as copies:
        export_weights(model, tmp_path)
    assert copies.bytes == 0
    back = read_weights(model, tmp_path)
    named = dict(model.named_parameters())
    assert named.keys() == back.keys() and all(torch.equal(back[name], named[name]) for name in named)


def test_a_rank_writes_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers itself would write at rank 0 alone."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group=None: 1)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(str(tmp_path / "other"))
    export_weights(model, tmp_path / "rank")
    written = {file.name for file in (tmp_path / "rank").iterdir()}
    assert {"config.json", "model.safetensors"} <= written
    assert not list((tmp_path / "other").glob("*.safetensors"))
