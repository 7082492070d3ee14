"""Name, type and check everything that a trace may hold: dimensions, coordinates, variables and attributes.

A trace is one :class:`xarray.Dataset` of what readers did to documents. Its names stand in this module only, with their
units. Imports no torch.

===================  ======================  ========  =========================================================
name                 dimensions              unit      meaning
===================  ======================  ========  =========================================================
``document``         token                             index of the token's document, never falling
``position``         token                   token     place in its document, from 0, one by one
``token_id``         token                             index in the vocabulary; decides where texts are alike
``token_text``       token                             to be shown; any Unicode, NUL included
``byte_count``       token                   B         UTF-8 bytes the token stands for
``document_name``    document
``document_bytes``   document                B         optional: size of the whole text read
``vocabulary_text``  vocabulary                        optional: text of each token id by itself
``update_token``     update                            token just read when an update was recorded, rising
``nll``              reader, token           nat       −log p(token | all tokens before it)
``update_norm``      reader, update, param.  1         L2 norm of the last step of a fast parameter
``drift``            reader, update, param.  1         L2 norm of Δθ = fast minus slow; NaN: the reader has none
``update_cosine``    reader, update, param.  1         of a step and the one before it
``slow_norm``        reader, parameter       1         L2 norm of θ₀
``retention``        reader, update          1         factor by which a decay or a cap shrank Δθ at that update
``anchored``         reader, update                    whether a dense Δθ of the reader is kept there
``label_rank``       reader, token           1         number of tokens with a higher probability than the label
``top_id``           reader, token, top                ids of the most probable tokens, in falling order
``seconds``          reader                  s         time spent reading
``peak_bytes``       reader                  B         most memory that reading takes beyond the model
``flops_per_token``  reader                  FLOP      counted as executed
===================  ======================  ========  =========================================================

Further optional variables are listed in :data:`FIELDS` and, for those that exist once per recorded matrix, in
:func:`parameter_fields`. Saved as a Zarr 3 folder.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from fwl_lab.trace.configurations import decode_configurations

# Dimensions; READER and PARAMETER are coordinates along themselves too.
READER = "reader"
TOKEN = "token"
TOP = "top"
UPDATE = "update"
PARAMETER = "parameter"
RANK = "rank"
DIRECTION = "direction"  # singular directions kept by a low-rank snapshot
VOCABULARY = "vocabulary"  # token ids, from 0

# Coordinates. DOCUMENT names both the index on `token` and the dimension of what exists once a document.
DOCUMENT = "document"
POSITION = "position"
TOKEN_ID = "token_id"
TOKEN_TEXT = "token_text"
BYTE_COUNT = "byte_count"
DOCUMENT_NAME = "document_name"
DOCUMENT_BYTES = "document_bytes"
VOCABULARY_TEXT = "vocabulary_text"
UPDATE_TOKEN = "update_token"

# Variables.
NLL = "nll"
TOP_ID = "top_id"
TOP_LOG_PROB = "top_log_prob"
UPDATE_NORM = "update_norm"
DRIFT = "drift"
RETENTION = "retention"
UPDATE_COSINE = "update_cosine"
SLOW_NORM = "slow_norm"
ANCHORED = "anchored"
LABEL_RANK = "label_rank"
RECEIPT_SOURCE = "receipt_source"
RECEIPT_SHARE = "receipt_share"
RECEIPT_LEAVE_ONE_OUT = "receipt_leave_one_out"
RECEIPT_GAIN = "receipt_gain"
RECEIPT_GROSS = "receipt_gross"
RECEIPT_RESIDUAL = "receipt_residual"
SECONDS = "seconds"
PEAK_BYTES = "peak_bytes"
FLOPS_PER_TOKEN = "flops_per_token"

# Attributes of the Dataset, and the attribute of a variable that holds its unit.
UNITS = "units"
SCHEMA_VERSION = "schema_version"
READERS = "readers"  # JSON, configuration of each reader
CERTIFICATES = "certificates"  # JSON, certificate of each reader that was audited
MODEL_NAME = "model_name"
MODEL_HASH = "model_hash"
READER_HASHES = "reader_hashes"  # JSON, hashes of the models of readers whose weights are not those of MODEL_HASH
CORPUS_HASH = "corpus_hash"
SEED = "seed"
DEVICE = "device"
DTYPE = "dtype"
THREADS = "threads"
CARRY = "carry"  # "true": fast weights survived document boundaries
MAX_TOKENS = "max_tokens"  # most tokens read of a document; 0: all
FACTORED = "factored"  # name of the reader whose factors the trace holds
PROGRESS = "progress"  # JSON, number of complete tokens and updates; there only while a trace is being written
VERSIONS = "versions"
PYTHON = "python"
COMMIT = "commit"
DIRTY = "dirty"
CREATED = "created"

#: Value of ``attrs["schema_version"]``; also how a folder is recognised as a trace.
SCHEMA = "fwl_lab.trace/1"
#: Name of the reader that gains are measured against: the same model without fast weights, read statically.
BASE = "base"
# Names that `make_readers` gives to its readers; no meaning hangs on them.
STATIC, DYNAMIC_EVALUATION, FWL, NEURAL_CACHE = "static", "dynamic_evaluation", "fwl", "neural_cache"
UNKNOWN = "unknown"

NAT, BYTE, SECOND, FLOP, ONE, TOKENS = "nat", "B", "s", "FLOP", "1", "token"
TEXT_KINDS = "TOU"  # numpy's StringDType, object, fixed width
LOSSLESS_TEXT_KINDS = "TO"  # a fixed-width string drops trailing NULs, and a token may be one


@dataclass(frozen=True)
class Field:
    """Requirements on one variable: dimensions, kinds of numpy dtype, unit, and whether every trace has it."""

    dims: tuple[str, ...]
    kinds: str
    units: str | None = None
    required: bool = False


FIELDS: dict[str, Field] = {
    READER: Field((READER,), TEXT_KINDS, required=True),
    DOCUMENT: Field((TOKEN,), "iu", required=True),
    POSITION: Field((TOKEN,), "iu", TOKENS, required=True),
    TOKEN_ID: Field((TOKEN,), "iu", required=True),
    TOKEN_TEXT: Field((TOKEN,), LOSSLESS_TEXT_KINDS, required=True),
    BYTE_COUNT: Field((TOKEN,), "iu", BYTE, required=True),
    DOCUMENT_NAME: Field((DOCUMENT,), TEXT_KINDS, required=True),
    DOCUMENT_BYTES: Field((DOCUMENT,), "iu", BYTE),
    VOCABULARY_TEXT: Field((VOCABULARY,), LOSSLESS_TEXT_KINDS),
    NLL: Field((READER, TOKEN), "f", NAT, required=True),
    PARAMETER: Field((PARAMETER,), TEXT_KINDS),
    UPDATE_TOKEN: Field((UPDATE,), "iu"),
    TOP_ID: Field((READER, TOKEN, TOP), "iu"),
    TOP_LOG_PROB: Field((READER, TOKEN, TOP), "f", NAT),
    UPDATE_NORM: Field((READER, UPDATE, PARAMETER), "f", ONE),
    DRIFT: Field((READER, UPDATE, PARAMETER), "f", ONE),
    UPDATE_COSINE: Field((READER, UPDATE, PARAMETER), "f", ONE),
    SLOW_NORM: Field((READER, PARAMETER), "f", ONE),
    RETENTION: Field((READER, UPDATE), "f", ONE),
    ANCHORED: Field((READER, UPDATE), "b"),
    LABEL_RANK: Field((READER, TOKEN), "iu", ONE),
    RECEIPT_SOURCE: Field((READER, TOKEN, RANK), "iu"),
    RECEIPT_SHARE: Field((READER, TOKEN, RANK), "f", NAT),
    RECEIPT_LEAVE_ONE_OUT: Field((READER, TOKEN, RANK), "f", NAT),
    RECEIPT_GAIN: Field((READER, TOKEN), "f", NAT),
    RECEIPT_GROSS: Field((READER, TOKEN), "f", NAT),
    RECEIPT_RESIDUAL: Field((READER, TOKEN), "f", NAT),
    SECONDS: Field((READER,), "f", SECOND),
    PEAK_BYTES: Field((READER,), "iuf", BYTE),
    FLOPS_PER_TOKEN: Field((READER,), "iuf", FLOP),
}


def row_dim(parameter: str) -> str:
    """Return the name of the dimension along the rows of a recorded matrix, or along a recorded vector."""
    return f"row_{parameter}"


def col_dim(parameter: str) -> str:
    """Return the name of the dimension along the columns of a recorded matrix."""
    return f"col_{parameter}"


def key_name(parameter: str) -> str:
    """Return the name of the variable with the keys k of a matrix's updates δ kᵀ, one per token."""
    return f"key_{parameter}"


def delta_name(parameter: str) -> str:
    """Return the name of the variable with δ of a parameter's updates, −η·w included, one per token."""
    return f"delta_{parameter}"


def fast_weight_name(parameter: str) -> str:
    """Return the name of the variable with dense Δθ of a parameter."""
    return f"fast_weight_{parameter}"


def left_name(parameter: str) -> str:
    """Return the name of the variable with the left singular directions of a matrix's Δθ, times the singular values."""
    return f"left_{parameter}"


def right_name(parameter: str) -> str:
    """Return the name of the variable with the right singular directions; left @ right is Δθ at low rank."""
    return f"right_{parameter}"


def parameter_fields(trace: xr.Dataset) -> dict[str, Field]:
    """Return the requirements on the variables that exist once per recorded parameter; vectors have rows only."""
    fields = {}
    for name in map(str, trace[PARAMETER].values) if PARAMETER in trace.variables else ():
        rows, cols = (row_dim(name),), (col_dim(name),) if col_dim(name) in trace.dims else ()
        fields[key_name(name)] = Field((TOKEN, *cols), "f", ONE)
        fields[delta_name(name)] = Field((TOKEN, *rows), "f", ONE)
        fields[fast_weight_name(name)] = Field((READER, UPDATE, *rows, *cols), "f", ONE)
        fields[left_name(name)] = Field((READER, UPDATE, *rows, DIRECTION), "f", ONE)
        fields[right_name(name)] = Field((READER, UPDATE, DIRECTION, *cols), "f", ONE)
    return fields


def with_units(trace: xr.Dataset) -> xr.Dataset:
    """Return a shallow copy of `trace` with the schema's units on its variables and the schema's version."""
    trace = trace.copy()
    for name, field in (FIELDS | parameter_fields(trace)).items():
        if name in trace.variables and field.units is not None:
            trace[name].attrs[UNITS] = field.units
    return trace.assign_attrs({SCHEMA_VERSION: SCHEMA})


def validate(trace: xr.Dataset, *, values: bool = True) -> xr.Dataset:
    """Check a Dataset against the schema and return it unchanged.

    Parameters
    ----------
    trace : Dataset
    values : bool
        Check the values too, which reads them; False checks names, dimensions, dtypes and units only.

    Raises
    ------
    ValueError
        The Dataset is not a valid trace; the message has one line for each problem.
    """
    problems = list(_structure_problems(trace))
    if values and not problems:
        problems = list(_value_problems(trace))
    if problems:
        raise ValueError("not a valid trace:\n" + "\n".join(f"- {problem}" for problem in problems))
    return trace


def _structure_problems(trace: xr.Dataset) -> Iterator[str]:
    version = trace.attrs.get(SCHEMA_VERSION)
    if version != SCHEMA:
        yield f"attribute {SCHEMA_VERSION!r} is {version!r}, expected {SCHEMA!r}"
    for name, field in (FIELDS | parameter_fields(trace)).items():
        if name not in trace.variables:
            if field.required:
                yield f"{name!r} is missing (dimensions {field.dims})"
            continue
        variable = trace.variables[name]
        if variable.dims != field.dims:
            yield f"{name!r} has dimensions {variable.dims}, expected {field.dims}"
        if variable.dtype.kind not in field.kinds:
            yield f"{name!r} has dtype {variable.dtype}, expected a dtype of kind {' or '.join(field.kinds)}"
        elif name == NLL and variable.dtype != np.float64:
            yield f"{name!r} has dtype {variable.dtype}, expected float64"
        if field.units is not None and variable.attrs.get(UNITS) != field.units:
            yield f"{name!r} has units {variable.attrs.get(UNITS)!r}, expected {field.units!r}; with_units() sets them"
    recorded = {name for name, field in FIELDS.items() if UPDATE in field.dims} & set(trace.variables)
    if recorded and UPDATE_TOKEN not in trace.variables:
        yield f"{UPDATE_TOKEN!r} is missing, but {sorted(recorded)} are recorded on its grid"


def _value_problems(trace: xr.Dataset) -> Iterator[str]:
    document, position = trace[DOCUMENT].values.astype(np.int64), trace[POSITION].values.astype(np.int64)
    names, readers = trace[DOCUMENT_NAME].values, [str(name) for name in trace[READER].values]
    if not document.size:
        yield "there is no token in it"
        return
    if not readers or len(set(readers)) < len(readers):
        yield f"{READER!r} must be one or more different names, not {readers}"
    if document.min() < 0 or document.max() >= len(names):
        yield f"{DOCUMENT!r} runs from {document.min()} to {document.max()}, but there are {len(names)} document names"
    first = np.diff(document, prepend=-1) != 0
    if (np.diff(document) < 0).any():
        yield f"{DOCUMENT!r} falls at token {int(np.argmax(np.diff(document) < 0)) + 1}; documents lie end to end"
    expected = np.where(first, 0, np.concatenate([[0], position[:-1] + 1]))
    if (position != expected).any():
        token = int(np.argmax(position != expected))
        yield f"{POSITION!r} is {position[token]} at token {token}, expected {expected[token]}"
    if (trace[BYTE_COUNT].values.astype(np.int64) < 0).any():
        yield f"{BYTE_COUNT!r} is negative somewhere"
    bad = np.argwhere(~np.isfinite(trace[NLL].transpose(READER, TOKEN).values))
    if len(bad):
        yield f"{NLL!r} is not finite at {len(bad)} places, first reader {readers[bad[0, 0]]!r}, token {bad[0, 1]}"
    if UPDATE_TOKEN in trace.variables:
        grid = trace[UPDATE_TOKEN].values.astype(np.int64)
        if grid.size and (grid.min() < 0 or grid.max() >= document.size or (np.diff(grid) <= 0).any()):
            yield f"{UPDATE_TOKEN!r} must rise within 0..{document.size - 1}"
    if READERS in trace.attrs:
        try:
            configured = set(decode_configurations(trace.attrs[READERS]))
        except ValueError as error:
            yield str(error)
        else:
            if configured != set(readers):
                yield f"attribute {READERS!r} describes {sorted(configured)}, the trace holds {sorted(readers)}"
