"""Save a training run to one file and resume it.

A step is a function of documents, configuration and step number; a checkpoint holds everything else: weights, optimizer
moments, the state of the documents under way. A resumed run ends with the weights of an uninterrupted one.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fwl_lab.corpora.documents import Document, corpus_hash
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.state import from_tensors, to_tensors
from fwl_lab.ops.tensor_files import read_tensors, write_tensors
from fwl_lab.training.config import TrainingConfig
from fwl_lab.training.run import Run

WEIGHTS, OPTIMIZER, CONTEXT, STATE = "weights.", "optimizer.", "context.", "state."  # begin the names of tensors
PROGRESS = ("step", "tokens", "sums", "curve")  # attributes of a run that are plain numbers and lists
log = logging.getLogger("fwl_lab")


def run_facts(model: LanguageModel, documents: Sequence[Document], config: TrainingConfig) -> dict[str, Any]:
    """Return what a checkpoint and a run must agree on, by name, in JSON types; ask before the first step."""
    facts = dataclasses.asdict(config) | {"documents": corpus_hash(documents), "rule": None}
    if model.block is not None:
        rule = dataclasses.asdict(model.block.rule)
        facts |= {"rule": rule, "block size": model.block.size, "base": model.base.weight_hash()}
    return json.loads(json.dumps(facts))


def save_checkpoint(run: Run, path: Path, facts: dict[str, Any]) -> None:
    """Write all that resuming needs, atomically: a file of that name is always whole.

    Parameters
    ----------
    run : Run
    path : Path
        Of the safetensors file.
    facts : dict
        As returned by :func:`run_facts`.
    """
    tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in _tensors(run)}
    progress = {name: getattr(run, name) for name in PROGRESS}
    write_tensors(tensors, path, {"run": json.dumps({"run": facts} | progress)})


def load_checkpoint(run: Run, path: Path, facts: dict[str, Any]) -> None:
    """Give a fresh run the weights, moments and states of a checkpoint, in place.

    Raises
    ------
    ValueError
        The file is damaged, no checkpoint, or that of a run with other `facts`.
    """
    tensors, metadata = read_tensors(path, run.model.device)
    if "run" not in metadata:
        raise ValueError(f"{path} is no checkpoint of a training run; use another folder.")
    saved = json.loads(metadata["run"])
    theirs = saved.get("run", {})
    differing = [name for name, value in facts.items() if name not in theirs or theirs[name] != value]
    if differing:
        raise ValueError(
            f"{path} is a checkpoint of another run: {', '.join(differing)} differ; "
            "resume it with what it was begun with, or use another folder."
        )
    for name in PROGRESS:
        setattr(run, name, saved[name])
    with torch.no_grad():
        for name, parameter in run.learning.items():
            parameter.copy_(tensors[WEIGHTS + name])
            prefix = f"{OPTIMIZER}{name}."
            run.optimizer.state[parameter] = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
    run.context = from_tensors(run.context, tensors, CONTEXT)
    if run.state is not None:
        run.state = from_tensors(run.state, tensors, STATE)
    log.info("resumed %s at step %d of %d", path, run.step, run.config.steps)


def _tensors(run: Run) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a run with their names in the file."""
    for name, parameter in run.learning.items():
        yield WEIGHTS + name, parameter.detach()
        for key, value in run.optimizer.state.get(parameter, {}).items():
            yield f"{OPTIMIZER}{name}.{key}", value
    yield from to_tensors(run.context, CONTEXT).items()
    if run.state is not None:
        yield from to_tensors(run.state, STATE).items()
