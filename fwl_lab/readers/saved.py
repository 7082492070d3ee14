"""Write a reader's state to a file, and read it back into a reader that is set alike."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fwl_lab.ops.tensor_files import read_tensors, write_tensors
from fwl_lab.trace.configurations import describe, differences


def write_reader(tensors: dict[str, Tensor], configuration: Mapping[str, Any], model_hash: str, path: Path) -> None:
    """Write a reader's state dict, with what it is and reads with; the file holds all of it or what it held before."""
    write_tensors(tensors, path, {"reader": json.dumps(dict(configuration)), "model_hash": model_hash})


def read_reader(path: Path, configuration: Mapping[str, Any], model_hash: str) -> dict[str, Tensor]:
    """Return the state dict of a file that :func:`write_reader` wrote of a reader with this configuration and model.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file is damaged, no reader's, of another model, or of a reader that was set otherwise; says in what.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{str(path)!r} is no file; expected one written by a reader's save().")
    tensors, facts = read_tensors(path)
    if not {"reader", "model_hash"} <= facts.keys():
        raise ValueError(f"{str(path)!r} holds no reader's state; expected a file written by a reader's save().")
    if facts["model_hash"] != model_hash:
        raise ValueError(
            f"{str(path)!r} was saved over a model with the hash {facts['model_hash']}, this reader's has "
            f"{model_hash}. Expected the same weights in the same dtype."
        )
    if unlike := differences(json.loads(facts["reader"]), configuration):
        raise ValueError(
            f"{str(path)!r} was saved by a reader with {describe(unlike)}. Expected a reader set as that one was."
        )
    return tensors
