"""Gate `readback`: what lies on the disk is what was written, and can be read."""

from __future__ import annotations

import json
from pathlib import Path

from finetooth_hooks import Candidate
from finetooth_toolbox.files.manifests import ManifestProblem, check_folder

from finetooth_integrity.tensors import TensorProblem, read_header


class ReadbackGate:
    """`checkpoints.Gate`: every file of the manifest is there with its size and SHA-256 and no other file is; JSON
    parses; the header of each file of tensors is sane."""

    def check(self, candidate: Candidate) -> str:
        """Names the first file that is not as it should be."""
        try:
            for name in check_folder(candidate.folder):
                problem = _problem(candidate.folder / name)
                if problem:
                    return f"{name}: {problem}"
        except ManifestProblem as error:
            return str(error)
        except OSError as error:
            return f"{error.filename} cannot be read: {error.strerror or error}"
        return ""


def _problem(path: Path) -> str:
    """What keeps a file from being read as what its ending says; empty if nothing does."""
    try:
        if path.suffix == ".safetensors":
            read_header(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            return _bad_line(path)
    except TensorProblem as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON: {str(error).splitlines()[0]}"
    return ""


def _bad_line(path: Path) -> str:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                return f"line {number} is not JSON"
    return ""
