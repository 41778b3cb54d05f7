# mypy: ignore-errors
"""Ostrich, an architecture that transformers does not know."""

from finetooth_hooks import Context, Family, Head, ModelFacts, NoOptions, hookimpl


@hookimpl
def ft_families():
    yield Family(name="ostrich", build=f"{__name__}:Ostrich", summary="Ostrich: all blocks share a pool of experts",
                 model_types=frozenset({"ostrich"}), registers=f"{__name__}.modeling:register")  # fmt: skip


class Ostrich:
    def __init__(self, options: NoOptions, context: Context): ...

    def facts(self, config):
        width, heads = config["width"], config["n_heads"]
        return ModelFacts(
            hidden_size=width, layers=config["depth"], heads=heads, kv_heads=heads, head_dim=width // heads,
            ffn_size=width // 2, vocab_size=config["vocab_size"], max_positions=config["n_places"],
            layer_path="trunk.blocks", body="trunk", head=Head("readout"), attention_targets=("qkv", "mix"),
            linear_targets=("qkv", "mix"), untargeted=("sorter",), renderer="chatml",
        )  # fmt: skip
