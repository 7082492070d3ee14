"""Make control experiments for adaptation: fast weights from the wrong document, and a longer window without learning.

`net_gain` and `key_token_perplexity` in `fwl_lab.analysis` compute the results from their traces. Other controls are
readers and models: `NeuralCacheReader` (copying without learning) and the slow control, a block of the same size and
training that never adapts (`load_model(folder, block="control")`, read by `StaticReader`).
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from fwl_lab.analysis.comparisons import OWN, WRONG
from fwl_lab.corpora.documents import Document
from fwl_lab.inference.read_loop import read_on
from fwl_lab.inference.score import score
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers.base import Reader
from fwl_lab.readers.static import StaticReader
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.configurations import encode_configurations
from fwl_lab.trace.lookup import reader_configurations

DONOR: Final = "donor"  # coordinate (document): index of the document whose fast weights the reader "wrong" carried


def wrong_document(
    model: LanguageModel,
    documents: Sequence[Document],
    make_reader: Callable[[], Reader],
    *,
    max_tokens: int | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Score each document with another document's fast weights too: what these gain is generic, not this document's.

    The reader "wrong" reads another document up to the same number of tokens (or to its end, if that is shorter), then
    resets the context, keeps the fast weights, and reads the document without learning more. It has all of the other
    document's adaptation from the first token on, so that its gain overestimates the generic part rather than
    underestimates it. The donor of each document is the next one by name; that of the last is the first.

    Parameters
    ----------
    model : LanguageModel
    documents : sequence of Document
        Two or more.
    make_reader : callable
        Returns a fresh reader that has fast weights.
    max_tokens : int, optional
        Read only this many tokens of each document.
    progress : bool
        Whether to show tokens per second and the time left.

    Returns
    -------
    xarray.Dataset
        A valid trace of the readers "base", "own" (the reader as it is) and "wrong", with the coordinate ``donor``
        (document). `fwl_lab.analysis.net_gain` computes the gain that is left. The seconds of "wrong" are those of
        reading the document, without those of reading the donor; costs that were not measured are NaN.

    Raises
    ------
    ValueError
        Fewer than two documents; a donor with the same text as its document; a reader without fast weights.
    """
    donors = _donors(documents)
    reader = make_reader()
    if reader.update_every is None:
        raise ValueError(
            f"make_reader returned a {type(reader).__name__}, which has no fast weights to carry; expected a reader "
            "that adapts, such as FastWeightReader or DynamicEvaluationReader."
        )
    readers = {schema.BASE: StaticReader(model.base), OWN: reader}
    trace = score(model, documents, readers, max_tokens=max_tokens, progress=progress)
    ids = torch.from_numpy(trace[schema.TOKEN_ID].values.astype(np.int64))
    parts = ids.split(np.bincount(trace[schema.DOCUMENT].values, minlength=len(documents)).tolist())
    nll, seconds, configuration = [], 0.0, reader.configuration()
    with tqdm(total=2 * len(ids), unit="tok", unit_scale=True, disable=not progress, desc=WRONG) as bar:
        for own, donor in zip(parts, donors, strict=True):
            reader.reset()
            borrowed = parts[donor][: len(own)]
            read_on(reader, borrowed, np.empty(len(borrowed)), bar.update)
            reader.reset(carry=True)
            frozen = reader.without_learning()
            nll.append(np.empty(len(own)))
            seconds += read_on(frozen, own, nll[-1], bar.update)
            configuration = frozen.configuration()
    wide = trace.reindex({schema.READER: text_array([schema.BASE, OWN, WRONG])})
    for name, values in ((schema.NLL, np.concatenate(nll)), (schema.SECONDS, seconds)):
        wide[name].loc[{schema.READER: WRONG}] = values
    described = reader_configurations(trace) | {WRONG: configuration}
    wide = wide.assign_coords({DONOR: (schema.DOCUMENT, np.array(donors))})
    return schema.validate(wide.assign_attrs({schema.READERS: encode_configurations(described)}))


def more_context(model: LanguageModel, factor: int = 2) -> StaticReader:
    """Make a static reader of the base model with `factor` times its window, to compare learning with more context.

    Name it "more_context" in a trace. Distances beyond those of its training may make it worse than the base, as they
    do the bundled model; it is then no valid control.

    Parameters
    ----------
    model : LanguageModel
        Its base's weights are shared, not copied.
    factor : int
        Number of windows, at least 2.

    Raises
    ------
    ValueError
        `factor` is not a whole number from 2, or the model has absolute positions, and fewer than the window needs.
    """
    if not isinstance(factor, int) or factor < 2:
        raise ValueError(f"factor is {factor!r}; expected a whole number of windows, at least 2.")
    base = model.base
    window = factor * base.window
    if not base.rotary and window > (most := int(base.network.config.max_position_embeddings)):
        raise ValueError(
            f"a window of {window} needs {window} positions, but {base.name} has {most} and cannot look further back; "
            f"expected a model with rotary positions, or one that is read with a window of at most {most // factor}."
        )
    wide = LanguageModel(base.network, base.tokenizer, window=window)
    wide.inherit(base)
    return StaticReader(wide)


def _donors(documents: Sequence[Document]) -> list[int]:
    """Return the index of each document's donor: the next by name (and text), and for the last one the first.

    Raises
    ------
    ValueError
        Fewer than two documents, or a donor with the same text as its document.
    """
    if len(documents) < 2:
        raise ValueError(f"{len(documents)} document given; expected two or more, each to borrow from another.")
    order = sorted(range(len(documents)), key=lambda index: (documents[index].name, documents[index].text))
    follower = dict(zip(order, [*order[1:], order[0]], strict=True))
    for index, other in follower.items():
        if documents[index].text == documents[other].text:
            raise ValueError(
                f"{documents[index].name!r} would borrow from {documents[other].name!r}, which has the same text; "
                "expected documents that differ: leave one of the two out."
            )
    return [follower[index] for index in range(len(documents))]
