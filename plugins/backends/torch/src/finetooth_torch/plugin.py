"""The torch backend."""

from __future__ import annotations

from collections.abc import Iterator

from finetooth_hooks import Backend, hookimpl


@hookimpl
def ft_backends() -> Iterator[Backend]:
    yield Backend(
        name="torch",
        build="finetooth_torch.backend:build",
        summary="PyTorch with transformers models, on whatever a hardware plugin serves",
        default=True,
        framework="torch",
        capabilities=frozenset({"handles", "gradients", "zero_grad", "generate", "full_state", "reference"}),
        outputs=frozenset({"logprobs", "entropy", "hidden", "logits"}),
    )
