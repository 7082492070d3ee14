"""How long a call takes, how much memory it needs beyond what is held, and how fast the machine multiplies matrices."""

import ctypes
import gc
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")
LARGE = 2**20  # bytes; a block of more is asked for one by one
LARGE_BLOCKS = "MALLOC_MMAP_THRESHOLD_"  # what glibc reads it from when a process starts (mallopt(3))
M_MMAP_THRESHOLD = -3  # what it is called afterwards
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_HIGH_WATER = "5"  # what Linux takes as: the high-water mark begins anew (proc(5), clear_refs)
SAMPLING_SECONDS = 0.001
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is timed


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Seconds that a call takes; on a GPU those between two events around it."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1000
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


@contextmanager
def held_at_most(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Inside, the value says how many bytes were held at once since the beginning, above what was held then.

    On a GPU what torch's allocator gave out, on a CPU the resident size of the process. None on a CPU where the
    system does not tell (no /proc). On Linux large blocks come from the system one by one from here on: otherwise the
    size would creep up with the holes that blocks of unlike size leave in the heap, whatever is in use.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield lambda: torch.cuda.max_memory_allocated(device) - before
    elif not STATUS.exists():
        yield lambda: None
    else:
        _without_holes()
        before = _status("VmRSS")
        with _high_water() as peak:
            yield lambda: max(peak() - before, 0)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes held at once during a call, above what was held before it; see :func:`held_at_most`."""
    with held_at_most(device) as peak:
        function()
        return peak()


def in_a_fresh_process(function: Callable[..., Result], *arguments: object, place: torch.device) -> Result:
    """`function(*arguments)` where :func:`peak_bytes` on a CPU tells what is needed; on a GPU here, where it does so.

    A heap in which much was freed serves large tensors out of its holes and counts as resident what nobody uses, two
    or three times as much as is needed. In the process that this starts, large blocks come from the system one by one.
    """
    if place.type != "cpu":
        return function(*arguments)
    before = os.environ.get(LARGE_BLOCKS)
    os.environ[LARGE_BLOCKS] = str(LARGE)
    try:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        del os.environ[LARGE_BLOCKS]
        if before is not None:
            os.environ[LARGE_BLOCKS] = before


def product_rate(device: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """A function that multiplies two large square matrices and says how many FLOPs a second that made.

    Its first call is slower than the others.
    """
    side = SIDES[device.type]
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: 2 * side**3 / seconds(lambda: torch.mm(left, right), device)


def _status(name: str) -> int:
    """A size in bytes from the process' status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _without_holes() -> None:
    """Return what the allocator keeps of freed memory to the system, which would hide what is used again.

    From here on it keeps no large blocks.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # glibc has it, other C libraries do not
            library.mallopt(M_MMAP_THRESHOLD, LARGE)
            library.malloc_trim(0)


@contextmanager
def _high_water() -> Iterator[Callable[[], int]]:
    """Inside, the value says how large the process has been since the beginning, in bytes."""
    try:
        CLEAR_REFS.write_text(RESET_HIGH_WATER)
    except OSError:
        with _sampled() as peak:
            yield peak
    else:
        yield lambda: _status("VmHWM")


@contextmanager
def _sampled() -> Iterator[Callable[[], int]]:
    """The same by looking every millisecond, where the high-water mark cannot be reset; may miss the highest point."""
    sizes, done = [_status("VmRSS")], threading.Event()

    def watch() -> None:
        while not done.wait(SAMPLING_SECONDS):
            sizes[0] = max(sizes[0], _status("VmRSS"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield lambda: max(sizes[0], _status("VmRSS"))
    finally:
        done.set()
        watcher.join()
