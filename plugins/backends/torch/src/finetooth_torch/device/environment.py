"""What the numbers of an engine depend on in addition to the plan."""

from __future__ import annotations

import importlib.metadata

import torch


def environment(device: torch.device, label: str) -> dict[str, str]:
    """Versions and surroundings by name; where one differs, results agree only within float tolerance.

    Args:
        label: of the device, as its hardware calls it.
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
