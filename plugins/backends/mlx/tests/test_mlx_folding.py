"""An adapter that peft made, folded into an MLX model: what peft computes, or a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetooth_hooks import UserError
from finetooth_kit.fake_context import FakeContext

mx: Any = pytest.importorskip("mlx.core", reason="MLX is not installed")
pytest.importorskip("mlx_lm", reason="mlx-lm is not installed")
pytest.importorskip("peft", reason="torch is not installed")

TOKENS = [[5, 7, 9, 2]]


def made_by_peft(base: Path, folder: Path, **settings: Any) -> np.ndarray[Any, Any]:
    """Write an adapter whose numbers are drawn; returns the logits of what peft makes of it."""
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    given = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **settings}
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**given))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(folder)
        loaded: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder)
        logits: np.ndarray[Any, Any] = loaded(torch.tensor(TOKENS)).logits.numpy()
    return logits


def folded(base: Path, folder: Path) -> np.ndarray[Any, Any]:
    from finetooth_mlx.folding import fold
    from finetooth_mlx.loader import MlxOptions, build

    loader: Any = build(MlxOptions(), FakeContext(base))
    model = loader.load(str(base), framework="mlx", precision="fp32", device="")
    return np.array(fold(model, folder, "fp32")(mx.array(TOKENS)))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "lora_alpha": 3}, {"use_dora": True}], ids=str)
def test_logits_are_pefts(write: Callable[..., Path], tmp_path: Path, settings: dict[str, Any]) -> None:
    (tmp_path / "base").mkdir()
    base = write(tmp_path / "base")
    logits = made_by_peft(base, tmp_path / "a", **settings)
    np.testing.assert_allclose(folded(base, tmp_path / "a"), logits, atol=2e-5)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"alpha_pattern": {"q_proj": 64}}, "alpha_pattern"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
        ({"bias": "lora_only"}, "bias lora_only"),
        ({"modules_to_save": ["norm"]}, "norm.weight"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "cannot fold model.embed_tokens"),
        ({"trainable_token_indices": [3]}, "cannot fold .*embed_tokens"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_what_is_more_than_matrices_is_refused(
    write: Callable[..., Path], tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    """MLX folds matrices of one rank and scale; the rest of an adapter would be left out."""
    (tmp_path / "base").mkdir()
    base = write(tmp_path / "base", tied=False)
    made_by_peft(base, tmp_path / "a", **settings)
    with pytest.raises(UserError, match=named):
        folded(base, tmp_path / "a")
