"""Make synthetic traces: valid, seeded and plausible, without a model. Imports no torch."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from fwl_lab.analysis.breakdowns import earlier_occurrences
from fwl_lab.audit.certificate import add_certificates
from fwl_lab.testing import synthetic
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from fwl_lab.trace.configurations import encode_configurations
from fwl_lab.trace.lookup import reader_facts

# Some of these break views that do not escape text: markup, entities, quotes, bidirectional controls, NUL.
_PIECES = (
    *("def", " return", "import", "class", " self", " for", " in", " if", " else", " while", " not", " None", " raise"),
    *(" state", " weights", " tokens", " reader", " update", " gradient", " memory", " window", " score", " value"),
    *("\n", "\n    ", "\n\n", " ", "    ", "\t", "(", ")", ":", ",", ".", " = ", "[0]", "'", '"', "_", "#"),
    *("<script>", "</script>", "alert(1)", "</style>", "&amp;", "<!--", "-->", "]]>", "${x}", "\\u0000", "{{ x }}"),
    *("é", "ß", "日本", "語", "Ελλάδα", "שלום", "مرحبا", "🙂", "👩‍🚀", "\u202e", "\u2067", "\x00", "\ufffd"),
)
_PARAMETERS = ("W1", "b1", "W2", "b2", "g", "b")


def make_trace(
    seed: int = 0,
    *,
    tokens: int = 2000,
    documents: int = 3,
    readers: Sequence[str] | Mapping[str, str] = synthetic.KINDS,
    vocab: int = 400,
    parameters: Sequence[str] = _PARAMETERS,
    recorded: bool = True,
    failing: bool = False,
) -> xr.Dataset:
    """Make a valid trace of invented readers over invented documents; the same arguments give the same trace.

    Tokens repeat within a document more than across documents, and repeats have a lower NLL. Readers of a kind
    in `synthetic.STILL` do not adapt; others improve along a document, most on tokens that occurred there before.

    Parameters
    ----------
    seed : int
    tokens : int
        Over all documents, which get different lengths; at least one each.
    documents : int
    readers : sequence of str, or mapping from str to str
        Names of the readers, or the kind of each by name, one of `synthetic.KINDS`. Of a sequence each name is also the
        kind. Any other kind adapts every 64 tokens. Numbers depend on the kinds and their order only, so a trace with
        other names is the same but for these.
    vocab : int
        Number of different tokens.
    parameters : sequence of str
        Names of the fast parameters whose ``drift`` and ``update_norm`` are recorded; empty records none.
    recorded : bool
        Add what a recorder keeps, receipts and an audit: the most probable tokens at each place; the factors of the
        first reader of kind FWL, with norms and dense Δθ that agree with them (W1 (32, 16), W2 (16, 32), b1 (32,), any
        other (16,)); receipts of 5 % of its tokens, against a static reader, with a block if there is one; its
        certificate.
    failing : bool
        Add certificates of dynamic evaluation, which failed, and of static readers with a block, with a check that was
        not made.

    Raises
    ------
    ValueError
        There are fewer tokens than documents, or no document, reader or vocabulary.
    """
    kinds = dict(readers) if isinstance(readers, Mapping) else {name: name for name in readers}
    readers = list(kinds)
    if documents < 1 or tokens < documents or not readers or vocab < 1:
        raise ValueError(
            f"cannot spread {tokens} tokens over {documents} documents for readers {readers} and a vocabulary "
            f"of {vocab}; each document needs a token, and there must be a reader and a vocabulary"
        )
    rng = np.random.default_rng(seed)
    lengths = _lengths(rng, tokens, documents)
    document = np.repeat(np.arange(documents), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    token_id = np.concatenate([_zipf_with_repeats(rng, length, vocab) for length in lengths])
    # Each token text starts with a piece; a number distinguishes ids with the same piece.
    pieces = [_PIECES[i % len(_PIECES)] + (str(i // len(_PIECES)) if i >= len(_PIECES) else "") for i in range(vocab)]
    texts = [pieces[i] for i in token_id]
    nll = _nll(rng, token_id, position, earlier_occurrences(document, token_id), list(kinds.values()))

    data = {
        schema.NLL: ((schema.READER, schema.TOKEN), nll),
        schema.SECONDS: (schema.READER, tokens / 2000 * np.array([1.0 + 0.8 * i for i in range(len(readers))])),
        schema.PEAK_BYTES: (schema.READER, 200_000_000 + 10_000_000 * np.arange(len(readers))),
    }
    sizes = np.array([len(text.encode()) for text in texts])
    coords = {
        schema.READER: text_array(readers),
        schema.DOCUMENT: (schema.TOKEN, document),
        schema.POSITION: (schema.TOKEN, position),
        schema.TOKEN_ID: (schema.TOKEN, token_id),
        schema.TOKEN_TEXT: (schema.TOKEN, text_array(texts)),
        schema.BYTE_COUNT: (schema.TOKEN, sizes),
        schema.DOCUMENT_NAME: (schema.DOCUMENT, text_array(f"package/module_{i}.py" for i in range(documents))),
        schema.DOCUMENT_BYTES: (schema.DOCUMENT, np.add.reduceat(sizes, np.cumsum(lengths) - lengths)),
    }
    if len(parameters):
        update = np.flatnonzero(position % synthetic.STEP == synthetic.STEP - 1)
        drift, norm = _norms(rng, position[update], list(kinds.values()), len(parameters))
        dims = (schema.READER, schema.UPDATE, schema.PARAMETER)
        data |= {schema.DRIFT: (dims, drift), schema.UPDATE_NORM: (dims, norm)}
        coords |= {schema.UPDATE_TOKEN: (schema.UPDATE, update), schema.PARAMETER: text_array(parameters)}
    attrs = {
        schema.READERS: encode_configurations(synthetic.configurations(kinds)),
        schema.MODEL_NAME: "synthetic",
        schema.MODEL_HASH: schema.UNKNOWN,
        schema.CORPUS_HASH: schema.UNKNOWN,
        schema.SEED: seed,
        schema.DEVICE: "none",
        schema.DTYPE: "float64",
        schema.THREADS: 1,
        schema.VERSIONS: "{}",
        schema.COMMIT: schema.UNKNOWN,
        schema.DIRTY: schema.UNKNOWN,
        schema.CREATED: "2000-01-01T00:00:00+00:00",
    }
    trace = xr.Dataset(data, coords, attrs)
    if recorded:
        trace = _recorded(rng, trace, pieces)
        found = synthetic.certificates(kinds, failing)
        trace = add_certificates(trace, found) if found else trace
    return schema.validate(schema.with_units(trace))


def _recorded(rng: np.random.Generator, trace: xr.Dataset, pieces: Sequence[str]) -> xr.Dataset:
    """Return the trace with alternatives, costs, updates and receipts."""
    facts = list(reader_facts(trace).values())
    adapts = np.array([one.adapts for one in facts])
    nll, token_id, position = (trace[name].values for name in (schema.NLL, schema.TOKEN_ID, schema.POSITION))
    data = synthetic.alternatives(rng, nll, token_id, len(pieces), adapts)
    data[schema.FLOPS_PER_TOKEN] = ((schema.READER,), 5.2e6 * (1.0 + np.arange(len(facts)) * adapts))
    trace = trace.assign_coords({schema.VOCABULARY_TEXT: (schema.VOCABULARY, text_array(pieces))})
    row = next((index for index, one in enumerate(facts) if one.every_token), None)
    if schema.PARAMETER in trace.coords:
        data |= _learned(rng, trace, adapts, row)
    # A receipt is of the gain over θ₀, so over the reader with the block where there is one.
    still = sorted(np.flatnonzero(~adapts).tolist(), key=lambda index: not facts[index].block)
    if row is not None and still:
        data |= synthetic.receipts(rng, nll[still[0]] - nll[row], token_id, position, row, len(facts))
    factored = {schema.FACTORED: facts[row].name} if row is not None and schema.PARAMETER in trace.coords else {}
    return trace.assign(data).assign_attrs(factored)


def _learned(rng: np.random.Generator, trace: xr.Dataset, adapts: np.ndarray, row: int | None) -> synthetic.Variables:
    """Return what a recorder keeps of updates: the sums of factors for the reader in `row`, invented for others."""
    parameters, update = [str(name) for name in trace[schema.PARAMETER].values], trace[schema.UPDATE_TOKEN].values
    position = trace[schema.POSITION].values[update]
    dims = (schema.READER, schema.UPDATE, schema.PARAMETER)
    grid = np.where(adapts, 1.0, np.nan)[:, None] * np.ones(len(update))  # (readers, U)
    first = np.where(position < synthetic.STEP, np.nan, 1.0)
    norms = {name: trace[name].values.copy() for name in (schema.DRIFT, schema.UPDATE_NORM)}
    cosine = rng.uniform(-0.2, 0.6, (*grid.shape, len(parameters)))
    norms[schema.UPDATE_COSINE] = cosine * (grid * first)[:, :, None]
    sizes = [float(np.prod(synthetic.SHAPES.get(name, (16,)))) for name in parameters]
    anchored = np.zeros(grid.shape, dtype=bool)
    data: synthetic.Variables = {}
    if row is not None:
        nll, token_id = trace[schema.NLL].values[row], trace[schema.TOKEN_ID].values
        data = synthetic.factors(rng, parameters, token_id, nll, trace.sizes[schema.VOCABULARY])
        dense, exact = synthetic.fast_weights(data, parameters, row, len(adapts), update, position)
        data |= dense
        anchored[row] = synthetic.anchors(position)
        for name, values in exact.items():
            norms[name][row] = values
    return data | {
        **{name: (dims, values) for name, values in norms.items()},
        schema.SLOW_NORM: ((schema.READER, schema.PARAMETER), np.where(adapts, 1.0, np.nan)[:, None] * np.sqrt(sizes)),
        schema.RETENTION: (dims[:2], grid),
        schema.ANCHORED: (dims[:2], anchored),
    }


def _lengths(rng: np.random.Generator, tokens: int, documents: int) -> np.ndarray:
    """Draw lengths of at least one token that add up to `tokens`."""
    cuts = np.sort(rng.choice(np.arange(1, tokens), documents - 1, replace=False))
    return np.diff(cuts, prepend=0, append=tokens)


def _zipf_with_repeats(rng: np.random.Generator, length: int, vocab: int) -> np.ndarray:
    """Draw token ids by Zipf's law; half of them from a small vocabulary of the document."""
    p = 1 / np.arange(1, vocab + 1)
    common = rng.choice(vocab, length, p=p / p.sum())
    own = rng.choice(rng.choice(vocab, min(vocab, 40), replace=False), length)
    return np.where(rng.random(length) < 0.5, own, common)


def _nll(
    rng: np.random.Generator, token_id: np.ndarray, position: np.ndarray, seen: np.ndarray, kinds: Sequence[str]
) -> np.ndarray:
    """Draw the NLL (reader, token), nats: higher for rare tokens, lower for repeats, and falling if a reader adapts."""
    surprise = rng.gamma(2.0, 0.5 + np.log1p(token_id) / 3)
    base = surprise / (1 + 0.15 * np.minimum(seen, 4))
    learned = (1 - np.exp(-position / 400)) * (0.1 + 0.4 * seen / (seen + 2))
    rows, skill = [], 0.0
    for kind in kinds:
        if kind in synthetic.STILL:
            rows.append(base if kind == schema.BASE else base + rng.normal(0.05, 0.05, len(base)))
            continue
        skill += 0.6
        rows.append(base * (1 - np.minimum(learned * skill, 0.9)) + rng.normal(0, 0.15, len(base)))
    return np.maximum(np.stack(rows), 1e-4)


def _norms(
    rng: np.random.Generator, position: np.ndarray, kinds: Sequence[str], parameters: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw drift, growing as √tokens, and update norms, (reader, update, parameter); NaN if a reader does not adapt."""
    scale = np.geomspace(2.0, 0.02, parameters)
    adapted = np.array([np.nan if kind in synthetic.STILL else 1.0 for kind in kinds])[:, None, None]
    wobble = rng.lognormal(0, 0.05, (len(kinds), len(position), parameters))
    drift = adapted * np.sqrt(position / 100)[:, None] * scale * wobble
    norm = adapted * scale / np.sqrt(1 + position / 100)[:, None] * wobble
    return drift, norm
