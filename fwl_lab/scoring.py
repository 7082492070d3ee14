"""The only loop that reads documents: readers in, trace out."""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from . import trace as schema
from .corpus import Document, corpus_hash
from .costs import cost_of_reading
from .language_model import Encoding, LanguageModel, require_model
from .provenance import provenance
from .readers import DynamicEvaluationReader, FastWeightReader, NeuralCacheReader, Reader, StaticReader
from .recording import Plan, Recorder, size_text
from .watching import Recording
from .writing import Array, TraceWriter

CALL = 1024  # tokens between two looks at the progress; no score depends on it

#: Told a reader's name, how many tokens it has read and how many it is to read; returns False to stop the reading.
Progress = Callable[[str, int, int], bool | None]

READERS: dict[str, Callable[[LanguageModel], Reader]] = {
    schema.BASE: lambda model: StaticReader(model.base),
    "static": StaticReader,
    "dynamic_evaluation": lambda model: DynamicEvaluationReader(model.base),
    "fwl": FastWeightReader,
    "neural_cache": lambda model: NeuralCacheReader(model.base),
}
USUAL = (schema.BASE, "static", "dynamic_evaluation", "fwl")


class Stopped(Exception):
    """Who follows the progress wants no more."""


def make_readers(model: LanguageModel, names: Sequence[str] = USUAL) -> dict[str, Reader]:
    """Readers of a model, by name; the usual four where none are named.

    base: the LM without its block. static: the block at θ₀. dynamic_evaluation: all weights of the base, with the
    rule and step tuned for it. fwl: the block's fast weights. neural_cache: the base with a cache, which copies.
    """
    require_model(model)
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
    progress: bool | Progress = True,
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
        Where to write the trace while documents are read; it is returned opened lazily. If the reading is cut short,
        `open_trace` finds there what was complete. A trace that is there already stays until this one is complete.
    carry : bool
        Whether fast weights survive a document's end. The context never does.
    progress : bool or callable
        True: show tokens per second and the time left. A callable is told at the beginning and after every 1,024
        tokens of a reader ``progress(name, done, total)``: the tokens that it has read, and is to read, of all
        documents. Where it returns False the reading stops, and the trace holds the blocks that all readers have
        read, as if there were no more.
    max_tokens : int, optional
        Read no more of each document.

    Returns
    -------
    xarray.Dataset, a valid trace; see `fwl_lab.trace`. `seconds` is time spent reading, recording not counted.

    Raises
    ------
    ValueError
        An argument is not what was expected, or the reading was stopped before its first block was complete.
    Exception
        What a reader raised, with a note that tells which reader, document and tokens.
    """
    _check(model, documents, readers, record, max_tokens)
    encodings = [model.encode_text(document.text, document.name).head(max_tokens) for document in documents]
    starts = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)])
    for reader in readers.values():
        reader.reset()
    plan = None if record is None else Plan.of(record, readers, np.diff(starts).tolist(), carry=carry)
    vocabulary = vocabulary_texts(model) if record is not None and record.top else None
    skeleton = make_skeleton(documents, encodings, readers, plan, vocabulary)
    skeleton.attrs |= attributes(model, documents, readers, carry, max_tokens)
    arrays = score_arrays(len(readers), int(starts[-1])) | ({} if plan is None else plan.arrays())
    with TraceWriter(skeleton, arrays, path) as writer, suppress(Stopped):
        read_all(readers, encodings, plan, writer, carry=carry, progress=progress)
    return schema.validate(writer.trace())


def _check(model: Any, documents: Any, readers: Any, record: Any, max_tokens: Any) -> None:
    """ValueError: an argument of `score` is not what it should be; says what to give instead."""
    require_model(model)
    if not isinstance(readers, Mapping):
        raise ValueError(f"readers is a {type(readers).__name__}; expected a mapping from name to Reader.")
    if not readers:
        raise ValueError("readers is empty; expected at least one, for example {'base': StaticReader(model.base)}.")
    for name, reader in readers.items():
        if isinstance(reader, type) or not callable(getattr(reader, "read", None)):
            raise ValueError(f"readers[{name!r}] is {reader!r:.80}; expected a reader, such as StaticReader(model).")
        theirs = _another_model(reader, model)
        if (
            theirs is not None
            and theirs.tokenizer is not model.tokenizer
            and vocabulary_texts(theirs) != vocabulary_texts(model)
        ):
            raise ValueError(
                f"readers[{name!r}] reads with the tokenizer of {theirs.name}, but {model.name} cuts the documents; "
                "score each model's readers with that model, and compare the traces."
            )
    if isinstance(documents, Document):  # a tuple of two texts
        raise ValueError("documents is one Document; expected a list, such as [document].")
    if isinstance(documents, str) or not all(isinstance(document, Document) for document in documents):
        raise ValueError("documents holds something else than Document; expected Document(name, text) for each text.")
    if not documents:
        raise ValueError("documents is empty; expected at least one Document.")
    if record is not None and not isinstance(record, Recorder):
        raise ValueError(f"record is {record!r:.80}; expected a Recorder, such as Recorder(factors=True), or None.")
    if max_tokens is not None and (not isinstance(max_tokens, int) or max_tokens < 1):
        raise ValueError(f"max_tokens is {max_tokens!r}; expected at least 1 (a whole number), or None for all.")


def _another_model(reader: Any, model: LanguageModel) -> LanguageModel | None:
    """The model that a reader reads with, where it is neither `model` nor its base."""
    theirs = getattr(reader, "model", None)
    return theirs if isinstance(theirs, LanguageModel) and theirs is not model and theirs is not model.base else None


def read_all(
    readers: Mapping[str, Reader],
    encodings: Sequence[Encoding],
    plan: Plan | None,
    writer: TraceWriter,
    *,
    carry: bool,
    progress: bool | Progress,
) -> None:
    """Raises Stopped where `progress` says so; what was committed until then is complete."""
    starts = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)])
    recordings = {} if plan is None else {name: Recording(plan, name, writer) for name in readers}
    seconds = np.zeros(len(readers))
    with following(progress, len(readers), int(starts[-1]), plan) as tell:
        tell(next(iter(readers)), 0)
        for document, (encoding, start) in enumerate(zip(encodings, starts.tolist(), strict=False)):
            with ExitStack() as watching:
                for name, reader in readers.items():
                    reader.reset(carry=carry)
                    if recordings:
                        watching.enter_context(recordings[name].document(reader, start))
                # Readers take turns block by block: a machine's slow minutes fall on all of them, and what a reading
                # that is cut short leaves behind is equally much of each.
                for offset in range(0, len(encoding.ids), CALL):
                    ids = encoding.ids[offset : offset + CALL]
                    done = start + offset + len(ids)
                    for row, (name, reader) in enumerate(readers.items()):
                        nll = np.empty(len(ids))
                        before = recordings[name].seconds if recordings else 0.0
                        try:
                            seconds[row] += read_on(reader, ids, nll)
                        except Exception as error:
                            where = f"tokens {offset:,} to {offset + len(ids) - 1:,} of document {document}"
                            error.add_note(f"reader {name!r} failed in {where}, counted from 0")
                            raise
                        if recordings:  # what it took while the reader read
                            seconds[row] -= recordings[name].seconds - before
                        writer.put(schema.NLL, nll, row, slice(done - len(ids), done))
                        if recordings:
                            recordings[name].flush(done)
                        if row < len(readers) - 1:
                            tell(name, done)
                    writer.put(schema.SECONDS, np.maximum(seconds, 0.0), slice(None))
                    writer.commit(done, 0 if plan is None else int(np.searchsorted(plan.update_token, done)))
                    tell(name, done)  # the block of which it is the last reader is complete
        longest = max(encodings, key=lambda encoding: len(encoding.ids))
        for row, (name, reader) in enumerate(readers.items()):
            tell(name, int(starts[-1]))
            flops, peak = cost_of_reading(reader, longest.ids)
            writer.put(schema.FLOPS_PER_TOKEN, np.array(flops), row)
            writer.put(schema.PEAK_BYTES, np.array(np.nan if peak is None else peak), row)


@contextmanager
def following(
    progress: bool | Progress, readers: int, tokens: int, plan: Plan | None
) -> Iterator[Callable[[str, int], None]]:
    """What is told a reader's name and how many of the `tokens` it has read: a bar, or who wants to know."""
    if callable(progress):

        def tell(name: str, done: int) -> None:
            if progress(name, done, tokens) is False:
                raise Stopped(name)

        yield tell
        return
    with tqdm(total=readers * tokens, unit="tok", unit_scale=True, disable=not progress) as bar:
        if plan is not None and progress:
            bar.write(f"recording: {size_text(sum(array.nbytes for array in plan.arrays().values()))}")
        read: dict[str, int] = {}

        def show(name: str, done: int) -> None:
            more, read[name] = done - read.get(name, 0), done
            bar.set_description(name if more or done < tokens else f"{name}: cost", refresh=False)
            bar.update(more)

        yield show


def read_on(reader: Reader, ids: Tensor, out: np.ndarray, advance: Callable[[int], object] = lambda _: None) -> float:
    """Let a reader read on in calls of 1,024 tokens, so that nothing but the scores grows with their number.

    Parameters
    ----------
    ids : (T,) long
        The next tokens of its document.
    out : (T or more,) float
        Takes their NLL, nats, from its beginning.
    advance : callable, optional
        Counts tokens: told how many more were read.

    Returns
    -------
    seconds that it took
    """
    began = time.perf_counter()
    for offset in range(0, len(ids), CALL):
        nll = reader.read(ids[None, offset : offset + CALL].to(reader.model.device)).nll[0]
        out[offset : offset + len(nll)] = nll.double().cpu().numpy()
        advance(len(nll))
    return time.perf_counter() - began


def score_arrays(readers: int, tokens: int) -> dict[str, Array]:
    """What is written of every reading, recorded or not."""
    each = {schema.READER: readers}
    costs = (schema.SECONDS, schema.PEAK_BYTES, schema.FLOPS_PER_TOKEN)
    return {schema.NLL: Array(each | {schema.TOKEN: tokens}, "float64")} | {n: Array(each, "float64") for n in costs}


def vocabulary_texts(model: LanguageModel) -> list[str]:
    """What each of the V token ids reads as, so that alternatives have names without a tokenizer.

    Bytes that are no UTF-8 are U+FFFD, as `model.decode` has them; ids that the tokenizer does not know are "".
    """
    # Behind a letter: some tokenizers drop the space that begins a text.
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
    """All of a trace that is known before anything is read; `vocabulary` is what each token id reads as."""
    lengths = [len(encoding.ids) for encoding in encodings]
    coords = {
        schema.READER: (schema.READER, schema.text_array(readers)),
        schema.DOCUMENT: (schema.TOKEN, np.repeat(np.arange(len(documents)), lengths)),
        schema.POSITION: (schema.TOKEN, np.concatenate([np.arange(n) for n in lengths])),
        schema.TOKEN_ID: (schema.TOKEN, torch.cat([e.ids for e in encodings]).numpy()),
        schema.TOKEN_TEXT: (schema.TOKEN, schema.text_array(text for e in encodings for text in e.texts)),
        schema.BYTE_COUNT: (schema.TOKEN, np.concatenate([np.array(e.bytes, dtype=np.int64) for e in encodings])),
        schema.DOCUMENT_NAME: (schema.DOCUMENT, schema.text_array(document.name for document in documents)),
        schema.DOCUMENT_BYTES: (schema.DOCUMENT, [sum(e.bytes) for e in encodings]),
    }
    if vocabulary is not None:
        coords[schema.VOCABULARY_TEXT] = (schema.VOCABULARY, schema.text_array(vocabulary))
    if plan is None or not plan.parameters:
        return schema.with_units(xr.Dataset(coords=coords))
    coords[schema.UPDATE_TOKEN] = (schema.UPDATE, plan.update_token)
    coords[schema.PARAMETER] = (schema.PARAMETER, schema.text_array(plan.parameters))
    factored = {} if plan.factored is None else {schema.FACTORED: plan.factored}
    return schema.with_units(xr.Dataset(coords=coords, attrs=factored))


def attributes(
    model: LanguageModel,
    documents: Sequence[Document],
    readers: Mapping[str, Reader],
    carry: bool,
    max_tokens: int | None,
) -> dict[str, str | int]:
    """A trace's attributes: whose reading this is, and how it came about."""
    others = {name: _another_model(reader, model) for name, reader in readers.items()}
    hashes = {name: other.weight_hash() for name, other in others.items() if other is not None}
    own = (model.weight_hash(), model.base.weight_hash()) if hashes else ()
    hashes = {name: found for name, found in hashes.items() if found not in own}
    return {
        **({schema.READER_HASHES: json.dumps(hashes)} if hashes else {}),
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
