"""RunConsole: choose documents, readers and what is recorded; see the cost; start the reading, follow and stop it."""

import copy
import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from html import escape
from pathlib import Path
from typing import Any, Final

import traitlets
import xarray as xr

from fwl_lab.trace import schema
from fwl_lab.trace.lookup import ReaderFacts, find_baseline
from widgets import theme
from widgets.core.assets import source, style
from widgets.core.view import View
from widgets.core.wire import Answer
from widgets.core.worker import Stopped, Worker
from widgets.display.document import visible
from widgets.views.run_console import planning as run_planning
from widgets.views.run_console.planning import RECORDS, Clock

#: Phases of a run in which nothing can be started.
BUSY: Final = ("preparing", "reading", "measuring", "stopping")


class RunConsole(View):
    """Form that reads documents from a page: the cost beforehand, the reading itself, and its result.

    Parameters
    ----------
    model : LanguageModel
        Stays where it is; a run on another device takes a copy.
    documents : sequence of Document
    readers : mapping from name to Reader, optional
        Beside those that `fwl_lab.make_readers` makes; a name of theirs replaces it.
    path : path
        Folder for traces: ``trace.zarr``, ``trace-2.zarr``, …
    corpus : path, optional
        The file or folder of texts that the documents are from, so that a shell command can name it; None: they are
        of Python's own library.
    max_tokens : int, optional
        Read of each document at most, to begin with.
    byte_budget : str or int
        The most that may be recorded.

    Attributes
    ----------
    settings : dict
        ``documents`` (indices), ``readers`` (names), ``device``, ``max_tokens``, ``record`` (nothing, norms, factors),
        ``folder``: as the page shows them, and as :meth:`start` reads.
    run : dict
        ``phase`` (idle, preparing, reading, measuring, stopping, done, stopped, failed) and what belongs to it.
    trace : Dataset or None
        The last reading; lazily opened from its folder.
    """

    _esm = source("run_console")
    _css = style("run_console")

    settings: Any = traitlets.Dict().tag(sync=True)
    run: Any = traitlets.Dict({"phase": "idle"}).tag(sync=True)

    def __init__(
        self, model: Any, documents: Sequence[Any], *, readers: Mapping[str, Any] | None = None,
        path: str | Path = "runs/console", corpus: str | Path | None = None, max_tokens: int | None = 4096,
        byte_budget: str | int = "1 GiB",
    ) -> None:  # fmt: skip
        from fwl_lab import available_devices
        from fwl_lab.models.language_model import require_model
        from fwl_lab.readers.named import USUAL, available

        require_model(model)
        self._turn, self._stop = threading.Lock(), threading.Event()
        self._change = threading.RLock()  # of `run`, which the page and the worker's thread change
        self._worker, self._aside = Worker(), ThreadPoolExecutor(max_workers=1)
        self._made: dict[tuple[str, str], Any] = {}
        self._models: dict[str, Any] = {}
        if not documents:
            raise ValueError("documents is empty; expected at least one Document, such as stdlib_corpus('test').")
        self._models[str(model.device)] = model
        self.model, self.documents, self.byte_budget = model, list(documents), byte_budget
        self.corpus = None if corpus is None else Path(corpus)
        self.own = dict(readers or {})
        names = list(dict.fromkeys([*available(model), *self.own]))
        self._lengths: list[int] | None = None
        self._speeds: dict[tuple[str, str], float] = {}
        # Only those at hand are asked what they are: making the others takes time, and may take a copy of the weights.
        asked = {name: self.own[name].configuration() if name in self.own else {} for name in names}
        styles = theme.styles({name: ReaderFacts.of(name, one) for name, one in asked.items()})
        head = {
            "model": model.name,
            "documents": [[document.name, len(document.text)] for document in self.documents],
            "readers": {name: style._asdict() for name, style in styles.items()},
            "devices": list(dict.fromkeys([str(model.device), *available_devices()])),
            "records": [[name, *texts] for name, texts in RECORDS.items()],
        }  # fmt: skip
        chosen = [name for name in names if name in self.own or name in USUAL]
        # In the order of the alphabet, so that a saved page spells the questions about them as `page` does.
        settings = {"device": str(model.device), "documents": [0], "folder": str(path), "max_tokens": max_tokens,
                    "readers": chosen, "record": "norms"}  # fmt: skip
        super().__init__(None, head=head, settings=settings)

    def answer(self, question: Mapping[str, Any]) -> Answer | Future[Answer]:
        """Answer "hello", "lengths", "plan", "time" and "command" (before a run), "start" and "cancel"."""
        settings = question.get("settings", self.settings)
        match question.get("kind"):
            case "hello":
                return {}, []
            case "lengths":
                return self._later(lambda: {"tokens": self.lengths()})
            case "plan":
                return self._later(lambda: self.plan(settings))
            case "time":
                return self._later(lambda: self.estimate(settings))
            case "command":
                return self._later(lambda: {"line": self.command(settings)})
            case "start":
                return {"started": self.start(settings)}, []
            case "cancel":
                return {"stopping": self.cancel()}, []
        return super().answer(question)

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Yield lengths, plan and command, unless a run is under way."""
        if self.run["phase"] not in BUSY:  # answers would wait for the end of the run
            yield {"kind": "lengths"}
            yield from ({"kind": kind, "settings": self.settings} for kind in ("plan", "command"))

    def lengths(self) -> list[int]:
        """Return the number of tokens of each document."""
        if self._lengths is None:
            self._lengths = [len(ids) for ids in self.model.encode_batch([d.text for d in self.documents])]
        return self._lengths

    def plan(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return where the trace would go, and its bytes: exactly those of the arrays that would be written.

        Raises
        ------
        ValueError
            It cannot be started so; the message says why and what to do.
        """
        from fwl_lab.inference.recorder import size_text

        settings = settings or self.settings
        lengths = self._chosen_lengths(settings)
        path = run_planning.free_path(settings["folder"])
        record = run_planning.recorder(settings["record"], self.byte_budget)
        sizes = run_planning.bytes_written(record, self._readers(settings), lengths)
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        return {
            "path": str(path), "tokens": sum(lengths), "documents": len(lengths), "bytes": sum(sizes.values()),
            "size": size_text(sum(sizes.values())), "largest": [[name, size_text(sizes[name])] for name in largest],
        }  # fmt: skip

    def estimate(self, settings: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the seconds that each reader would read, from its speed over 256 tokens; recording comes on top."""
        settings = settings or self.settings
        lengths = self._chosen_lengths(settings)
        ids = None
        seconds, speeds = {}, {}
        for name, reader in self._readers(settings).items():
            key = (name, settings["device"])
            if key not in self._speeds:
                if ids is None:
                    ids = self.model.encode(self.documents[settings["documents"][0]].text)
                self._speeds[key] = run_planning.tokens_per_second(reader, ids)
            speeds[name] = self._speeds[key]
            seconds[name] = run_planning.tokens_to_read(lengths, reader.model.window) / speeds[name]
        return {
            "speeds": speeds,
            "seconds": seconds,
            "total": sum(seconds.values()),
            "probed": run_planning.TIMED_TOKENS,
        }

    def command(self, settings: Mapping[str, Any] | None = None) -> str:
        """Return the shell command for the same reading; raise ValueError where no notebook does it."""
        settings = settings or self.settings
        self._chosen_lengths(settings)
        documents = [self.documents[i] for i in settings["documents"]]
        adapting = {name for name, reader in self._readers(settings).items() if reader.adapts}
        return run_planning.command(
            self._source, documents, settings, corpus=self.corpus, own=self.own, adapting=adapting
        )

    @functools.cached_property
    def _source(self) -> str | None:
        return run_planning.model_source(self.model)

    def start(self, settings: Mapping[str, Any] | None = None) -> bool:
        """Start a run as the settings say, in a thread; return False where one is under way."""
        if self.run["phase"] in BUSY:
            return False
        settings = copy.deepcopy(dict(settings or self.settings))
        self._stop.clear()
        self.run = {"phase": "preparing"}
        self._worker.submit(lambda stopped: self._read(settings, stopped))
        return True

    def cancel(self) -> bool:
        """Stop after the call under way and keep what all readers have read; return False where nothing runs."""
        with self._change:
            if self.run["phase"] not in BUSY:
                return False
            self._stop.set()
            self.run = self.run | {"phase": "stopping"}
        return True

    def close(self) -> None:
        """End a run, keeping its folder as it is, and leave the page."""
        self._stop.set()
        self._worker.close()
        self._aside.shutdown(wait=False, cancel_futures=True)
        super().close()
        self._made.clear()
        self._models.clear()
        self.own, self.model, self.documents = {}, None, []

    def _read(self, settings: Mapping[str, Any], stopped: Stopped) -> None:
        from fwl_lab import score

        path = None
        try:
            with self._turn:
                self._chosen_lengths(settings)
                path = run_planning.free_path(settings["folder"])
                readers = self._readers(settings)
                clock = Clock(readers)
                trace = score(
                    self._model_on(settings["device"]), [self.documents[i] for i in settings["documents"]], readers,
                    run_planning.recorder(settings["record"], self.byte_budget), path=path,
                    progress=lambda *seen: self._follow(clock, *seen) and not stopped(),
                    max_tokens=settings["max_tokens"],
                )  # fmt: skip
            self._end("stopped" if schema.PROGRESS in trace.attrs else "done", trace, path)
        except Exception as error:  # any error of a reader is shown, and the complete part is kept
            words = "\n".join([str(error) or type(error).__name__, *getattr(error, "__notes__", ())])
            self._end("stopped" if self._stop.is_set() else "failed", run_planning.complete_part(path), path, words)

    def _follow(self, clock: Clock, name: str, done: int, total: int) -> bool:
        """Note the progress that `score` reports after each call; return False once the run is cancelled."""
        due = clock.tell(name, done)
        complete = all(read == total for read in clock.done.values())
        if not self._stop.is_set() and (due or complete):
            self._show({"phase": "measuring" if complete else "reading", "total": total, **clock.figures()})
        return not self._stop.is_set()

    def _end(self, phase: str, trace: xr.Dataset | None, path: Path | None, words: str = "") -> None:
        summary = [] if trace is None else run_planning.summary(trace)
        if self.comm is not None:
            self.trace = trace
        baseline = None if trace is None else find_baseline(trace)
        kept = {
            "words": words,
            "summary": summary,
            "over": None if baseline is None else theme.label(baseline),
            "path": str(path) if trace is not None else "",
            "tokens": 0 if trace is None else trace.sizes[schema.TOKEN],
        }
        read = {name: self.run[name] for name in ("done", "seconds", "total") if name in self.run}
        self._show({"phase": phase, **read, **kept})

    def _show(self, run: dict[str, Any]) -> None:
        with self._change:
            if self.comm is not None and not (self._stop.is_set() and run["phase"] in BUSY):
                self.run = run

    def _later(self, work: Callable[[], dict[str, Any]]) -> Future[Answer]:
        """Answer from a thread, one after the other, so that the kernel stays free."""

        def answer() -> Answer:
            with self._turn:
                try:
                    return work(), []
                except Exception as error:
                    return {"error": str(error) or type(error).__name__}, []

        return self._aside.submit(answer)

    def _chosen_lengths(self, settings: Mapping[str, Any]) -> list[int]:
        """Return the tokens to read of each chosen document; raise ValueError where the settings are impossible."""
        run_planning.check(settings, len(self.documents))
        lengths, most = self.lengths(), settings["max_tokens"]
        return [min(lengths[i], most or lengths[i]) for i in settings["documents"]]

    def _model_on(self, device: str) -> Any:
        if device not in self._models:
            self._models[device] = copy.deepcopy(self.model).to(device)
        return self._models[device]

    def _readers(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chosen readers, made once for each device; those that were handed in stay on their own."""
        from fwl_lab import make_readers

        device = settings["device"]
        for name in settings["readers"]:
            if name not in self.own and (name, device) not in self._made:
                self._made[name, device] = make_readers(self._model_on(device), [name])[name]
        return {name: self.own.get(name) or self._made[name, device] for name in settings["readers"]}

    def fallback_html(self) -> str:
        """Return a sentence on what is chosen, and the result of the last run."""
        names = escape(", ".join(theme.label(name) for name in self.settings["readers"]))
        rows = "".join(
            f"<tr><td>{escape(row['label'])}</td><td>{row['nll']:.3f}</td></tr>" for row in self.run.get("summary", [])
        )
        table = f"<table><thead><tr><th>reader</th><th>nat / token</th></tr></thead>{rows}</table>" if rows else ""
        console = f"A console to read {len(self.documents):,} documents with {visible(self.head['model'])}"
        return f"<p>{console}; chosen: {names}. Starting a reading needs a kernel.</p>{table}"
