"""Score documents with several readers: the entry point that turns readers and documents into a trace."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fwl_lab.corpora.documents import Document
from fwl_lab.inference.plan import Plan
from fwl_lab.inference.read_loop import Progress, ReadingStopped, read_all
from fwl_lab.inference.recorder import Recorder
from fwl_lab.inference.skeleton import another_model, attributes, make_skeleton, score_arrays, vocabulary_texts
from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.readers.base import Reader
from fwl_lab.trace import schema
from fwl_lab.trace.writer import TraceWriter


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
    """Score every token of some documents with each of some readers, and return a trace.

    Parameters
    ----------
    model : LanguageModel
        Its tokenizer encodes the documents.
    documents : sequence of Document
    readers : mapping from name to Reader
        All start afresh. A reader named "base" is the baseline that gains are measured against.
    record : Recorder, optional
        What to keep beside the scores; None: nothing.
    path : path, optional
        Folder to write the trace to while documents are read; the trace is returned opened lazily. If the reading is
        interrupted, `open_trace` finds the complete part there. A trace that exists there already is replaced only
        when this one is complete.
    carry : bool
        Whether fast weights are carried from one document to the next. The context never is.
    progress : bool or callable
        True: show tokens per second and the time left. A callable is called as ``progress(name, done, total)`` at the
        beginning and after every 1,024 tokens of a reader, with the numbers of tokens that the reader has read and
        will read, over all documents. Where it returns False the reading stops, and the trace holds the blocks that
        all readers have read, as if the documents ended there.
    max_tokens : int, optional
        Read only this many tokens of each document.

    Returns
    -------
    xarray.Dataset
        A valid trace; see `fwl_lab.trace`. `seconds` is time spent reading, without the time spent recording.

    Raises
    ------
    ValueError
        An argument is not what was expected, or the reading was stopped before its first block was complete.
    Exception
        Whatever a reader raises, with a note that names the reader, the document and the tokens.
    """
    _check(model, documents, readers, record, max_tokens)
    if not isinstance(carry, bool):
        raise ValueError(f"carry is {carry!r}; expected True or False.")
    encodings = [model.encode_text(document.text, document.name).head(max_tokens) for document in documents]
    starts = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)])
    for reader in readers.values():
        reader.reset()
    plan = None if record is None else Plan.of(record, readers, np.diff(starts).tolist(), carry=carry)
    vocabulary = vocabulary_texts(model) if record is not None and record.top else None
    skeleton = make_skeleton(documents, encodings, readers, plan, vocabulary)
    skeleton.attrs |= attributes(model, documents, readers, carry, max_tokens)
    arrays = score_arrays(len(readers), int(starts[-1])) | ({} if plan is None else plan.arrays())
    with TraceWriter(skeleton, arrays, path) as writer, suppress(ReadingStopped):
        read_all(readers, encodings, plan, writer, carry=carry, progress=progress)
    return schema.validate(writer.trace())


def _check(model: Any, documents: Any, readers: Any, record: Any, max_tokens: Any) -> None:
    """Raise ValueError where an argument of `score` is wrong; the message says what to pass instead."""
    require_model(model)
    if not isinstance(readers, Mapping):
        raise ValueError(f"readers is a {type(readers).__name__}; expected a mapping from name to Reader.")
    if not readers:
        raise ValueError("readers is empty; expected at least one, for example {'base': StaticReader(model.base)}.")
    for name, reader in readers.items():
        if isinstance(reader, type) or not callable(getattr(reader, "read", None)):
            raise ValueError(f"readers[{name!r}] is {reader!r:.80}; expected a reader, such as StaticReader(model).")
        if record is not None and not isinstance(reader, Reader):
            raise ValueError(
                f"readers[{name!r}] is a {type(reader).__name__}, which can be scored and not recorded; expected a "
                "subclass of fwl_lab.Reader, or record=None."
            )
        twice = next((other for other, one in readers.items() if one is reader and other != name), None)
        if twice is not None:
            raise ValueError(
                f"readers[{name!r}] and readers[{twice!r}] are one object, which can stand at one place of a document "
                "only; expected a reader for each name, such as reader.with_step_scale(reader.step_scale)."
            )
        theirs = another_model(reader, model)
        if (
            theirs is not None
            and theirs.tokenizer is not model.tokenizer
            and vocabulary_texts(theirs) != vocabulary_texts(model)
        ):
            raise ValueError(
                f"readers[{name!r}] reads with the tokenizer of {theirs.name}, but {model.name} cuts the documents; "
                "score each model's readers with that model, and compare the traces."
            )
    if isinstance(documents, Document):  # a NamedTuple, hence itself a sequence
        raise ValueError("documents is one Document; expected a list, such as [document].")
    if isinstance(documents, str) or not all(isinstance(document, Document) for document in documents):
        raise ValueError("documents holds something else than Document; expected Document(name, text) for each text.")
    if not documents:
        raise ValueError("documents is empty; expected at least one Document.")
    names = [document.name for document in documents]
    if len(set(names)) < len(names):
        again = next(name for index, name in enumerate(names) if name in names[:index])
        raise ValueError(f"two documents are named {again!r}; expected names that tell the documents of a trace apart.")
    if record is not None and not isinstance(record, Recorder):
        raise ValueError(f"record is {record!r:.80}; expected a Recorder, such as Recorder(factors=True), or None.")
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise ValueError(f"max_tokens is {max_tokens!r}; expected at least 1 (a whole number), or None for all.")
