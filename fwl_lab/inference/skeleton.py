"""Make the parts of a trace that are known before anything is read: coordinates, attributes, sizes of arrays."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from fwl_lab.corpora.documents import Document, corpus_hash
from fwl_lab.inference.plan import Plan
from fwl_lab.models.encoding import Encoding
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers.base import Reader
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import Array, text_array
from fwl_lab.trace.configurations import encode_configurations
from fwl_lab.trace.provenance import provenance


def another_model(reader: Any, model: LanguageModel) -> LanguageModel | None:
    """Return the model that a reader reads with, or None where that is `model` or its base."""
    theirs = getattr(reader, "model", None)
    return theirs if isinstance(theirs, LanguageModel) and theirs is not model and theirs is not model.base else None


def score_arrays(readers: int, tokens: int) -> dict[str, Array]:
    """Return the arrays that are written of every reading, with or without a recorder: scores and costs."""
    each = {schema.READER: readers}
    costs = (schema.SECONDS, schema.PEAK_BYTES, schema.FLOPS_PER_TOKEN)
    return {schema.NLL: Array(each | {schema.TOKEN: tokens}, "float64")} | {n: Array(each, "float64") for n in costs}


def vocabulary_texts(model: LanguageModel) -> list[str]:
    """Return the text of each of the V token ids, so that alternatives can be shown without a tokenizer.

    Bytes that are not UTF-8 become U+FFFD, as in `model.decode`; ids that the tokenizer does not know become "".
    """
    # Decode each token behind a letter: some tokenizers drop a space at the beginning of a text.
    letter = model.encode("a")[-1:]
    before = model.decode(letter)
    pairs = (model.decode(torch.cat([letter, torch.tensor([token])])) for token in range(model.vocab_size))
    return [text.removeprefix(before) for text in pairs]


def make_skeleton(
    documents: Sequence[Document],
    encodings: Sequence[Encoding],
    readers: Mapping[str, Reader],
    plan: Plan | None,
    vocabulary: Sequence[str] | None = None,
) -> xr.Dataset:
    """Return a dataset with the coordinates of a trace, and no variables.

    Parameters
    ----------
    documents : sequence of Document
    encodings : sequence of Encoding
        Tokens of each document.
    readers : mapping from name to Reader
        In the order of the trace's rows.
    plan : Plan or None
        Gives the grid of updates and the parameters, where any adapt.
    vocabulary : sequence of V str, optional
        Text of each token id; needed where alternatives are recorded.
    """
    lengths = [len(encoding.ids) for encoding in encodings]
    coords = {
        schema.READER: (schema.READER, text_array(readers)),
        schema.DOCUMENT: (schema.TOKEN, np.repeat(np.arange(len(documents)), lengths)),
        schema.POSITION: (schema.TOKEN, np.concatenate([np.arange(n) for n in lengths])),
        schema.TOKEN_ID: (schema.TOKEN, torch.cat([e.ids for e in encodings]).numpy()),
        schema.TOKEN_TEXT: (schema.TOKEN, text_array(text for e in encodings for text in e.texts)),
        schema.BYTE_COUNT: (schema.TOKEN, np.concatenate([np.array(e.bytes, dtype=np.int64) for e in encodings])),
        schema.DOCUMENT_NAME: (schema.DOCUMENT, text_array(document.name for document in documents)),
        schema.DOCUMENT_BYTES: (schema.DOCUMENT, [sum(e.bytes) for e in encodings]),
    }
    if vocabulary is not None:
        coords[schema.VOCABULARY_TEXT] = (schema.VOCABULARY, text_array(vocabulary))
    if plan is None or not plan.parameters:
        return schema.with_units(xr.Dataset(coords=coords))
    coords[schema.UPDATE_TOKEN] = (schema.UPDATE, plan.update_token)
    coords[schema.PARAMETER] = (schema.PARAMETER, text_array(plan.parameters))
    factored = {} if plan.factored is None else {schema.FACTORED: plan.factored}
    return schema.with_units(xr.Dataset(coords=coords, attrs=factored))


def attributes(
    model: LanguageModel,
    documents: Sequence[Document],
    readers: Mapping[str, Reader],
    carry: bool,
    max_tokens: int | None,
) -> dict[str, str | int]:
    """Return a trace's attributes: model, corpus, readers' configurations, settings and provenance.

    Parameters
    ----------
    model : LanguageModel
        Its tokenizer encoded the documents.
    documents : sequence of Document
        Their whole texts, for the hash of the corpus.
    readers : mapping from name to Reader
    carry : bool
        Whether fast weights are carried from one document to the next.
    max_tokens : int or None
        Limit of tokens read of each document; None is stored as 0.
    """
    others = {name: another_model(reader, model) for name, reader in readers.items()}
    hashes = {name: other.weight_hash() for name, other in others.items() if other is not None}
    own = (model.weight_hash(), model.base.weight_hash()) if hashes else ()
    hashes = {name: found for name, found in hashes.items() if found not in own}
    return {
        **({schema.READER_HASHES: json.dumps(hashes)} if hashes else {}),
        schema.READERS: encode_configurations({name: reader.configuration() for name, reader in readers.items()}),
        schema.MODEL_NAME: model.name,
        schema.MODEL_HASH: model.weight_hash(),
        schema.CORPUS_HASH: corpus_hash(documents),
        schema.CARRY: str(carry).lower(),
        schema.MAX_TOKENS: max_tokens or 0,
        schema.SEED: torch.initial_seed(),
        schema.DEVICE: str(model.device),
        schema.DTYPE: str(model.dtype).removeprefix("torch."),
        schema.THREADS: torch.get_num_threads(),
        **provenance(),
    }
