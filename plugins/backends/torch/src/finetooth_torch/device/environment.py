"""The environment that an engine's numbers depend on, in addition to the plan."""

from __future__ import annotations

import importlib.metadata

import torch


def environment(device: torch.device, label: str) -> dict[str, str]:
    """Versions and devices by name; if one differs, results agree only within float tolerance.

    Args:
        label: the hardware's name of the device.
    """
    facts = {
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "threads": str(torch.get_num_threads()),
        "device": label,
    }
    if device.type == "cuda":
        facts["cuda"] = torch.version.cuda or torch.version.hip or "unknown"
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability(device)))
    return facts
