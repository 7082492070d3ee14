"""Write a language model, its block and its base to a folder; `fwl_lab.models.loading` says which files there are."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fwl_lab.fast_weights import FastWeightBlock
from fwl_lab.models.tuned_rule import GradientStatistics, TunedRule
from fwl_lab.ops.tensor_files import write_tensors

BLOCK, CONTROL = "fast_weights", "control"  # names of block files
BLOCK_FILE, COUNTS_FILE = f"{BLOCK}.safetensors", "token_counts.safetensors"
PROVENANCE_FILE, TUNED_RULE_FILE = "provenance.json", "tuned_rule.json"
STATISTICS_FILE = "gradient_statistics.safetensors"
# In the configuration of a saved model, which may have been read with another window.
WINDOW_NAME = "fwl_lab_window"


class Saveable(Protocol):
    """Parts of a language model that go to a folder; `LanguageModel` has them."""

    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    window: int
    block: FastWeightBlock | None
    provenance: dict[str, Any]
    token_counts: Any

    @property
    def tuned_rule(self) -> TunedRule | None:
        """Rule of dynamic evaluation that was tuned for the model."""
        ...

    @property
    def gradient_statistics(self) -> GradientStatistics | None:
        """Statistics that an RMS rule divides by."""
        ...

    @property
    def base(self) -> "Saveable":
        """The same model without the block."""
        ...


def save_model(model: Saveable, folder: str | Path, *, dtype: torch.dtype | None = None, block: str = BLOCK) -> None:
    """Write a model to a folder that `load_model` reads.

    Parameters
    ----------
    model : Saveable
        A `LanguageModel`.
    folder : path
        Made where it does not exist. Files of a model that was saved there before are replaced or removed.
    dtype : torch.dtype, optional
        Dtype in which matrices are stored, for example bfloat16; vectors keep theirs. None: all keep theirs.
    block : str
        Name of the block's file: "fast_weights", or "control" for the block of a slow control (same size and training,
        no fast weights) beside it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = _write_base(model.base, folder, dtype)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    counts, statistics = model.token_counts, model.gradient_statistics
    _write_tensors_or_remove(
        folder / COUNTS_FILE, None if counts is None else {"token_counts": torch.as_tensor(counts)}
    )
    _write_tensors_or_remove(folder / STATISTICS_FILE, None if statistics is None else statistics.to_tensors())
    _write_json(folder / PROVENANCE_FILE, model.provenance)
    if model.tuned_rule is None:
        (folder / TUNED_RULE_FILE).unlink(missing_ok=True)
    else:
        _write_json(folder / TUNED_RULE_FILE, model.tuned_rule.to_facts())
    if model.block is None:
        for name in (BLOCK, CONTROL):  # a block that lay here was trained on the model that has just been replaced
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
        return
    tensors = {f"block.{n}": _stored(t, dtype) for n, t in model.block.state_dict().items()}
    if model.network is not model.base.network:
        ours, theirs = model.network.state_dict(), model.base.network.state_dict()
        changed = [n for n in ours if not torch.equal(ours[n], theirs[n])]
        tensors |= {f"network.{n}": _stored(ours[n], dtype) for n in changed if n in weights}
    facts: dict[str, Any] = {"size": model.block.size, "rule": dataclasses.asdict(model.block.rule)}
    write_tensors(tensors, folder / f"{block}.safetensors", {"fast_weights": json.dumps(facts)})


def _write_base(base: Saveable, folder: Path, dtype: torch.dtype | None) -> set[str]:
    """Write configuration and weights of the model without its block; return the names of the weights."""
    weights = {name: _stored(tensor, dtype) for name, tensor in base.network.state_dict().items()}
    for name in getattr(base.network, "_tied_weights_keys", None) or {}:
        if base.network.config.tie_word_embeddings:
            weights.pop(name, None)  # the same tensor under another name
    config = copy.deepcopy(base.network.config)
    setattr(config, WINDOW_NAME, base.window)
    config.save_pretrained(folder)
    write_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    return set(weights)


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a copy on the CPU, matrices in `dtype` where one is given."""
    return tensor.detach().to("cpu", dtype if dtype and tensor.ndim > 1 else tensor.dtype).contiguous().clone()


def _write_json(path: Path, facts: dict[str, Any]) -> None:
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _write_tensors_or_remove(path: Path, tensors: dict[str, Tensor] | None) -> None:
    """Write a file, or remove that of an earlier model, which loading would take for this one's."""
    if tensors is None:
        path.unlink(missing_ok=True)
    else:
        write_tensors(tensors, path)
