"""Choose among the devices that a model can be read on."""

import torch


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """Return a device by name; "auto" is a GPU where there is one.

    Raises
    ------
    ValueError
        There is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        found = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ValueError(f"device {str(device)!r} is not usable here; expected one of {found}.") from error
    return chosen


def available_devices() -> list[str]:
    """Return the names of the devices that a model can be moved to here, "cpu" first."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found
