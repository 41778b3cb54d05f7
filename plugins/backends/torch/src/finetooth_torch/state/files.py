"""The folder of a state: written under a temporary name and moved into place; a reader trusts nothing in it.

A folder may come from anywhere. Only files of known names that are plain files are opened, each is compared with its
SHA-256 in state.json, and the reader of safetensors checks every header against the size of its file; nothing is
unpickled. Tensors of other ranks have type and shape in state.json (`elsewhere`) and no numbers in a file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from finetooth_hooks import UserError
from finetooth_steps.saved_states import OTHER, STATE, plain_file, read_content, taking_its_place
from finetooth_toolbox.files.manifests import sha256_of
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

FORMAT = 2
REQUIRED = ("trained", "optimizer", "random")
OPTIONAL = ("adapter", "gradients", "losses")
ROLE = re.compile(r"role-[A-Za-z0-9_-]{1,64}")
"""Files of copies of the policy, by their role."""
Files = Mapping[str, Mapping[str, Tensor]]


def write_state(path: Path, files: Files, content: Mapping[str, Any]) -> None:
    """Write a state to a temporary folder and move it to `path`; an existing folder keeps its other files."""
    with taking_its_place(path, _may_be_left_out) as staging:
        _write(staging, files, content)


def read_files(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Content and tensors of what `write_state` wrote; the tensors are mapped until they are copied.

    Raises:
        UserError: the folder holds no state, or one in another format, incomplete, or with forbidden file names.
    """
    content = read_content(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} has state format {content.get('format')!r}, this version reads {FORMAT}",
            action="load it with the version that wrote it",
        )
    named = content.get("files")
    named = named if isinstance(named, dict) else {}
    missing = [name for name in REQUIRED if f"{name}.safetensors" not in named]
    if missing:
        raise UserError(f"{path}/state.json names no {missing[0]}.safetensors", action=OTHER)
    files = {name.removesuffix(".safetensors"): _tensors(path, name, hash_) for name, hash_ in named.items()}
    try:
        for name, kinds in content.pop("elsewhere", {}).items():
            for key, (dtype, shape) in kinds.items():
                files[name][key] = torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path}/state.json: elsewhere is not what an engine writes", action=OTHER) from error
    return content, files


def _write(folder: Path, files: Files, content: Mapping[str, Any]) -> None:
    hashes, elsewhere = {}, {}
    for name, tensors in files.items():
        file = folder / f"{name}.safetensors"
        save_file(_apart({key: of for key, of in tensors.items() if not of.is_meta}), file)
        hashes[file.name] = sha256_of(file)
        if absent := {key: of for key, of in tensors.items() if of.is_meta}:
            elsewhere[name] = {
                key: [str(of.dtype).removeprefix("torch."), list(of.shape)] for key, of in absent.items()
            }
    about = {**content, "files": hashes, **({"elsewhere": elsewhere} if elsewhere else {})}
    (folder / STATE).write_text(json.dumps(about, indent=1), encoding="utf-8")


def _tensors(path: Path, name: str, expected: Any) -> dict[str, Tensor]:
    stem = name.removesuffix(".safetensors")
    if stem == name or not (stem in (*REQUIRED, *OPTIONAL) or ROLE.fullmatch(stem)):
        raise UserError(f"{path}/state.json names the file {name!r}, which no state has", action=OTHER)
    try:
        file = plain_file(path / name)
        if sha256_of(file) != expected:
            raise OSError("its SHA-256 is another")
    except OSError as error:
        raise UserError(
            f"{path / name} is missing or not what was saved: {error.strerror or error}",
            action=OTHER,
        ) from error
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path / name} is not a safetensors file: {str(error).splitlines()[0]}", action=OTHER
        ) from error


def _may_be_left_out(file: str) -> bool:
    stem = file.removesuffix(".safetensors")
    return stem != file and (stem in OPTIONAL or stem.startswith("role-"))


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors in separate host memory, as safetensors needs them."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, tensor in tensors.items():
        host = tensor.detach().cpu().contiguous()
        start = host.untyped_storage().data_ptr()
        separate[key] = host.clone() if start in seen or host.untyped_storage().nbytes() != host.nbytes else host
        seen.add(start)
    return separate
