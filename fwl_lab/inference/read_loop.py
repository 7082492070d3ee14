"""The loop that reads documents, block by block, and writes what readers say."""

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
from fwl_lab.models.language_model import Encoding
from fwl_lab.readers import Reader
from fwl_lab.trace import schema as schema
from fwl_lab.trace.writer import TraceWriter

CALL = 1024  # tokens between two looks at the progress; no score depends on it

#: Told a reader's name, how many tokens it has read and how many it is to read; returns False to stop the reading.
Progress = Callable[[str, int, int], bool | None]


class Stopped(Exception):
    """Who follows the progress wants no more."""


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
