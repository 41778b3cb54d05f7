# mypy: ignore-errors
"""The model: fused queries, keys and values, a norm by the largest number, one pool of experts for all blocks."""

import torch
from torch import nn
from torch.nn.functional import linear, silu
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class OstrichConfig(PreTrainedConfig):
    model_type = "ostrich"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "n_heads",
    }  # fmt: skip
    width: int = 32
    depth: int = 2
    n_heads: int = 4
    n_places: int = 512
    n_experts: int = 3
    vocab_size: int = 300


class PeakNorm(nn.RMSNorm):
    def forward(self, x):
        return x / x.abs().amax(-1, keepdim=True).clamp_min(1e-6) * self.weight


class Pool(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.rise = nn.Parameter(torch.randn(config.n_experts, config.width // 2, config.width) / 8)
        self.fall = nn.Parameter(torch.randn(config.n_experts, config.width, config.width // 2) / 8)

    def forward(self, x, shares):
        each = [linear(silu(linear(x, up)), down) for up, down in zip(self.rise, self.fall, strict=True)]
        return (torch.stack(each, -2) * shares[..., None]).sum(-2)


class Block(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.config, self.number, self.is_causal = config, number, True
        self.qkv, self.mix = nn.Linear(config.width, 3 * config.width), nn.Linear(config.width, config.width)
        self.sorter = nn.Linear(config.width, config.n_experts, bias=False)
        self.first, self.second = PeakNorm(config.width), PeakNorm(config.width)

    def forward(self, x, mask, cache, pool):
        query, key, value = self.qkv(self.first(x)).unflatten(-1, (3, self.config.n_heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = cache.update(key, value, self.number)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        x = x + self.mix(attend(self, query, key, value, mask, scaling=query.shape[-1] ** -0.5)[0].flatten(2))
        return x + pool(inner := self.second(x), self.sorter(inner).softmax(-1))


class OstrichModel(PreTrainedModel):
    config_class, _supports_sdpa, _input_embed_layer = OstrichConfig, True, "tokens"

    def __init__(self, config):
        super().__init__(config)
        self.tokens, self.places = (nn.Embedding(n, config.width) for n in (config.vocab_size, config.n_places))
        self.pool = Pool(config)
        self.blocks = nn.ModuleList(Block(config, number) for number in range(config.depth))
        self.post_init()

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        x, cache = self.tokens(input_ids), past_key_values
        if position_ids is None:
            position_ids = torch.arange(x.shape[1])[None] + (0 if cache is None else cache.get_seq_length())
        mask = create_causal_mask(self.config, x, attention_mask, past_key_values=cache, position_ids=position_ids)
        x = x + self.places(position_ids.to(x.device))
        for block in self.blocks:
            x = block(x, mask, cache, self.pool)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=cache)


class OstrichForCausalLM(PreTrainedModel, GenerationMixin):
    config_class, base_model_prefix, _supports_sdpa = OstrichConfig, "trunk", True

    def __init__(self, config):
        super().__init__(config)
        self.trunk, self.readout = OstrichModel(config), nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.readout

    def forward(self, input_ids, **more):
        return CausalLMOutputWithPast(logits=self.readout(self.trunk(input_ids, **more)[0]))


def register() -> None:
    AutoConfig.register("ostrich", OstrichConfig)
    AutoModelForCausalLM.register(OstrichConfig, OstrichForCausalLM)
