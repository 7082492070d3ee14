"""Write a language model, its block and its base to a folder."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwl_lab.ops.tensor_files import write_tensors

BLOCK, CONTROL = "fast_weights", "control"  # names of block files
BLOCK_FILE, PROVENANCE_FILE, COUNTS_FILE = f"{BLOCK}.safetensors", "provenance.json", "token_counts.safetensors"
# In the configuration of a saved model, which may have been read with another window.
WINDOW_NAME = "fwl_lab_window"
STATISTICS_FILE = "gradient_statistics.safetensors"


def save_model(model: Any, folder: str | Path, *, dtype: torch.dtype | None = None, block: str = BLOCK) -> None:
    """Write a model to a folder that `load_model` reads.

    Parameters
    ----------
    dtype : torch.dtype, optional
        That matrices are stored in, for example bfloat16; vectors keep theirs. None: as they are.
    block : str
        Name of the block's file: "fast_weights", or "control" for a slow control beside it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def stored(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", dtype if dtype and tensor.ndim > 1 else tensor.dtype).contiguous().clone()

    base = model.base
    weights = {name: stored(tensor) for name, tensor in base.network.state_dict().items()}
    for name in getattr(base.network, "_tied_weights_keys", None) or {}:
        if base.network.config.tie_word_embeddings:
            weights.pop(name, None)  # the same tensor under another name
    config = copy.deepcopy(base.network.config)
    setattr(config, WINDOW_NAME, base.window)
    config.save_pretrained(folder)
    write_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    _write_or_remove(
        folder / COUNTS_FILE,
        None if model.token_counts is None else {"token_counts": torch.as_tensor(model.token_counts)},
    )
    statistics = model.gradient_statistics
    _write_or_remove(folder / STATISTICS_FILE, None if statistics is None else statistics.to_tensors())
    (folder / PROVENANCE_FILE).write_text(json.dumps(model.provenance, indent=1) + "\n")
    if model.block is None:
        for name in (BLOCK, CONTROL):  # a block that lay here was trained on the model that has just been replaced
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
    else:
        tensors = {f"block.{n}": stored(t) for n, t in model.block.state_dict().items()}
        if model.network is not base.network:
            ours, theirs = model.network.state_dict(), base.network.state_dict()
            changed = [n for n in ours if not torch.equal(ours[n], theirs[n])]
            tensors |= {f"network.{n}": stored(ours[n]) for n in changed if n in weights}
        facts: dict[str, Any] = {"size": model.block.size, "rule": dataclasses.asdict(model.block.rule)}
        write_tensors(tensors, folder / f"{block}.safetensors", {"fast_weights": json.dumps(facts)})


def _write_or_remove(path: Path, tensors: dict[str, Tensor] | None) -> None:
    """What another model left in the folder would be taken for this one's."""
    if tensors is None:
        path.unlink(missing_ok=True)
    else:
        write_tensors(tensors, path)
