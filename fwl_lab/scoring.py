"""The only loop that reads documents: readers in, trace out."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from . import trace as schema
from .corpus import Document, corpus_hash
from .language_model import Encoding, LanguageModel
from .provenance import provenance
from .readers import DynamicEvaluationReader, FastWeightReader, NeuralCacheReader, Reader, StaticReader
from .recording import Recorder, Recording, norms_dataset

CALL = 1024  # tokens between two looks at the progress bar; no score depends on it

READERS: dict[str, Callable[[LanguageModel], Reader]] = {
    schema.BASE: lambda model: StaticReader(model.base),
    "static": StaticReader,
    "dynamic_evaluation": lambda model: DynamicEvaluationReader(model.base),
    "fwl": FastWeightReader,
    "neural_cache": lambda model: NeuralCacheReader(model.base),
}
USUAL = (schema.BASE, "static", "dynamic_evaluation", "fwl")


def make_readers(model: LanguageModel, names: Sequence[str] = USUAL) -> dict[str, Reader]:
    """Readers of a model, by name; the usual four where none are named.

    base: the LM without its block. static: the block at θ₀. dynamic_evaluation: all weights of the base, with the
    rule and step tuned for it. fwl: the block's fast weights. neural_cache: the base with a cache, which copies.
    """
    if isinstance(names, str):
        raise ValueError(f"names is {names!r}; expected a list of names, such as [{names!r}].")
    unknown = [name for name in names if name not in READERS]
    if unknown:
        raise ValueError(f"unknown reader {', '.join(map(repr, unknown))}; expected some of {', '.join(READERS)}.")
    return {name: READERS[name](model) for name in names}


def score(
    model: LanguageModel,
    documents: Sequence[Document],
    readers: Mapping[str, Reader],
    record: Recorder | None = None,
    path: str | Path | None = None,
    carry: bool = False,
    progress: bool = True,
    max_tokens: int | None = None,
) -> xr.Dataset:
    """Let each reader read each document, and write down what it said of every token.

    Parameters
    ----------
    model : LanguageModel
        Whose tokenizer cuts the documents.
    documents : sequence of Document
    readers : mapping from name to Reader
        A reader named "base" is what gains are measured against.
    record : Recorder, optional
        What to keep beside the scores.
    path : path, optional
        Where to save the trace; the saved one is returned, opened lazily.
    carry : bool
        Whether fast weights survive a document's end. The context never does.
    progress : bool
        Show tokens per second and the time left.
    max_tokens : int, optional
        Read no more of each document.

    Returns
    -------
    xarray.Dataset, a valid trace; see `fwl_lab.trace`. `seconds` is time spent reading, recording not counted.
    """
    if not isinstance(readers, Mapping):
        raise ValueError(f"readers is a {type(readers).__name__}; expected a mapping from name to Reader.")
    if not readers:
        raise ValueError("readers is empty; expected at least one, for example {'base': StaticReader(model.base)}.")
    if isinstance(documents, str) or not all(isinstance(document, Document) for document in documents):
        raise ValueError("documents holds something else than Document; expected Document(name, text) for each text.")
    if not documents:
        raise ValueError("documents is empty; expected at least one Document.")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; expected at least 1, or None for whole documents.")
    if path is not None and Path(path).expanduser().exists() and not schema.is_trace(Path(path).expanduser()):
        raise ValueError(f"{path} exists and is not a trace; nothing was read. Choose another path")
    encodings = [model.encode_text(document.text, document.name).head(max_tokens) for document in documents]
    lengths = [len(encoding.ids) for encoding in encodings]
    starts = np.cumsum([0, *lengths])
    nll = np.full((len(readers), int(starts[-1])), np.nan)
    recordings = {name: Recording() for name in readers}
    seconds = dict.fromkeys(readers, 0.0)
    for reader in readers.values():
        reader.reset()
    # Readers take turns document by document, so that a machine's slow minutes fall on all of them.
    with tqdm(total=len(readers) * int(starts[-1]), unit="tok", unit_scale=True, disable=not progress) as bar:
        for encoding, start in zip(encodings, starts, strict=False):
            for row, (name, reader) in enumerate(readers.items()):
                bar.set_description(name, refresh=False)
                reader.reset(carry=carry)
                if record is None:
                    seconds[name] += read_on(reader, encoding.ids, nll[row, start:], bar)
                else:
                    with recordings[name].document(reader, int(start)):
                        seconds[name] += read_on(reader, encoding.ids, nll[row, start:], bar)
    dataset = _dataset(documents, encodings, nll, readers)
    dataset[schema.SECONDS] = (schema.READER, [max(seconds[n] - recordings[n].seconds, 0.0) for n in readers])
    if record is not None and any(recording.updates for recording in recordings.values()):
        dataset = dataset.merge(norms_dataset(recordings, list(readers)))
    dataset.attrs |= _attributes(model, documents, readers, carry, max_tokens)
    trace = schema.validate(schema.with_units(dataset))
    return trace if path is None else schema.open_trace(schema.save_trace(trace, path))


def read_on(reader: Reader, ids: Tensor, out: np.ndarray, bar: tqdm) -> float:
    """Let a reader read on in calls of 1,024 tokens, so that nothing but the scores grows with their number.

    Parameters
    ----------
    ids : (T,) long
        The next tokens of its document.
    out : (T or more,) float
        Takes their NLL, nats, from its beginning.
    bar : tqdm
        Counts tokens.

    Returns
    -------
    seconds that it took
    """
    began = time.perf_counter()
    for offset in range(0, len(ids), CALL):
        nll = reader.read(ids[None, offset : offset + CALL].to(reader.model.device)).nll[0]
        out[offset : offset + len(nll)] = nll.double().cpu().numpy()
        bar.update(len(nll))
    return time.perf_counter() - began


def _dataset(
    documents: Sequence[Document], encodings: Sequence[Encoding], nll: np.ndarray, readers: Mapping[str, Reader]
) -> xr.Dataset:
    lengths = [len(encoding.ids) for encoding in encodings]
    return xr.Dataset(
        {schema.NLL: ((schema.READER, schema.TOKEN), nll)},
        {
            schema.READER: (schema.READER, schema.text_array(readers)),
            schema.DOCUMENT: (schema.TOKEN, np.repeat(np.arange(len(documents)), lengths)),
            schema.POSITION: (schema.TOKEN, np.concatenate([np.arange(n) for n in lengths])),
            schema.TOKEN_ID: (schema.TOKEN, torch.cat([e.ids for e in encodings]).numpy()),
            schema.TOKEN_TEXT: (schema.TOKEN, schema.text_array(text for e in encodings for text in e.texts)),
            schema.BYTE_COUNT: (schema.TOKEN, np.concatenate([np.array(e.bytes, dtype=np.int64) for e in encodings])),
            schema.DOCUMENT_NAME: (schema.DOCUMENT, schema.text_array(document.name for document in documents)),
            schema.DOCUMENT_BYTES: (schema.DOCUMENT, [sum(e.bytes) for e in encodings]),
        },
    )


def _attributes(
    model: LanguageModel,
    documents: Sequence[Document],
    readers: Mapping[str, Reader],
    carry: bool,
    max_tokens: int | None,
) -> dict[str, str | int]:
    return {
        schema.READERS: json.dumps({name: reader.configuration() for name, reader in readers.items()}),
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
