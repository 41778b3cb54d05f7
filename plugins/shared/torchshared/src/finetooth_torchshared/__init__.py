"""torch and transformers models: weights saved whole, classifiers, vocabularies. Import them inside builders."""

from __future__ import annotations

import logging

# Where it is installed, bitsandbytes is imported by peft too, whatever is trained, and on some processors says then
# that a kernel for products in 4 bits is absent: nothing here calls that, with or without the kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# Where its library for a GPU is not found, it prints a traceback; `build.check_bitsandbytes` tells those who need it.
logging.getLogger("bitsandbytes.cextension").setLevel(logging.CRITICAL)
