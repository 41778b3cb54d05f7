"""A whole model is written as it is, and without being copied."""

from __future__ import annotations

import json
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


def test_no_layers_are_promised_that_are_not_there(tmp_path: Path) -> None:
    """GLM-4.5's config counts layers that predict further tokens; transformers has none."""
    config = transformers.Glm4MoeConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, moe_intermediate_size=8, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, n_routed_experts=2, num_experts_per_tok=1, n_group=1,
        topk_group=1, first_k_dense_replace=1, num_nextn_predict_layers=1,
    )  # fmt: skip
    model = transformers.Glm4MoeForCausalLM(config)
    export_weights(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["num_nextn_predict_layers"] == 0
    assert type(model).from_pretrained(tmp_path).config.num_hidden_layers == 2
    kept = {**model.state_dict(), "model.layers.2.eh_proj.weight": torch.ones(2)}
    export_weights(model, tmp_path / "whole", kept)
    assert json.loads((tmp_path / "whole/config.json").read_text())["num_nextn_predict_layers"] == 1
