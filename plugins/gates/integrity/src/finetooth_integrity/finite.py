"""Gate `finite`: no NaN and no infinity in what was saved."""

from __future__ import annotations

from pathlib import Path

from finetooth_hooks import Candidate

from finetooth_integrity.tensors import TensorProblem, not_finite, read_header

ENGINE = "engine"
"""Where the engine's files lie in a checkpoint."""


class FiniteGate:
    """`checkpoints.Gate`: every element of every tensor under `engine/` is finite, whatever its type: fp64, fp32, fp16,
    bf16, fp8. Bits are looked at, so no framework is needed."""

    def check(self, candidate: Candidate) -> str:
        """Names the first tensor that is not finite, and how many of its elements are not."""
        for path in tensor_files(candidate.folder):
            name = path.relative_to(candidate.folder).as_posix()
            try:
                for tensor in read_header(path):
                    count = not_finite(path, tensor)
                    if count:
                        return f"{name}: {tensor.name} holds {count} numbers that are not finite"
            except TensorProblem as error:
                return f"{name}: {error}"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror or error}"
        return ""


def tensor_files(folder: Path) -> list[Path]:
    """The files of tensors that the engine wrote, by name."""
    return sorted((folder / ENGINE).rglob("*.safetensors"))
