"""LivePad: type, and see what each reader makes of the text, what it has learned from it, and what it expects next."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import traitlets
import xarray as xr

from fwl_lab.inference.incremental import LiveReading
from fwl_lab.trace import schema as schema
from widgets import theme
from widgets.core import lifetime as housekeeping
from widgets.core.assets import source, style
from widgets.core.view import View
from widgets.core.wire import Answer
from widgets.core.worker import Stopped, Worker
from widgets.display.document import document_html, visible

#: Tokens that are read of a text; what follows stays on the page unread.
LIMIT: Final = 4096
#: Choices of the sliders. None: all of the document, as published.
INNER_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, None)
SEGMENTS: Final = (8, 16, 32, 64, 128, 256)
LARGEST_STEP: Final = 4.0
#: Likeliest next tokens that are shown.
TOP: Final = 10
#: Seconds between two reports of progress to the page.
_PACE: Final = 0.1
#: Readers from the cheapest on: what is known soon is shown soon.
_ORDER: Final = (schema.BASE, "static", "fwl", "neural_cache", "dynamic_evaluation")


class LivePad(View):
    """A text that is read again whenever it, or how it is read, is changed.

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
        block), ``segment`` (tokens between two updates of dynamic evaluation).
    reading : dict
        What came of it: the phase, the tokens, and for each reader its scores and what it expects next.
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
        from fwl_lab.readers.named import READERS

        require_model(model)
        self.model, self.own = model, dict(readers or {})
        made = [name for name in READERS if model.block is not None or name not in ("static", "fwl")]
        names = sorted(dict.fromkeys([*made, *self.own]), key=lambda n: _ORDER.index(n) if n in _ORDER else len(_ORDER))
        self._readings: dict[str, tuple[Any, LiveReading]] = {}
        self._worker = Worker()
        self._found: tuple[Any, dict[str, np.ndarray], dict[str, float]] | None = None
        self._trace: xr.Dataset | None = None
        self._sent: dict[str, Any] = {}  # text and settings, as the page sent them last
        rule = None if model.block is None else model.block.rule
        colours = theme.colours(names)
        head = {
            "model": model.name,
            "limit": LIMIT,
            "readers": {name: {"label": theme.label(name), "colour": colours[name], "dash": theme.dash(name)}
                        for name in names},
            "inner_batches": sorted({*INNER_BATCHES, rule.inner_batch if rule else None}, key=lambda m: m or 10**9),
            "segments": SEGMENTS,
            "largest_step": LARGEST_STEP,
        }  # fmt: skip
        settings = {
            "readers": [n for n in names if n in self.own or n in (schema.BASE, "fwl", "dynamic_evaluation")],
            "step_scale": 1.0, "inner_batch": rule.inner_batch if rule else None, "segment": 64,
        }  # fmt: skip
        super().__init__(None, head=head, settings=settings, text=text)
        self._read_soon()

    # -- what the page asks -----------------------------------------------------------------------------------------

    def answer(self, question: Mapping[str, Any]) -> Answer:
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
        """Read a text to its end, by the readers chosen; returns the trace.

        Raises
        ------
        ValueError
            There is nothing to read, or a reader failed; says why.
        """
        if text == self.text:
            self._read_soon()  # it may have been stopped
        self.text = text
        self._worker.wait()
        if self.trace is None:
            raise ValueError(_why(self.reading))
        return self.trace

    def cancel(self) -> None:
        """Stop the reading under way; what was read so far stays."""
        if self._worker.busy:
            self._worker.cancel()
            self.reading = self.reading | {"phase": "stopped"}

    @property
    def trace(self) -> Any:
        if self._trace is None and self._found is not None:
            self._trace = self._as_trace(*self._found)
        return self._trace

    @trace.setter
    def trace(self, value: xr.Dataset | None) -> None:
        self._trace, self._found = value, None

    def close(self) -> None:
        """Stop reading, and let go of the model and of all that was read."""
        self._worker.close()
        super().close()
        self._readings.clear()
        self.own, self.model = {}, None

    # -- reading ----------------------------------------------------------------------------------------------------

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
        """In the worker's thread: every reader in turn, each shown when it is done."""
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
                    readings[name] = self._reading(name, settings)
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

    def _read_each(
        self, shown: dict[str, Any], ids: Any, readings: Mapping[str, "LiveReading"], stopped: Stopped
    ) -> None:
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
                log_probs, best = reading.next(TOP)
            except FloatingPointError as error:
                shown["readers"][name] = {"error": str(error)}
                self._readings.pop(name)
                failed = True
                continue
            if name in (schema.BASE, "static") and baseline is None:
                baseline = log_probs
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
        """What comes next: text, probability, and its probability and rank (from 1) by the baseline, or None."""
        rows = []
        for token in best:
            row = [self.model.decode(token[None]), float(np.exp(log_probs[token])), None, None]
            if baseline is not None:
                row[2:] = float(np.exp(baseline[token])), int((baseline > baseline[token]).sum()) + 1
            rows.append(row)
        return rows

    def _reading(self, name: str, settings: Mapping[str, Any]) -> "LiveReading":
        """What goes on from the last text, unless the reader is set otherwise by now."""
        scale = float(settings["step_scale"])
        key: tuple[Any, ...] = (name,)
        if name in self.own:
            key = (name, scale)
        elif name == "fwl":
            key = (name, scale, settings["inner_batch"])
        elif name == "dynamic_evaluation":
            key = (name, scale, settings["segment"])
        from fwl_lab.inference.incremental import LiveReading

        if name not in self._readings or self._readings[name][0] != key:
            self._readings[name] = key, LiveReading(self._make(name, settings, scale))
        return self._readings[name][1]

    def _make(self, name: str, settings: Mapping[str, Any], scale: float) -> Any:
        from fwl_lab import DynamicEvaluationReader, FastWeightReader, make_readers

        if name in self.own:
            return self.own[name].with_step_scale(scale)
        if name == "fwl":
            inner = settings["inner_batch"]
            # Where nothing is re-linearised, nothing can be capped or forgotten.
            never = {"cap": None, "learn_decay": False} if inner is None else {}
            rule = dataclasses.replace(self.model.block.rule, inner_batch=inner, **never)
            return FastWeightReader(self.model, step_scale=scale, rule=rule)
        if name == "dynamic_evaluation":
            return DynamicEvaluationReader(self.model.base, segment=settings["segment"], step_scale=scale)
        return make_readers(self.model, [name])[name]

    def _show(self, shown: dict[str, Any], stopped: Stopped) -> None:
        if self.comm is not None and not stopped():
            self.reading, self.progress = dict(shown), 0.0

    # -- what is kept -----------------------------------------------------------------------------------------------

    def _as_trace(self, encoding: Any, scores: Mapping[str, np.ndarray], seconds: Mapping[str, float]) -> xr.Dataset:
        from fwl_lab import Document
        from fwl_lab.inference.skeleton import attributes, make_skeleton

        document = Document("typed", "".join(encoding.texts))
        readers = {name: self._readings[name][1].reader for name in scores}
        unknown = (schema.READER, np.full(len(scores), np.nan))
        trace = make_skeleton([document], [encoding], readers, None).assign({
            schema.NLL: ((schema.READER, schema.TOKEN), np.stack(list(scores.values()))),
            schema.SECONDS: (schema.READER, np.array(list(seconds.values()))),
            schema.PEAK_BYTES: unknown, schema.FLOPS_PER_TOKEN: unknown,
        })  # fmt: skip
        facts = attributes(self.model, [document], readers, False, LIMIT)
        return schema.validate(schema.with_units(trace).assign_attrs(facts))

    def to_html(self, path: str | Path) -> Path:
        self._worker.wait()
        return super().to_html(path)

    def fallback_html(self) -> str:
        # A person sees the pad itself, and the kernel has better to do than to wait.
        self._worker.wait(0.5 if housekeeping.someone_is_there() else 60)
        words = f"<p>A pad to type in, read by {visible(self.head['model'])} as it is typed. Typing needs a kernel.</p>"
        trace = self.trace
        if trace is None:
            return words
        adapting = [n for n in trace[schema.READER].values if n not in (schema.BASE, "static")]
        if schema.BASE not in trace[schema.READER].values or not adapting:
            return words
        return words + document_html(trace, reader=str(adapting[0])).html

    def foreseen(self) -> Iterable[dict[str, Any]]:
        return ()


def _why(reading: Mapping[str, Any]) -> str:
    """Why there is no trace of a reading."""
    errors = [f"{name}: {one['error']}" for name, one in reading.get("readers", {}).items() if "error" in one]
    nothing = "there is nothing to read: expected a text of at least one token, and at least one reader."
    return "; ".join(errors) or str(reading.get("words") or nothing)
