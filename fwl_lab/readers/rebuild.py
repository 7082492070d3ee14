"""Make the reader that made a part of a trace once more: the one place that does."""

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr

from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers.base import Reader
from fwl_lab.readers.named import REBUILDABLE
from fwl_lab.trace import schema
from fwl_lab.trace.configurations import describe, differences
from fwl_lab.trace.lookup import reader_configurations, require_reader, with_facts

#: A reader that is set as the one of a trace was, or a function from the model to such a reader.
Given = Reader | Callable[[LanguageModel], Reader]


def from_configuration(model: LanguageModel, configuration: Mapping[str, Any]) -> Reader:
    """Make a fresh reader over a model, set as a reader's `configuration()` says.

    Raises
    ------
    ValueError
        A kind that is not in the registry: nothing is imported because a file says so. Or a configuration that does
        not say all, or that the model does not fit.
    """
    kind = configuration.get("kind")
    if kind not in REBUILDABLE:
        raise ValueError(
            f"a reader of kind {kind} cannot be made from what a trace says of it; expected one of "
            f"{', '.join(REBUILDABLE)}, or hand it in: readers={{name: a function from the model to the reader}}."
        )
    missing = [key for key in ("step_scale", "block") if key not in configuration]
    if missing:
        raise ValueError(
            f"the configuration of this {kind} lacks {', '.join(missing)}; it was written by an older version. Score "
            "again, or hand the reader in: readers={name: reader}."
        )
    try:
        made = REBUILDABLE[kind].from_configuration(model, configuration)
    except KeyError as error:
        raise ValueError(
            f"the configuration of this {kind} lacks {error.args[0]!r}; expected one of score()."
        ) from None
    if not configuration.get("learning", True):
        raise ValueError(
            f"this {kind} was frozen after it had learned, so that a configuration does not say all of it; hand it in: "
            "readers={name: reader}."
        )
    return made


def reader_of(model: LanguageModel, trace: xr.Dataset, name: str, given: Mapping[str, Given] | None = None) -> Reader:
    """Return a reader that is set as one of a trace was: made anew, or the one handed in.

    Parameters
    ----------
    model : LanguageModel
        The one that read.
    trace : Dataset
    name : str
        Of the reader in the trace.
    given : mapping from name to Reader or factory, optional
        Readers handed in, or functions from the model to them; they stay as they are.

    Raises
    ------
    ValueError
        Model and trace exchanged; no such reader in the trace, or among those handed in; another model; a kind that is
        not in the registry; or a reader that is set otherwise, with what differs.
    """
    if not (isinstance(model, LanguageModel) and isinstance(trace, xr.Dataset)):
        raise ValueError(
            f"model is a {type(model).__name__} and trace a {type(trace).__name__}; expected a LanguageModel and a "
            "Dataset: receipt(model, trace, token), but add_receipts(trace, model, tokens)."
        )
    require_reader(trace, name)
    theirs = reader_configurations(trace).get(name)
    if theirs is None:
        raise ValueError(f"the trace does not say how reader {name!r} was set; expected one written by score().")
    theirs = dict(with_facts(theirs))
    hashes = trace.attrs.get(schema.MODEL_HASH), model.weight_hash()
    if hashes[0] != hashes[1]:
        raise ValueError(
            f"the trace was read by a model with the hash {hashes[0]} ({trace.attrs.get(schema.MODEL_NAME)}), this "
            f"one's is {hashes[1]}. Expected the same weights in the same dtype."
        )
    if given is None:
        reader = from_configuration(model, theirs)
    elif name not in given:
        raise ValueError(f"readers holds {', '.join(given) or 'none'}; expected {name!r} among them.")
    else:
        found = given[name]
        reader = found if isinstance(found, Reader) else found(model)
    if unlike := differences(theirs, reader.configuration()):
        raise ValueError(
            f"reader {name!r} of the trace was set with {describe(unlike)}. Hand in the one that read: "
            f"readers={{{name!r}: reader}}."
        )
    return reader
