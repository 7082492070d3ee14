"""Read documents with several readers in turn, write their scores to a trace, and report progress."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from fwl_lab.inference.cost import cost_of_reading
from fwl_lab.inference.plan import Plan
from fwl_lab.inference.recorder import size_text
from fwl_lab.inference.recording import Recording
from fwl_lab.models.encoding import Encoding
from fwl_lab.readers.base import Reader
from fwl_lab.trace import schema
from fwl_lab.trace.writer import TraceWriter

TOKENS_PER_CALL = 1024  # tokens in a call of `Reader.read`, after which progress is reported; no score depends on it

#: A progress callback takes a reader's name, the tokens that it has read, and the tokens that it will read in all; it
#: returns False to stop the reading.
Progress = Callable[[str, int, int], bool | None]


class ReadingStopped(Exception):
    """Raised to stop a reading when the progress callback returns False."""


def read_all(
    readers: Mapping[str, Reader],
    encodings: Sequence[Encoding],
    plan: Plan | None,
    writer: TraceWriter,
    *,
    carry: bool,
    progress: bool | Progress,
) -> None:
    """Read all documents with all readers, in blocks of 1,024 tokens, and write scores, times and costs to a trace.

    The seconds exclude recording. FLOPs and peak bytes are measured afterwards, by a reset fork of each reader on the
    beginning of the longest document.

    Parameters
    ----------
    readers : mapping from name to Reader
        In the order of the trace's rows.
    encodings : sequence of Encoding
        Tokens of each document.
    plan : Plan or None
        What to record beside the scores; None: nothing.
    writer : TraceWriter
        Receives the arrays. A block of tokens is committed when every reader has read it.
    carry : bool
        Whether fast weights are carried from one document to the next.
    progress : bool or callable
        Whether to show a progress bar, or the callback to report to.

    Raises
    ------
    ReadingStopped
        `progress` returned False. What was committed until then is complete.
    Exception
        Whatever a reader raises, with a note that names the reader, the document and the tokens.
    """
    starts = np.cumsum([0, *(len(encoding.ids) for encoding in encodings)])
    recordings = {} if plan is None else {name: Recording(plan, name, writer) for name in readers}
    seconds = np.zeros(len(readers))
    with report_progress(progress, len(readers), int(starts[-1]), plan) as tell:
        tell(next(iter(readers)), 0)
        for document, (encoding, start) in enumerate(zip(encodings, starts.tolist(), strict=False)):
            with ExitStack() as observed:
                for name, reader in readers.items():
                    reader.reset(carry=carry)
                    if recordings:
                        observed.enter_context(recordings[name].document(reader, start))
                # Readers take turns block by block, so that a slow phase of the machine slows all of them alike, and a
                # reading that is stopped leaves equally many tokens of each.
                for offset in range(0, len(encoding.ids), TOKENS_PER_CALL):
                    ids = encoding.ids[offset : offset + TOKENS_PER_CALL]
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
                        if recordings:  # the time that recording took during the call
                            seconds[row] -= recordings[name].seconds - before
                        writer.put(schema.NLL, nll, row, slice(done - len(ids), done))
                        if recordings:
                            recordings[name].flush(done)
                        if row < len(readers) - 1:
                            tell(name, done)
                    writer.put(schema.SECONDS, np.maximum(seconds, 0.0), slice(None))
                    writer.commit(done, 0 if plan is None else int(np.searchsorted(plan.update_token, done)))
                    tell(name, done)  # of the block's last reader, after the commit
        longest = max(encodings, key=lambda encoding: len(encoding.ids))
        for row, (name, reader) in enumerate(readers.items()):
            tell(name, int(starts[-1]))
            flops, peak = cost_of_reading(reader, longest.ids)
            writer.put(schema.FLOPS_PER_TOKEN, np.array(flops), row)
            writer.put(schema.PEAK_BYTES, np.array(np.nan if peak is None else peak), row)


@contextmanager
def report_progress(
    progress: bool | Progress, readers: int, tokens: int, plan: Plan | None
) -> Iterator[Callable[[str, int], None]]:
    """Yield a function that reports a reader's name and the tokens it has read, to a progress bar or to a callback.

    Parameters
    ----------
    progress : bool or callable
        Whether to show a progress bar, or the callback.
    readers, tokens : int
        Number of readers, and of tokens that each of them reads.
    plan : Plan or None
        Its size in bytes is shown above the bar.

    Raises
    ------
    ReadingStopped
        By the function yielded, where the callback returns False.
    """
    if callable(progress):

        def tell(name: str, done: int) -> None:
            if progress(name, done, tokens) is False:
                raise ReadingStopped(name)

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
    """Continue a reading in calls of at most 1,024 tokens, so that the memory of a call does not grow with T.

    Parameters
    ----------
    reader : Reader
        Continues from its current state, with a batch of one document.
    ids : (T,) long
        The next tokens of its document.
    out : (T or more,) float
        Receives their NLL, nats, in its first T entries.
    advance : callable, optional
        Called after each call of the reader, with the number of tokens it read.

    Returns
    -------
    seconds : float
        Wall-clock time of the reading.
    """
    began = time.perf_counter()
    for offset in range(0, len(ids), TOKENS_PER_CALL):
        nll = reader.read(ids[None, offset : offset + TOKENS_PER_CALL].to(reader.model.device)).nll[0]
        out[offset : offset + len(nll)] = nll.double().cpu().numpy()
        advance(len(nll))
    return time.perf_counter() - began
