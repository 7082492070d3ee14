"""LivePad: type, and see each reader's scores of the text, its gain so far, and the tokens it expects next."""

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import traitlets
import xarray as xr

from fwl_lab.trace import schema
from fwl_lab.trace.lookup import find_baseline, reader_facts
from widgets.core import lifetime
from widgets.core.assets import source, style
from widgets.core.view import View
from widgets.core.wire import Answer
from widgets.core.worker import Stopped, Worker
from widgets.display.document import document_html, visible
from widgets.views.live_pad.readers import PadReaders

#: Tokens that are read of a text; the rest stays on the page unread.
LIMIT: Final = 4096
#: Choices of the sliders. None: all of the document, as published.
INNER_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, None)
SEGMENTS: Final = (8, 16, 32, 64, 128, 256)
LARGEST_STEP: Final = 4.0
#: Likeliest next tokens that are shown.
NEXT_TOKENS: Final = 10
#: Seconds between two reports of progress to the page.
_PACE: Final = 0.1
#: Stands for "all of the document" where inner batches are sorted by size.
_ENDLESS: Final = 10**9


class LivePad(View):
    """Text that is read again whenever it, or a setting of its readers, is changed.

    Parameters
    ----------
    model : LanguageModel
    text : str
        To begin with.
    readers : mapping from name to Reader, optional
        Beside those that `fwl_lab.make_readers` makes; a name of theirs replaces it.

    Attributes
    ----------
    text : str
    settings : dict
        ``readers`` (names), ``step_scale`` (every update is multiplied by it), ``inner_batch`` (M of the fast-weight
        block), ``segment`` (tokens between two updates of dynamic evaluation). Those that a reader does not have leave
        it as it is.
    reading : dict
        The result so far: ``phase``, ``texts`` of the tokens, ``readers`` (of each its scores, and the tokens it
        expects next) and ``baseline`` (the reader that gains are measured against, once it has read).
    trace : Dataset or None
        The last text that was read to the end, scored by the readers chosen.
    """

    _esm = source("live_pad")
    _css = style("live_pad")

    text = traitlets.Unicode().tag(sync=True)
    settings = traitlets.Dict().tag(sync=True)
    reading = traitlets.Dict({"phase": "empty"}).tag(sync=True)
    progress = traitlets.Float(0.0).tag(sync=True)
    given = traitlets.Int(0).tag(sync=True)  # how often text or settings were set here: the page takes those over

    def __init__(self, model: Any, *, text: str = "", readers: Mapping[str, Any] | None = None) -> None:
        from fwl_lab.models.language_model import require_model

        require_model(model)
        self.model = model
        self._readers = PadReaders(model, readers or {})
        self._worker = Worker()
        self._found: tuple[Any, dict[str, np.ndarray], dict[str, float]] | None = None
        self._trace: xr.Dataset | None = None
        self._sent: dict[str, Any] = {}  # text and settings, as the page sent them last
        rule = None if model.block is None else model.block.rule
        head = {
            "model": model.name,
            "limit": LIMIT,
            "readers": self._readers.styles(),
            "inner_batches": sorted({*INNER_BATCHES, rule.inner_batch if rule else None}, key=lambda m: m or _ENDLESS),
            "segments": SEGMENTS,
            "largest_step": LARGEST_STEP,
        }
        settings = {
            "readers": self._readers.chosen,
            "step_scale": 1.0,
            "inner_batch": rule.inner_batch if rule else None,
            "segment": 64,
        }
        super().__init__(None, head=head, settings=settings, text=text)
        self._read_soon()

    def answer(self, question: Mapping[str, Any]) -> Answer:
        """Answer "hello" (the kernel is there), "read" (a text, with settings) and "cancel"."""
        match question.get("kind"):
            case "hello":
                return {}, []
            case "read":
                self._sent = {"text": str(question["text"]), "settings": dict(question["settings"])}
                with self.hold_trait_notifications():
                    self.text, self.settings = self._sent["text"], self._sent["settings"]
                return {}, []
            case "cancel":
                self.cancel()
                return {}, []
        raise ValueError(f"LivePad knows no answer to {question.get('kind')!r}")

    def read(self, text: str) -> xr.Dataset:
        """Read a text to its end, by the readers chosen, and return the trace.

        Raises
        ------
        ValueError
            There is nothing to read, or a reader failed; the message says why.
        """
        if text == self.text:
            self._read_soon()  # it may have been stopped
        self.text = text
        self._worker.wait()
        if self.trace is None:
            raise ValueError(_why(self.reading))
        return self.trace

    def cancel(self) -> None:
        """Stop the reading under way; scores found so far stay."""
        if self._worker.busy:
            self._worker.cancel()
            self.reading = self.reading | {"phase": "stopped"}

    @property
    def trace(self) -> Any:
        """Scores of the last text that was read to its end; None: there is none yet."""
        if self._trace is None and self._found is not None:
            self._trace = self._as_trace(*self._found)
        return self._trace

    @trace.setter
    def trace(self, value: xr.Dataset | None) -> None:
        self._trace, self._found = value, None

    def close(self) -> None:
        """Stop reading, and release the model and all readings."""
        self._worker.close()
        super().close()
        self._readers.close()
        self.model = None

    @traitlets.validate("settings")
    def _check(self, proposal: Any) -> dict[str, Any]:
        settings = dict(proposal.value)
        unknown = [name for name in settings["readers"] if name not in self.head["readers"]]
        if unknown:
            known = ", ".join(self.head["readers"])
            raise traitlets.TraitError(f"no reader {unknown[0]!r}; expected some of {known}.")
        if not 0 <= float(settings["step_scale"]) <= LARGEST_STEP:
            raise traitlets.TraitError(f"step_scale is {settings['step_scale']}; expected 0 to {LARGEST_STEP:g}.")
        for name in ("inner_batch", "segment"):
            size = settings[name]
            if not (size is None and name == "inner_batch") and (not isinstance(size, int) or size < 1):
                raise traitlets.TraitError(f"{name} is {size!r}; expected a whole number of tokens, at least 1.")
        return settings

    @traitlets.observe("text", "settings")
    def _read_soon(self, change: traitlets.Bunch | None = None) -> None:
        if self.comm is None:
            return
        if change is not None and change.new != self._sent.get(change.name):
            self._sent, self.given = {}, self.given + 1
        text, settings = self.text, dict(self.settings)
        self._worker.submit(lambda stopped: self._read(text, settings, stopped))

    def _read(self, text: str, settings: Mapping[str, Any], stopped: Stopped) -> None:
        """Read in the worker's thread: every reader in turn, each shown when it is done."""
        shown: dict[str, Any] = {"phase": "reading", "texts": [], "left_out": 0, "readers": {}}
        if not stopped():
            self.trace = None
        try:
            encoding = self.model.encode_text(text) if text else None
            if encoding is None or not settings["readers"]:
                self._show(shown | {"phase": "empty" if encoding is None else "unread"}, stopped)
                return
            ids, readings = encoding.ids[:LIMIT], {}
            shown |= {"texts": encoding.texts[:LIMIT], "left_out": len(encoding.ids) - len(ids)}
            for name in self.head["readers"]:
                if name in settings["readers"]:
                    readings[name] = self._readers.reading(name, settings)
            self._read_each(shown, ids, readings, stopped)
        except Exception as error:  # what a text or a setting is refused for is told, and typing goes on
            self._show(shown | {"phase": "failed", "words": str(error) or type(error).__name__}, stopped)
            return
        if not stopped():
            if shown["phase"] == "done":
                scores = {name: readings[name].nll.numpy() for name in readings}
                seconds = {name: reading.seconds for name, reading in readings.items()}
                self._found = (encoding.head(LIMIT), scores, seconds)
            self._show(shown, stopped)

    def _read_each(self, shown: dict[str, Any], ids: Any, readings: Mapping[str, Any], stopped: Stopped) -> None:
        """Fill `shown` reader by reader; a reader that fails does not keep the others from reading."""
        total = sum(reading.unread(ids) for reading in readings.values())
        done, last, failed = 0, time.perf_counter(), False

        def advance(more: int) -> bool:
            nonlocal done, last
            done += more
            if time.perf_counter() - last > _PACE and not stopped():
                last = time.perf_counter()
                self.progress = done / max(total, 1)
            return not stopped()

        baseline: np.ndarray | None = None
        *_, slowest = readings
        for name, reading in readings.items():
            began, unread = time.perf_counter(), reading.unread(ids)
            try:
                if not reading.read(ids, advance):
                    return
                log_probs, best = reading.next(NEXT_TOKENS)
            except FloatingPointError as error:
                shown["readers"][name] = {"error": str(error)}
                self._readers.drop(name)
                failed = True
                continue
            if not self._readers.facts[name].adapts and baseline is None:
                baseline, shown["baseline"] = log_probs, name
            shown["readers"][name] = {
                "nll": [round(x, 5) for x in reading.nll.tolist()],
                "next": self._expected(log_probs, best, baseline),
                "seconds": time.perf_counter() - began, "tokens": unread,
            }  # fmt: skip
            if name != slowest:  # all of them together are shown by the caller
                self._show(shown | {"readers": dict(shown["readers"])}, stopped)
        shown["phase"] = "failed" if failed else "done"
        if failed:
            shown["words"] = "A reader's scores are no numbers any more; a smaller step helps."

    def _expected(self, log_probs: np.ndarray, best: np.ndarray, baseline: np.ndarray | None) -> list[list[Any]]:
        """Return the next tokens: text, probability, and its probability and rank (from 1) by the baseline, or None."""
        rows = []
        for token in best:
            row = [self.model.decode(token[None]), float(np.exp(log_probs[token])), None, None]
            if baseline is not None:
                row[2:] = float(np.exp(baseline[token])), int((baseline > baseline[token]).sum()) + 1
            rows.append(row)
        return rows

    def _show(self, shown: dict[str, Any], stopped: Stopped) -> None:
        if self.comm is not None and not stopped():
            self.reading, self.progress = dict(shown), 0.0

    def _as_trace(self, encoding: Any, scores: Mapping[str, np.ndarray], seconds: Mapping[str, float]) -> xr.Dataset:
        from fwl_lab import Document
        from fwl_lab.inference.skeleton import attributes, make_skeleton

        document = Document("typed", "".join(encoding.texts))
        readers = {name: self._readers.reader(name) for name in scores}
        unknown = (schema.READER, np.full(len(scores), np.nan))
        trace = make_skeleton([document], [encoding], readers, None).assign({
            schema.NLL: ((schema.READER, schema.TOKEN), np.stack(list(scores.values()))),
            schema.SECONDS: (schema.READER, np.array(list(seconds.values()))),
            schema.PEAK_BYTES: unknown, schema.FLOPS_PER_TOKEN: unknown,
        })  # fmt: skip
        facts = attributes(self.model, [document], readers, False, LIMIT)
        return schema.validate(schema.with_units(trace).assign_attrs(facts))

    def to_html(self, path: str | Path) -> Path:
        """Wait for the reading under way, then write the view as one page; see `View.to_html`."""
        self._worker.wait()
        return super().to_html(path)

    def fallback_html(self) -> str:
        """Return the text coloured by the gain of the first reader that adapts; a sentence where there is none."""
        # A person sees the pad itself, so the kernel does not wait long.
        self._worker.wait(0.5 if lifetime.someone_is_there() else 60)
        words = f"<p>A pad to type in, read by {visible(self.head['model'])} as it is typed. Typing needs a kernel.</p>"
        trace = self.trace
        if trace is None:
            return words
        baseline = find_baseline(trace)
        adapting = [name for name, one in reader_facts(trace).items() if one.adapts]
        if baseline is None or not adapting:
            return words
        return words + document_html(trace, reader=adapting[0], baseline=baseline).html

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Return nothing: the page has all that was read."""
        return ()


def _why(reading: Mapping[str, Any]) -> str:
    """Return why there is no trace of a reading."""
    errors = [f"{name}: {one['error']}" for name, one in reading.get("readers", {}).items() if "error" in one]
    nothing = "there is nothing to read: expected a text of at least one token, and at least one reader."
    return "; ".join(errors) or str(reading.get("words") or nothing)
