"""The used parts of the gguf package, imported without its optional tokenizers.

Where mistral-common is installed, as with vLLM, `import gguf` imports it for conversions that nothing here does: one
to four seconds in every command that reads a GGUF file.
"""

from __future__ import annotations

import sys
from typing import Any

_UNUSED = "mistral_common"
_modules: dict[str, Any] = sys.modules
_hidden = _UNUSED not in _modules
if _hidden:
    _modules[_UNUSED] = None  # what makes an import fail (https://docs.python.org/3/reference/import.html)
try:
    from gguf import GGUFWriter, LlamaFileType, RopeScalingType, dequantize, quantize
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
finally:
    if _hidden:
        del _modules[_UNUSED]

__all__ = [
    "GGML_QUANT_SIZES",
    "GGMLQuantizationType",
    "GGUFWriter",
    "LlamaFileType",
    "RopeScalingType",
    "dequantize",
    "quantize",
]
