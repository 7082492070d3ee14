"""Plan a run: its bytes, its time, its folder, and the command that does the same without a browser."""

import json
import shlex
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from fwl_lab.trace import schema
from fwl_lab.trace.lookup import find_baseline, reader_names
from fwl_lab.trace.store import open_trace
from widgets import theme

#: By the word for what is recorded: its title in the console, and what it is good for.
RECORDS: Final = {
    "nothing": ("scores only", "the NLL of every token: enough for gains and comparisons"),
    "norms": ("norms and alternatives", "also the size of every update, and the ten likeliest tokens in each place"),
    "factors": ("factors of Δθ", "also what makes Δθ at any token: for UpdateScope, receipts and surgery"),
}
#: Keys of a console's settings.
CONSOLE_SETTINGS: Final = ("device", "documents", "folder", "max_tokens", "readers", "record")
#: The notebook that reads one document, from the project's folder.
NOTEBOOK: Final = "notebooks/00_quickstart.ipynb"
#: Tokens that are read to find a reader's speed, and before them, so that one-off costs are not timed.
TIMED_TOKENS: Final = 256
WARM_UP_TOKENS: Final = 64
#: Seconds between two reports of progress to the page.
PACE: Final = 0.1


class Clock:
    """Clock of a reading: the tokens of each reader, and the seconds that it took, recording and writing included.

    Parameters
    ----------
    readers : iterable of str
        Their names; they take turns.
    """

    def __init__(self, readers: Iterable[str]) -> None:
        self.seconds = dict.fromkeys(readers, 0.0)
        self.done = dict.fromkeys(self.seconds, 0)
        self._last = self._shown = 0.0

    def tell(self, name: str, done: int) -> bool:
        """Note the number of tokens that a reader has read, and return whether it is time to show that."""
        now = time.perf_counter()
        if done > self.done[name]:
            self.seconds[name] += now - self._last
            self.done[name] = done
        self._last = now
        if now - self._shown < PACE:
            return False
        self._shown = now
        return True

    def figures(self) -> dict[str, dict[str, Any]]:
        """Return tokens ("done") and seconds of each reader."""
        return {"done": dict(self.done), "seconds": dict(self.seconds)}


def recorder(record: str, byte_budget: str | int) -> Any:
    """Return the `fwl_lab.Recorder` that a word of `RECORDS` stands for; None for "nothing"."""
    from fwl_lab import Recorder

    if record not in RECORDS:
        raise ValueError(f"record is {record!r}; expected one of {', '.join(map(repr, RECORDS))}.")
    return None if record == "nothing" else Recorder(factors=record == "factors", byte_budget=byte_budget)


def check(settings: Mapping[str, Any], documents: int) -> None:
    """Raise ValueError where a setting is missing or impossible with so many documents; the message says what to do."""
    if missing := [name for name in CONSOLE_SETTINGS if name not in settings]:
        raise ValueError(f"settings say nothing of {missing[0]!r}; expected {', '.join(CONSOLE_SETTINGS)}.")
    if outside := [i for i in settings["documents"] if not 0 <= i < documents]:
        raise ValueError(f"document {outside[0]} is chosen; expected 0 to {documents - 1}.")
    if not settings["documents"]:
        raise ValueError("no document is chosen; tick at least one.")
    if not settings["readers"]:
        raise ValueError(f"no reader is chosen; tick at least one, and {schema.BASE!r} to measure gains against.")
    most = settings["max_tokens"]
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise ValueError(f"max tokens is {most!r}; expected a whole number from 1, or nothing for whole documents.")


def bytes_written(record: Any, readers: Mapping[str, Any], lengths: Sequence[int]) -> dict[str, int]:
    """Return the bytes of each array that `fwl_lab.score` would write, before compression.

    Parameters
    ----------
    record : Recorder or None
    readers : mapping from name to Reader
    lengths : sequence of int
        Tokens of each document.

    Raises
    ------
    ValueError
        The recording is over its byte budget.
    """
    from fwl_lab.inference.plan import Plan
    from fwl_lab.inference.skeleton import score_arrays

    arrays = score_arrays(len(readers), sum(lengths))
    if record is not None:
        arrays |= Plan.of(record, readers, lengths, carry=False).arrays()
    return {name: array.nbytes for name, array in arrays.items()}


def tokens_per_second(reader: Any, ids: Any) -> float:
    """Measure the speed of a fresh reader of the same kind over 256 tokens, after 64 that are not timed.

    Parameters
    ----------
    ids : (T,) long tensor
        The beginning of a document; repeated where it is too short.
    """
    ids = ids.repeat(-(-(WARM_UP_TOKENS + TIMED_TOKENS) // len(ids)))[None, : WARM_UP_TOKENS + TIMED_TOKENS]
    twin = reader.fork()
    twin.reset()
    float(twin.read(ids[:, :WARM_UP_TOKENS]).nll.sum())
    began = time.perf_counter()
    float(twin.read(ids[:, WARM_UP_TOKENS:]).nll.sum())  # float() waits for the device
    return TIMED_TOKENS / (time.perf_counter() - began)


def tokens_to_read(lengths: Sequence[int], window: int) -> int:
    """Return the tokens that each reader reads: the documents, and a piece of the longest again to count operations."""
    return sum(lengths) + min(max(lengths), window + max(256, window // 2))


def model_source(model: Any) -> str | None:
    """Return what `fwl_lab.load_model` takes to load this very model again; None where nothing does."""
    from fwl_lab import load_model
    from fwl_lab.models.loading import BUNDLED

    source = str(model.network.config.name_or_path)
    if not source:
        return None
    local = Path(source).is_dir()
    source = "bundled" if local and Path(source).resolve() == BUNDLED.resolve() else source
    try:
        again = load_model(source, device="cpu", dtype=model.dtype)
    except (OSError, ValueError):
        return None
    if again.weight_hash() != model.weight_hash():
        return None
    return str(Path(source).resolve()) if local and source != "bundled" else source


def command(
    model: str | None,
    documents: Sequence[Any],
    settings: Mapping[str, Any],
    *,
    corpus: Path | None,
    own: Container[str],
    adapting: Container[str],
) -> str:
    """Return a line for a shell, in the project's folder, for each document: the same reading, as a report.

    Parameters
    ----------
    model : str or None
        From `model_source`.
    documents : sequence of Document
    settings : mapping
        Of a `RunConsole`.
    corpus : Path, optional
        A file or folder of texts that the documents are from; None: they must be of the standard library's test split.
    own : container of str
        Names of readers that were handed in as objects.
    adapting : container of str
        Names of readers that adapt.

    Raises
    ------
    ValueError
        No notebook can do this; the message says why, and what would help.
    """
    from fwl_lab import stdlib_corpus, text_corpus

    readers = list(settings["readers"])
    if handed := [name for name in readers if name in own]:
        raise ValueError(f"a shell cannot make the reader {handed[0]!r}, which was handed in as an object; untick it.")
    if schema.BASE not in readers or not any(name in adapting for name in readers):
        raise ValueError(f"{Path(NOTEBOOK).name} compares {schema.BASE!r} with a reader that adapts; tick both.")
    if model is None:
        raise ValueError("this model is in no folder as it is here; model.save(folder), load it from there.")
    known = stdlib_corpus("test") if corpus is None else text_corpus(corpus)
    if lost := [document.name for document in documents if document not in known]:
        where = "the test split of Python's own library" if corpus is None else str(corpus)
        raise ValueError(
            f"the document {lost[0]!r} is not in {where}, so a shell does not find it; "
            "RunConsole(..., corpus=folder) says where the texts are."
        )
    lines = []
    for number, document in enumerate(documents):
        folder = Path(settings["folder"]).expanduser().absolute() / "report"
        folder = folder if len(documents) == 1 else folder / f"{number + 1:03d}"
        parameters = {
            "model": model, "document": document.name, "readers": json.dumps(readers),
            "device": settings["device"], "max_tokens": str(settings["max_tokens"]),
        }  # fmt: skip
        if corpus is not None:
            parameters |= {"corpus": "text", "path": str(Path(corpus).expanduser().absolute())}
        words = ["python", "-m", "widgets.report", NOTEBOOK, str(folder)]
        for name, value in parameters.items():
            words += ["-p", name, value]
        lines.append(shlex.join(words))
    return " && \\\n".join(lines)


def free_path(folder: str) -> Path:
    """Return the path of the next trace in a folder: ``trace.zarr``, ``trace-2.zarr``, …; nothing is overwritten.

    Raises
    ------
    ValueError
        No folder is given, or a file stands in its place.
    """
    if not folder.strip():
        raise ValueError("no output folder; give one: what is read is written there as it goes, so that none is lost.")
    place = Path(folder.strip()).expanduser().absolute()
    if not place.is_dir() and (taken := next((p for p in (place, *place.parents) if p.exists()), place)).is_file():
        raise ValueError(f"{taken} is a file; expected a folder, or a name that is free.")
    names = ("trace.zarr" if n == 1 else f"trace-{n}.zarr" for n in range(1, 100_000))
    return next(place / name for name in names if not (place / name).exists())


def complete_part(path: Path | None) -> xr.Dataset | None:
    """Open the part of a trace that was complete when a reading ended early; None where there is none."""
    try:
        return None if path is None else open_trace(path)
    except (FileNotFoundError, ValueError):
        return None


def summary(trace: xr.Dataset) -> list[dict[str, Any]]:
    """Return of each reader mean NLL and gain over the baseline [nat / token], and tokens per second of reading."""
    nll = trace[schema.NLL].transpose(schema.READER, schema.TOKEN).values.mean(1)
    names, baseline = reader_names(trace), find_baseline(trace)
    seconds = np.maximum(trace[schema.SECONDS].values, 1e-9)
    base = None if baseline is None else nll[names.index(baseline)]
    return [
        {"reader": name, "label": theme.label(name), "nll": float(nll[i]),
         "gain": None if base is None else float(base - nll[i]), "speed": trace.sizes[schema.TOKEN] / float(seconds[i])}
        for i, name in enumerate(names)
    ]  # fmt: skip
