"""The device that a model runs on."""

from __future__ import annotations

import torch

from arelu_tl.errors import ConfigError


def choose_device(name: str | None) -> torch.device:
    """Return the requested device, or the best available one for None.

    Raises:
        ConfigError: torch does not know such a device, or this machine has none.
    """
    if name is None:
        best = torch.accelerator.current_accelerator(check_available=True)
        return best if best is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(
            f"`device` {name}: not usable here: {str(error).splitlines()[0]}"
        ) from None
    return device
