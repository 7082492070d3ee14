"""Read a trace's documents again under a surgery, and return a trace with both readings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr

from fwl_lab.corpora.documents import Document
from fwl_lab.inference.plan import PER_UPDATE, Plan
from fwl_lab.inference.read_loop import read_all
from fwl_lab.inference.recorder import Recorder
from fwl_lab.inference.skeleton import attributes, make_skeleton, score_arrays, vocabulary_texts
from fwl_lab.interventions.readers import operate_on_each
from fwl_lab.interventions.surgery import Surgery
from fwl_lab.models.encoding import Encoding
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers.base import Reader
from fwl_lab.readers.rebuild import Given, reader_of
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import Array
from fwl_lab.trace.configurations import encode_configurations
from fwl_lab.trace.lookup import default_learner, reader_configurations, reader_names
from fwl_lab.trace.writer import TraceWriter

#: Variables that a replay copies of every reader of the old trace.
PER_READER = (
    schema.NLL, schema.SECONDS, schema.PEAK_BYTES, schema.FLOPS_PER_TOKEN,
    schema.LABEL_RANK, schema.TOP_ID, schema.TOP_LOG_PROB,
)  # fmt: skip
#: Variables that it copies only of the reader under surgery, whose grid of updates the new trace has.
PER_UPDATE_AND_NORM = (*PER_UPDATE, schema.RETENTION, schema.SLOW_NORM)


def replay(
    model: LanguageModel,
    trace: xr.Dataset,
    surgery: Surgery,
    *,
    reader: str | None = None,
    readers: Mapping[str, Given] | None = None,
    record: Recorder | None = None,
    path: str | Path | None = None,
    progress: bool = False,
) -> xr.Dataset:
    """Read the documents of a trace again with a reader whose updates are changed by a surgery.

    Parameters
    ----------
    model : LanguageModel
        The model that read the trace.
    trace : Dataset
        All token ids that it holds are read, with fast weights carried or reset between documents as they were.
    surgery : Surgery
        Its tokens are indices in the trace.
    reader : str, optional
        Name in the trace of the reader to operate on: one with a fast-weight block, or dynamic evaluation. None: see
        `fwl_lab.trace.lookup.default_learner`.
    readers : mapping from name to Reader or factory, optional
        The readers that were given to `score`, or functions from the model to them; needed for a reader whose settings
        the trace does not hold completely.
    record : Recorder, optional
        What to keep of the new reading beside its scores.
    path : path, optional
        Where to write the new trace while it is made, as in `score`.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    xarray.Dataset
        A valid trace with the scores and costs of the old trace's readers, and their alternatives where `record` asks
        for as many; and with one more reader, named after the old one and the surgery ("fwl: rank 2", say). Where
        `record` asks for norms, those of the reader under surgery are copied at the updates of the new
        reading; those of other old readers are NaN. Factors and dense Δθ are of the new reading alone. A replay of a
        replay adds another reader.

    Raises
    ------
    ValueError
        The model or the reader is not the one that made the trace (the message says in what they differ); the trace
        has no such token, or already has a reader of the new name; `record` asks for factors, and the surgery removes
        directions; or as for :func:`fwl_lab.operate`.
    """
    if not isinstance(surgery, Surgery):
        raise ValueError(f"surgery is a {type(surgery).__name__}; expected a Surgery(...).")
    reader = default_learner(trace) if reader is None else reader
    plain = reader_of(model, trace, reader, readers)
    name, old = f"{reader}: {surgery}", reader_names(trace)
    if name in old:
        raise ValueError(f"the trace holds a reader {name!r} already; expected another Surgery(name=...).")
    documents, encodings = _documents(trace)
    lengths = [len(encoding.ids) for encoding in encodings]
    every = 1 if plain.every_token else plain.update_every or 1
    operated = operate_on_each(plain, surgery, _by_document(surgery, lengths, every))
    if record is not None and record.factors and plain.factors and not operated.factors:
        raise ValueError(
            "the surgery takes singular directions out of Δθ, so factors would not add up to it; expected a "
            "Recorder(factors=False, snapshots_every=...)."
        )
    carry = trace.attrs.get(schema.CARRY) == "true"
    plan = None if record is None else Plan.of(record, {name: operated}, lengths, carry=carry)
    rows: dict[str, Reader] = dict.fromkeys([*old, name], operated)
    skeleton = make_skeleton(documents, encodings, rows, plan, _vocabulary(model, trace, record))
    configurations = reader_configurations(trace) | {name: operated.configuration()}
    skeleton.attrs |= attributes(model, documents, {name: operated}, carry, None)
    # Taken from the old trace: the documents' whole texts may have been longer than what it holds.
    same = (schema.MAX_TOKENS, schema.CORPUS_HASH, schema.READER_HASHES)
    skeleton.attrs |= {key: trace.attrs[key] for key in same if key in trace.attrs}
    skeleton.attrs[schema.READERS] = encode_configurations(configurations)
    arrays = score_arrays(len(rows), sum(lengths)) | ({} if plan is None else plan.arrays())
    writer = _LastRowWriter(skeleton, _enlarge(arrays, len(rows)), path, len(old))
    with writer:
        _copy(trace, reader, writer, plan)
        read_all({name: operated}, encodings, plan, writer, carry=carry, progress=progress)
    return schema.validate(writer.trace())


def _documents(trace: xr.Dataset) -> tuple[list[Document], list[Encoding]]:
    """Return the trace's documents and their tokens, cut where the trace was cut (`max_tokens`)."""
    index = trace[schema.DOCUMENT].values
    documents, encodings = [], []
    for number, name in enumerate(trace[schema.DOCUMENT_NAME].values):
        tokens = trace.isel({schema.TOKEN: np.flatnonzero(index == number)})
        texts = [str(text) for text in tokens[schema.TOKEN_TEXT].values]
        ids = torch.from_numpy(tokens[schema.TOKEN_ID].values.astype(np.int64))
        encodings.append(Encoding(ids, texts, tokens[schema.BYTE_COUNT].values.tolist()))
        documents.append(Document(str(name), "".join(texts)))
    return documents, encodings


def _vocabulary(model: LanguageModel, trace: xr.Dataset, record: Recorder | None) -> list[str] | None:
    """Return the text of each token id: the old trace's, or the model's if alternatives are recorded, or None."""
    if schema.VOCABULARY_TEXT in trace.variables:
        return [str(text) for text in trace[schema.VOCABULARY_TEXT].values]
    return vocabulary_texts(model) if record is not None and record.top and model.tokenizer is not None else None


def _by_document(surgery: Surgery, lengths: Sequence[int], every: int) -> list[dict[int, float]]:
    """Return, for each document, the factor of each token's update by position, where the surgery sets one.

    Parameters
    ----------
    surgery : Surgery
        Its tokens are indices in the trace.
    lengths : sequence of int
        Tokens of each document.
    every : int
        Tokens of an update; tokens after a document's last complete update are left out, since none was made of them.

    Raises
    ------
    ValueError
        A mask of another length than the trace, or a token beyond its end.
    """
    starts = np.cumsum([0, *lengths])
    if surgery.masked not in (None, starts[-1]):
        raise ValueError(f"drop is a mask of {surgery.masked} tokens; expected {starts[-1]}, as the trace has.")
    factors: list[dict[int, float]] = [{} for _ in lengths]
    for token, factor in surgery.token_factors.items():
        if token >= starts[-1]:
            raise ValueError(f"the surgery names token {token}; expected 0 to {starts[-1] - 1}, of this trace.")
        number = int(np.searchsorted(starts, token, side="right")) - 1
        if (position := token - int(starts[number])) < lengths[number] // every * every:
            factors[number][position] = factor
    return factors


def _enlarge(arrays: Mapping[str, Array], readers: int) -> dict[str, Array]:
    """Return arrays of one reader, with the dimension `reader` enlarged to several."""
    return {
        name: dataclasses.replace(array, sizes={**array.sizes, schema.READER: readers})
        if schema.READER in array.sizes
        else array
        for name, array in arrays.items()
    }


class _LastRowWriter(TraceWriter):
    """Trace writer for a reader whose row comes after those of the old trace's readers.

    Parameters
    ----------
    skeleton, arrays, path
        As for `TraceWriter`.
    above : int
        Number of readers of the old trace, whose rows come first.
    """

    def __init__(self, skeleton: xr.Dataset, arrays: Mapping[str, Array], path: str | Path | None, above: int) -> None:
        super().__init__(skeleton, arrays, path)
        self.above = above

    def put(self, name: str, values: np.ndarray, *at: int | slice) -> None:
        """Write values of a variable for the last row: as `TraceWriter.put`, with 0 for the index of the reader."""
        if schema.READER in self.layout[name].sizes:
            at = (slice(self.above, None) if isinstance(at[0], slice) else at[0] + self.above, *at[1:])
        super().put(name, values, *at)

    def copy(self, name: str, values: np.ndarray, row: int) -> None:
        """Write a variable's values of one of the old trace's readers."""
        super().put(name, values, row)


def _copy(trace: xr.Dataset, reader: str, writer: _LastRowWriter, plan: Plan | None) -> None:
    """Copy the rows of the old trace's readers, of those variables that are also written of the new reading.

    Parameters
    ----------
    trace : Dataset
        The old trace.
    reader : str
        Reader under surgery, the only one whose norms and retention are copied.
    writer : _LastRowWriter
        Receives the rows.
    plan : Plan or None
        What is recorded of the new reading; its updates and parameters are those of the norms.
    """
    sizes = {name: dict(array.sizes) for name, array in writer.layout.items()}
    alike = [n for n in PER_READER if n in trace and dict(trace[n].sizes) == sizes.get(n, {}) | _rows(trace)]
    for row, name in enumerate(map(str, trace[schema.READER].values)):
        for variable in alike:
            writer.copy(variable, trace[variable].isel({schema.READER: row}).values, row)
        # The grid is that of the reader under surgery; other readers may have made their updates at other tokens.
        if plan is None or not plan.parameters or name != reader or schema.UPDATE_TOKEN not in trace.variables:
            continue
        old = trace.isel({schema.READER: row}).assign_coords({schema.UPDATE: trace[schema.UPDATE_TOKEN].values})
        for variable in (n for n in PER_UPDATE_AND_NORM if n in trace):
            labels = {schema.UPDATE: plan.update_token, schema.PARAMETER: plan.parameters}
            found = old[variable].reindex({dim: labels[str(dim)] for dim in old[variable].dims})
            writer.copy(variable, found.values, row)


def _rows(trace: xr.Dataset) -> dict[str, int]:
    """Return {"reader": n}, the size of that dimension in the trace."""
    return {schema.READER: trace.sizes[schema.READER]}
