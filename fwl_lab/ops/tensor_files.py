"""Safetensors files: written whole or not at all, and checked when they are read."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, aside, metadata)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_tensors(
    path: str | Path, device: str | torch.device = "cpu", *, header_only: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a safetensors file.

    Parameters
    ----------
    path : path
    device : str or torch.device
        Where the tensors go.
    header_only : bool
        Read the metadata alone, and return no tensors.

    Raises
    ------
    ValueError
        The file is damaged or of another format.
    """
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            names = [] if header_only else list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is damaged or no safetensors file ({error}); copy it again, or train it anew."
        ) from error


def check_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Raise ValueError where a weight is NaN or infinite, naming the tensor."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise ValueError(f"{count} weights of {name} in {source!r} are not finite; the training run went wrong.")
