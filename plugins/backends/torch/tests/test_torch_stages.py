"""A decoder whose layers several ranks have, computed rank by rank in one process."""

from __future__ import annotations

import pytest
import torch
from finetooth_hooks import PlanError
from finetooth_torch.staged.body import StagedLayers
from torch import nn
from transformers import AutoModel, Gemma2Config, LlamaConfig, PretrainedConfig, Qwen3Config

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4,
}  # fmt: skip


def model_of(config: PretrainedConfig) -> nn.Module:
    torch.manual_seed(0)
    made: nn.Module = AutoModel.from_config(config)
    return made.eval()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), Gemma2Config(**SMALL), Qwen3Config(**SMALL)])
def test_ranks_compute_what_one_process_does(config: PretrainedConfig, ranks: int) -> None:
    """Of families that scale embeddings and mix kinds of layers too; the model is as before afterwards."""
    body = model_of(config)
    tokens = torch.arange(9)[None] + 3
    with torch.no_grad():
        whole = body(input_ids=tokens).last_hidden_state
        layers = StagedLayers(list(body.layers), ranks)  # type: ignore[arg-type]
        assert [number for rank in range(ranks) for number in layers.of(rank)] == list(range(5))
        layers.check(body)
        assert torch.equal(body(input_ids=tokens).last_hidden_state, whole)


def test_layers_that_share_more_than_states_are_refused() -> None:
    """A layer that reads what an earlier one kept."""
    body = model_of(LlamaConfig(**SMALL))
    kept: list[torch.Tensor] = []
    layers = list(body.layers)  # type: ignore[arg-type]
    layers[0].register_forward_hook(lambda _, __, output: kept.append(output * 0.5))
    layers[4].register_forward_hook(lambda _, __, output: output + kept[-1])
    with pytest.raises(PlanError, match="layers of this model cannot be divided among ranks: its ranks compute other"):
        StagedLayers(layers, 2).check(body)
