"""Synthetic traces for views and tests: valid, seeded, plausible, and made without a model."""

import json
from collections.abc import Sequence

import numpy as np
import xarray as xr

from fwl_lab import synthetic
from fwl_lab import trace as schema
from fwl_lab.analysis import earlier_occurrences

# A few of these are traps for anything that shows text: markup, entities, quotes, bidirectional controls, NUL.
_PIECES = (
    *("def", " return", "import", "class", " self", " for", " in", " if", " else", " while", " not", " None", " raise"),
    *(" state", " weights", " tokens", " reader", " update", " gradient", " memory", " window", " score", " value"),
    *("\n", "\n    ", "\n\n", " ", "    ", "\t", "(", ")", ":", ",", ".", " = ", "[0]", "'", '"', "_", "#"),
    *("<script>", "</script>", "alert(1)", "</style>", "&amp;", "<!--", "-->", "]]>", "${x}", "\\u0000", "{{ x }}"),
    *("é", "ß", "日本", "語", "Ελλάδα", "שלום", "مرحبا", "🙂", "👩‍🚀", "\u202e", "\u2067", "\x00", "\ufffd"),
)
_PARAMETERS = ("W1", "b1", "W2", "b2", "g", "b")
_STEP = 64
_STILL = (schema.BASE, "static")  # readers that do not adapt


def make_trace(
    seed: int = 0,
    *,
    tokens: int = 2000,
    documents: int = 3,
    readers: Sequence[str] = ("base", "static", "dynamic_evaluation", "fwl"),
    vocab: int = 400,
    parameters: Sequence[str] = _PARAMETERS,
    recorded: bool = True,
) -> xr.Dataset:
    """A valid trace of invented readers over invented documents; the same arguments give the same trace.

    Tokens repeat within a document more than across documents, and repeats are easier. Readers named "base" and
    "static" stay as they are; any other reader improves along a document, most on tokens it has met there.

    Parameters
    ----------
    tokens
        Over all documents, which get unlike lengths; at least one each.
    parameters
        Names of the fast parameters whose ``drift`` and ``update_norm`` are recorded; empty records none.
    recorded
        Also holds what a recorder keeps: the likeliest alternatives in each place.

    Raises
    ------
    ValueError
        There are fewer tokens than documents, or no document, reader or vocabulary.
    """
    if documents < 1 or tokens < documents or not readers or vocab < 1:
        raise ValueError(
            f"cannot spread {tokens} tokens over {documents} documents for readers {list(readers)} and a vocabulary "
            f"of {vocab}; each document needs a token, and there must be a reader and a vocabulary"
        )
    rng = np.random.default_rng(seed)
    lengths = _lengths(rng, tokens, documents)
    document = np.repeat(np.arange(documents), lengths)
    position = np.concatenate([np.arange(length) for length in lengths])
    token_id = np.concatenate([_zipf_with_repeats(rng, length, vocab) for length in lengths])
    # Each token text starts with a piece; a number tells apart ids that share one.
    pieces = [_PIECES[i % len(_PIECES)] + (str(i // len(_PIECES)) if i >= len(_PIECES) else "") for i in range(vocab)]
    texts = [pieces[i] for i in token_id]
    nll = _nll(rng, token_id, position, earlier_occurrences(document, token_id), readers)

    data = {
        schema.NLL: ((schema.READER, schema.TOKEN), nll),
        schema.SECONDS: (schema.READER, tokens / 2000 * np.array([1.0 + 0.8 * i for i in range(len(readers))])),
        schema.PEAK_BYTES: (schema.READER, 200_000_000 + 10_000_000 * np.arange(len(readers))),
    }
    coords = {
        schema.READER: schema.text_array(readers),
        schema.DOCUMENT: (schema.TOKEN, document),
        schema.POSITION: (schema.TOKEN, position),
        schema.TOKEN_ID: (schema.TOKEN, token_id),
        schema.TOKEN_TEXT: (schema.TOKEN, schema.text_array(texts)),
        schema.BYTE_COUNT: (schema.TOKEN, np.array([len(text.encode()) for text in texts])),
        schema.DOCUMENT_NAME: (schema.DOCUMENT, schema.text_array(f"package/module_{i}.py" for i in range(documents))),
    }
    if len(parameters):
        update = np.flatnonzero(position % _STEP == _STEP - 1)
        drift, norm = _norms(rng, position[update], readers, len(parameters))
        dims = (schema.READER, schema.UPDATE, schema.PARAMETER)
        data |= {schema.DRIFT: (dims, drift), schema.UPDATE_NORM: (dims, norm)}
        coords |= {schema.UPDATE_TOKEN: (schema.UPDATE, update), schema.PARAMETER: schema.text_array(parameters)}
    if recorded:
        adapts = np.array([name not in _STILL for name in readers])
        data |= synthetic.alternatives(rng, nll, token_id, vocab, adapts)
        coords[schema.VOCABULARY_TEXT] = (schema.VOCABULARY, schema.text_array(pieces))
    attrs = {
        schema.READERS: json.dumps({name: {"kind": "synthetic"} for name in readers}),
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
    return schema.validate(schema.with_units(xr.Dataset(data, coords, attrs)))


def _lengths(rng: np.random.Generator, tokens: int, documents: int) -> np.ndarray:
    """Unlike lengths of at least one token that add up."""
    cuts = np.sort(rng.choice(np.arange(1, tokens), documents - 1, replace=False))
    return np.diff(cuts, prepend=0, append=tokens)


def _zipf_with_repeats(rng: np.random.Generator, length: int, vocab: int) -> np.ndarray:
    """Token ids by Zipf's law; half of them drawn from the document's own small vocabulary."""
    p = 1 / np.arange(1, vocab + 1)
    common = rng.choice(vocab, length, p=p / p.sum())
    own = rng.choice(rng.choice(vocab, min(vocab, 40), replace=False), length)
    return np.where(rng.random(length) < 0.5, own, common)


def _nll(
    rng: np.random.Generator, token_id: np.ndarray, position: np.ndarray, seen: np.ndarray, readers: Sequence[str]
) -> np.ndarray:
    """(reader, token) nats: rare tokens hard, repeats easier, adapting readers better the more they have read."""
    surprise = rng.gamma(2.0, 0.5 + np.log1p(token_id) / 3)
    base = surprise / (1 + 0.15 * np.minimum(seen, 4))
    learned = (1 - np.exp(-position / 400)) * (0.1 + 0.4 * seen / (seen + 2))
    rows, skill = [], 0.0
    for name in readers:
        if name in _STILL:
            rows.append(base if name == schema.BASE else base + rng.normal(0.05, 0.05, len(base)))
            continue
        skill += 0.6
        rows.append(base * (1 - np.minimum(learned * skill, 0.9)) + rng.normal(0, 0.15, len(base)))
    return np.maximum(np.stack(rows), 1e-4)


def _norms(
    rng: np.random.Generator, position: np.ndarray, readers: Sequence[str], parameters: int
) -> tuple[np.ndarray, np.ndarray]:
    """(reader, update, parameter) drift growing as a square root of tokens read, and step norms; NaN: not adapted."""
    scale = np.geomspace(2.0, 0.02, parameters)
    adapted = np.array([np.nan if name in _STILL else 1.0 for name in readers])[:, None, None]
    wobble = rng.lognormal(0, 0.05, (len(readers), len(position), parameters))
    drift = adapted * np.sqrt(position / 100)[:, None] * scale * wobble
    norm = adapted * scale / np.sqrt(1 + position / 100)[:, None] * wobble
    return drift, norm
