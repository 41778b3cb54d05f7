"""The KV cache of sampling: blocks change no bit, and fewer bits are those of the numbers that MLX stores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")

import mlx.core as mx
from finetooth_hooks import PlanError, Sampling
from finetooth_mlx.cache import check_cache
from mlx_lm.models import gpt_oss
from mlx_lm.models.cache import ConcatenateKVCache, KVCache

LONG = Sampling(max_tokens=290, temperature=0.8, seed=2, stop_ids=(), n=2)
SHORT = Sampling(max_tokens=24, temperature=0.0, stop_ids=())
PROMPT = [*range(20, 40)]


class Rounded(KVCache):  # type: ignore[misc]  # MLX's classes bring no types
    """Plain numbers, as rounded to bits."""

    bits_of_it = 8

    def update_and_fetch(self, keys: Any, values: Any) -> Any:
        form = {"group_size": 32, "bits": self.bits_of_it}
        return super().update_and_fetch(*(mx.dequantize(*mx.quantize(of, **form), **form) for of in (keys, values)))


@pytest.fixture
def folder(tmp_path: Path, write: Callable[..., Path]) -> Path:
    return write(tmp_path, width=32, head_dim=32, max_position_embeddings=512)


def written(engine: Any, sampling: Sampling) -> Any:
    return engine.generate([PROMPT, PROMPT[:7]], sampling).completions


def test_blocks_change_no_bit(folder: Path, engine_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the first 256 positions, against mlx-lm's cache that concatenates; also in a batch that is running."""
    engine = engine_of(folder)
    found = written(engine, LONG)
    monkeypatch.setattr("finetooth_mlx.cache.make_prompt_cache", lambda model: [ConcatenateKVCache() for _ in "12"])
    assert found == written(engine, LONG) and len(found[0][0].tokens) == 290


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
def test_fewer_bits_are_those_that_mlx_stores(
    folder: Path, engine_of: Any, monkeypatch: pytest.MonkeyPatch, name: str, bits: int
) -> None:
    plain, engine = engine_of(folder), engine_of(folder, options={"kv_cache": name})
    found, before = written(engine, SHORT), written(plain, SHORT)
    monkeypatch.setattr(Rounded, "bits_of_it", bits)
    monkeypatch.setattr("finetooth_mlx.cache.make_prompt_cache", lambda model: [Rounded() for _ in "12"])
    rounded = written(plain, SHORT)
    for one, other, whole in zip(found, rounded, before, strict=True):
        assert one[0].tokens == other[0].tokens
        assert one[0].logprobs == pytest.approx(other[0].logprobs, abs=2e-5)
        assert one[0].logprobs != pytest.approx(whole[0].logprobs, abs=1e-4)
    batch = engine.running_batch()
    batch.add(PROMPT, SHORT)
    assert [batch.step()[0].token for _ in range(24)] == list(found[0][0].tokens)


def test_it_takes_less(folder: Path, engine_of: Any) -> None:
    """8 and 4 bits, and a scale and an offset of 32 bits for 32 numbers: 10 and 6 bits in place of 32."""
    sizes = []
    for name in ("plain", "int8", "int4"):
        engine = engine_of(folder, options={"kv_cache": name})
        cache = engine._generator.cache()
        mx.eval(engine._network.body(mx.array([PROMPT]), cache=cache))
        sizes.append(sum(layer.nbytes for layer in cache))
    assert sizes[1] / sizes[0] == 10 / 32 and sizes[2] / sizes[0] == 6 / 32


def test_an_attention_that_cannot_read_it_is_one_line(tmp_path: Path, write: Callable[..., Path]) -> None:
    """gpt-oss's, whose sinks mlx-lm's attention over fewer bits does not take."""
    small = {
        "hidden_size": 32,
        "head_dim": 32,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
    }
    config = {"model_type": "gpt_oss", "vocab_size": 64, "intermediate_size": 32, "num_local_experts": 2,
              "num_experts_per_tok": 1, "layer_types": ["full_attention", "sliding_attention"], **small}  # fmt: skip
    model = gpt_oss.Model(gpt_oss.ModelArgs.from_dict(config))
    network = SimpleNamespace(model=model, body=model.model, facts=SimpleNamespace(head_dim=32))
    check_cache(network, 0)
    with pytest.raises(PlanError, match=r"backend\.kv_cache=int8: mlx-lm's class of this model cannot: .*sinks"):
        check_cache(network, 8)
