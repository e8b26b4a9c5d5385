"""Devices by name."""

import torch

from simkit.errors import ConfigError, DeviceError


def resolve_device(name: str) -> torch.device:
    """Return the device called ``name``: "cpu", "cuda", "cuda:1", or "auto" for the first GPU and otherwise the CPU.

    Raises:
        ConfigError: if it is none of these.
        DeviceError: if it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"unknown device {name!r}; expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r} is not supported; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceError(
                f"device {name!r} was asked for, but PyTorch {torch.__version__} finds {count or 'no'} CUDA devices; "
                "use cpu, or install a CUDA build of PyTorch and a driver for it"
            )
    return device
