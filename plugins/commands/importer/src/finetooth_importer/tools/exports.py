"""What tools write once training has ended, as the recipe's list `export`."""

from __future__ import annotations

from typing import Any

from finetooth_importer.account import Account

PRECISIONS = {
    "fp16": "fp16", "float16": "fp16", "bf16": "bf16", "bfloat16": "bf16", "fp32": "fp32", "float32": "fp32",
}  # fmt: skip

STORED = ("f32", "f16", "bf16", "q8_0", "q6_k", "q5_1", "q5_0", "q4_k_m", "q4_1", "q4_0")
"""How the exporter `gguf` stores matrices."""

UNSLOTH_STORED = {"not_quantized": "bf16", "fast_quantized": "q8_0", "quantized": "q4_k_m"}
"""Unsloth's own words for some of them."""

WHERE = "written to exports/{name} in the run folder"


def add(account: Account, name: str, **options: Any) -> str:
    """One more thing to write; returns where it will be, for a note."""
    account.recipe.setdefault("export", []).append({"name": name, **options} if options else name)
    return WHERE.format(name=name)


def merged_in(account: Account, key: str, precision: str) -> None:
    """A switch that merges once training has ended, and the key with the precision that is written."""
    if not account.get(key):
        account.passes(key, "it is off")
        account.passes(precision, f"{key} is off")
        return
    wanted = str(account.get(precision, "bf16"))
    known = PRECISIONS.get(wanted)
    account.covered(key, "export", add(account, "safetensors", **({"precision": known} if known else {})))
    if known:
        account.covered(precision, "export")
    account.refuse(precision, "weights are written in bf16, fp16 or fp32: set precision in export")


def unsloth(account: Account) -> None:
    """What Unsloth's command writes by `--save_model`, and its scripts by `save_method` or `quantization_method`."""
    writes = account.get("save_model", True) is not False
    kinds = [key for key in ("quantization_method", "quantization") if account.has(key)]
    gguf = writes and (bool(account.get("save_gguf")) or "quantization_method" in kinds)
    if gguf:
        kind = account.get(kinds[0], "q8_0") if kinds else "q8_0"
        names = [str(name).lower() for name in (kind if isinstance(kind, list | tuple) else [kind])]
        stored = [UNSLOTH_STORED.get(name, name) for name in names]
        if all(name in STORED for name in stored):
            for name in stored:
                where = add(account, "gguf", stored=name)
            for key in kinds[:1]:
                account.covered(key, "export")
            account.covered("save_gguf", "export", where)
            account.covered("save_model", "export")
        else:
            note = f"ft export RUN --to gguf stored=KIND writes {', '.join(STORED)}"
            for key in (*kinds[:1], "save_gguf"):
                account.refuse(key, note)
    method = account.get("save_method", "merged_16bit" if account.get("save_model") and not gguf else None)
    methods = method if isinstance(method, list) else [method]
    if writes and "merged_16bit" in methods and not account.get("save_gguf"):
        where = add(account, "safetensors")
        account.covered("save_method", "export")
        account.covered("save_model", "export", where)
    elif method == "lora":
        account.passes("save_method", "the artifact of a run is its adapter")
    elif writes and not account.get("save_gguf"):
        account.refuse("save_method", "ft merge RUN --to nf4|int4|int8|mxfp4 writes fewer bits")
    account.passes("save_method", "it saves a GGUF file, or nothing")
    account.passes("save_model", "other keys decide what is written, or it is off")
    account.passes("save_gguf", "it is off, or save_model is")
    account.passes("save_path", "exports are in the run folder")
    for key in ("quantization", "quantization_method"):
        account.passes(key, "the configuration writes no GGUF file")
