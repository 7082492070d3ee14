"""What a page says and asks for while it is being driven, and what it costs."""

import json
import struct
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import urlsplit

from playwright.sync_api import BrowserContext, Page, WebSocket


class Message(NamedTuple):
    """A message from the kernel as it came over the wire; `size` in bytes, buffers included."""

    kind: str
    comm: str
    size: int


class Heap(NamedTuple):
    """What a page holds after garbage collection: JavaScript's heap, DOM nodes (detached ones too), listeners."""

    bytes: int
    nodes: int
    listeners: int


@dataclass
class Watch:
    """What went wrong in the pages of a browser's context, and what kernels sent to them.

    Attributes
    ----------
    problems : errors in the console, errors that nothing caught, and crashes, as they came.
    foreign : addresses asked for that are not on this machine.
    messages : messages from kernels, as they came.
    """

    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)

    def attach(self, page: Page) -> None:
        """Follow `page` from now on."""
        page.on(
            "console", lambda m: self._note(f"{m.text} ({m.location.get('url', '')})") if m.type == "error" else None
        )
        page.on("pageerror", lambda error: self._note(f"uncaught: {error}"))
        page.on("crash", lambda _: self._note("the page crashed"))
        page.on("request", lambda request: self._check(request.url))
        page.on("websocket", self._follow)

    def _note(self, text: str) -> None:
        # No exception is made: JupyterLab itself prints no error.
        self.problems.append(text)

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme in {"http", "https", "ws", "wss", "ftp"} and parts.hostname != "127.0.0.1":
            self.foreign.append(url)

    def _follow(self, socket: WebSocket) -> None:
        self._check(socket.url)
        socket.on("framereceived", self._receive)

    def _receive(self, payload: str | bytes) -> None:
        message = read_message(payload)
        if message:
            self.messages.append(message)

    def assert_clean(self) -> None:
        """Fail where a page reported an error or asked for anything from elsewhere."""
        assert self.foreign == [], f"a page asked for what is not on this machine: {self.foreign}"
        assert self.problems == [], f"a page reported errors: {self.problems}"


def read_message(payload: str | bytes) -> Message | None:
    """Return what a frame of the kernel's protocol (v1.kernel.websocket.jupyter.org) holds; None: not such a frame.

    The frame is a count, as many offsets (both 64 bits, little-endian), and between the offsets: channel, header,
    parent header, metadata, content, buffers.
    """
    if isinstance(payload, str) or len(payload) < 8:
        return None
    (count,) = struct.unpack_from("<Q", payload)
    if not 6 <= count <= len(payload) // 8:
        return None
    offsets = struct.unpack_from(f"<{count}Q", payload, 8)
    header, content = (json.loads(payload[offsets[at] : offsets[at + 1]]) for at in (1, 4))
    return Message(header["msg_type"], content.get("comm_id", ""), len(payload))


def heap(page: Page) -> Heap:
    """Collect garbage, and return what is left."""
    session = page.context.new_cdp_session(page)
    try:
        # Twice: what finalisers of the first release, the second collects.
        session.send("HeapProfiler.collectGarbage")
        session.send("HeapProfiler.collectGarbage")
        counters = session.send("Memory.getDOMCounters")
        return Heap(
            int(session.send("Runtime.getHeapUsage")["usedSize"]), counters["nodes"], counters["jsEventListeners"]
        )
    finally:
        session.detach()


def dom_nodes(page: Page, selector: str = "body") -> int:
    """Count the elements of the page under what `selector` matches, itself included."""
    return page.evaluate(
        "s => [...document.querySelectorAll(s)].reduce((n, e) => n + 1 + e.querySelectorAll('*').length, 0)", selector
    )


def measure(page: Page, expression: str, *, repeat: int = 1) -> list[float]:
    """Return how long `expression` takes with all that it awaits and up to the frame that shows it: milliseconds each.

    Parameters
    ----------
    expression : JavaScript, awaited; it finds its run's number in `run`.
    """
    return page.evaluate(
        f"""async repeat => {{
          const times = [];
          for (let run = 0; run < repeat; run++) {{
            const start = performance.now();
            await ({expression});
            // Called after the frame was handed over: the second of two.
            await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
            times.push(performance.now() - start);
          }}
          return times;
        }}""",
        repeat,
    )


def watch(context: BrowserContext) -> Watch:
    """Return a watch on all pages that `context` opens."""
    seen = Watch()
    context.on("page", seen.attach)
    return seen
