"""The reader that made a part of a trace, once more."""

import dataclasses
import json
from collections.abc import Mapping

import xarray as xr

from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers import DynamicEvaluationReader, FastWeightReader, Reader
from fwl_lab.trace import schema as schema
from fwl_lab.trace.lookup import require_reader


def reader_of(model: LanguageModel, trace: xr.Dataset, name: str, given: Mapping[str, Reader] | None) -> Reader:
    """A reader that is set as the one of a trace was, made anew or handed in (`given`); receipts know its updates.

    Raises
    ------
    ValueError
        No such reader in the trace, or among those handed in; another model; a reader of another kind, or set
        otherwise; model and trace exchanged.
    """
    if not (isinstance(model, LanguageModel) and isinstance(trace, xr.Dataset)):
        raise ValueError(
            f"model is a {type(model).__name__} and trace a {type(trace).__name__}; expected a LanguageModel and a "
            "Dataset: receipt(model, trace, token), but add_receipts(trace, model, tokens)."
        )
    require_reader(trace, name)
    theirs = json.loads(trace.attrs.get(schema.READERS, "{}")).get(name)
    if theirs is None:
        raise ValueError(f"the trace does not say how reader {name!r} was set; expected one written by score().")
    hashes = trace.attrs.get(schema.MODEL_HASH), model.weight_hash()
    if hashes[0] != hashes[1]:
        raise ValueError(
            f"the trace was read by a model with the hash {hashes[0]}, this one's is {hashes[1]}. Expected the same "
            "weights in the same dtype."
        )
    kind = theirs.get("kind")
    if given is not None:
        if name not in given:
            raise ValueError(f"readers holds {', '.join(given) or 'none'}; expected {name!r} among them.")
        reader = given[name]
    elif kind == FastWeightReader.__name__:
        rule = None
        if model.block is not None:
            rule = dataclasses.replace(model.block.rule, inner_batch=theirs["inner_batch"])
        reader = FastWeightReader(model, step_scale=theirs["step_scale"], rule=rule)
    elif kind == DynamicEvaluationReader.__name__:
        reader = DynamicEvaluationReader(
            model.base, segment=theirs["segment"], parameters=theirs["parameters"], step_scale=theirs["step_scale"]
        )
    else:
        raise ValueError(
            f"reader {name!r} is a {kind}; receipts are of a FastWeightReader or a DynamicEvaluationReader. "
            f"This trace's readers: {', '.join(map(str, trace[schema.READER].values))}."
        )
    if type(reader) not in (FastWeightReader, DynamicEvaluationReader):
        raise ValueError(
            f"reader {name!r} is a {type(reader).__name__}; receipts are of a FastWeightReader or a "
            "DynamicEvaluationReader itself, whose updates they know how to drop."
        )
    ours = json.loads(json.dumps(reader.configuration()))
    unlike = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if unlike:
        said = "; ".join(f"{key} {theirs.get(key)}, this one's is {ours.get(key)}" for key in unlike[:4])
        raise ValueError(
            f"reader {name!r} of the trace was set with {said}. Hand in the one that read: "
            f"readers={{{name!r}: reader}}."
        )
    return reader
