"""Devices and number formats by the names that users give."""

from __future__ import annotations

import torch

from .errors import SettingError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def choose_device(name: str) -> torch.device:
    """auto: cuda, then mps, then cpu. Raises SettingError for a device that is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, available in there.items() if available))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingError(f"{name!r} is no device.", "Use auto, cuda, mps or cpu.") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if not there.get(device.type, True) or (device.index or 0) >= count:
        raise SettingError(f"This machine has no {name} that torch can use.", "Set the device to auto or cpu.")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise SettingError(f"There is no number format {name!r}.", f"Use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]
