"""Model card, bill of materials, and what the command model_signing verifies."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from finetooth_hooks import UserError
from registry_place import Place, write_run


def test_a_card_says_what_the_record_says(place: Place) -> None:
    place.add("one", loss=1.25)
    card = place("card", "bot").output
    assert card.startswith("# bot@v0\n")
    assert "signed by ci." in card
    for fact in ("| base | tiny |", f"| SHA-256 of the base | {'b' * 64} |", "| customer\\_data | False |",
                 f"| data.train.sha256 | {'d' * 64} |", "| eval/loss | 1.25 |", "| artifact/weights |"):  # fmt: skip
        assert fact in card, fact


def test_names_that_hold_markup_are_text(place: Place) -> None:
    run = write_run(place.runs / "odd", "two", model="<script>alert(1)</script>\n# | `rm`")
    assert place("add", str(run), "--name", "odd").exit_code == 0
    card = place("card", "odd").output
    assert "<script>" not in card
    assert "\\<script\\>alert(1)\\</script\\> \\# \\| \\`rm\\`" in card
    assert "no trusted key" in card


def test_a_bill_of_materials_is_valid_and_names_base_data_and_files(place: Place) -> None:
    place.add("one", loss=1.25)
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    text = place("bom", "bot").output
    assert validation.JsonStrictValidator(schema.SchemaVersion.V1_6).validate_str(text) is None
    bom: dict[str, Any] = json.loads(text)
    model = bom["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "bot", "v0")
    card = model["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [{"type": "eval/loss", "value": "1.25"}]
    assert {"name": "finetooth:classification:customer_data", "value": "false"} in card["properties"]
    hashes = {part["name"]: part["hashes"][0]["content"] for part in bom["components"] if part.get("hashes")}
    assert hashes["data.train.sha256"] == "d" * 64
    stored = {part["name"]: part["hashes"][0]["content"] for part in model["components"]}
    weights = (place.runs / "run-0/artifact/weights").read_bytes()
    assert stored["artifact/weights"] == hashlib.sha256(weights).hexdigest()


@pytest.mark.slow
def test_model_signing_verifies_what_is_signed_for_it(place: Place, tmp_path: Path) -> None:
    """The real command, which knows nothing of registries."""
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    place.add("one")
    private = ec.generate_private_key(ec.SECP256R1())
    key, public, out = tmp_path / "ec.pem", tmp_path / "ec.pub", tmp_path / "out"
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    done = place("get", "bot@v0", str(out), "--model-signing", str(key))
    assert done.exit_code == 0 and f"{out}.sig" in done.output

    def verified() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "model_signing", "verify", "key", "--signature", f"{out}.sig"]
        return subprocess.run([*command, "--public_key", str(public), str(out)], capture_output=True, text=True)

    good = verified()
    assert good.returncode == 0, good.stderr
    (out / "artifact/weights").write_text("two")
    bad = verified()
    assert bad.returncode != 0 and "artifact/weights" in bad.stdout + bad.stderr


@pytest.mark.slow
def test_a_key_that_model_signing_does_not_take_is_refused_before_anything_is_written(
    place: Place, tmp_path: Path
) -> None:
    pytest.importorskip("model_signing", reason="model-signing is not installed")
    place.add("one")
    for key in (place.key, tmp_path / "missing.pem"):
        refused = place("get", "bot@v0", str(tmp_path / "out"), "--model-signing", str(key))
        assert isinstance(refused.exception, UserError) and "openssl ecparam" in str(refused.exception)
    assert not (tmp_path / "out").exists()
