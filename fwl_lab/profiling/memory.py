"""Measure the time and memory of a call, and the rate at which the machine multiplies large matrices."""

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
LARGE = 2**20  # bytes; glibc asks the system for each larger block on its own
LARGE_BLOCKS = "MALLOC_MMAP_THRESHOLD_"  # environment variable for that size when a process starts (mallopt(3))
M_MMAP_THRESHOLD = -3  # parameter of mallopt for that size later on
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_HIGH_WATER = "5"  # written to CLEAR_REFS, it resets the high-water mark (proc(5))
SAMPLING_SECONDS = 0.001
SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices whose product is timed


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes; on a GPU those between two events around it."""
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
    """Measure the most bytes held at once since the start of the context, above those held at its start.

    On a GPU these are bytes given out by torch's allocator, on a CPU the resident size of the process. On Linux large
    blocks come from the system one by one from here on: otherwise blocks of unequal size would leave holes in the
    heap, and the resident size would grow although no more memory is in use.

    Yields
    ------
    function
        Returns the bytes so far; None on a CPU where the system does not tell (no /proc).
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
    """Return the most bytes held at once during a call, above those held before it; see :func:`held_at_most`."""
    with held_at_most(device) as peak:
        function()
        return peak()


def in_a_fresh_process(function: Callable[..., Result], *arguments: object, place: torch.device) -> Result:
    """Return `function(*arguments)`, called in a new process where `place` is a CPU, so that memory can be measured.

    A heap in which much was freed serves large tensors from its holes and keeps unused memory resident, two or three
    times as much as is needed. In the new process large blocks come from the system one by one. On a GPU torch's
    allocator counts exactly, and the function is called here.
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
    """Make a function that multiplies two large matrices and returns the rate, FLOP/s; call it once to warm up."""
    side = SIDES[device.type]
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return lambda: 2 * side**3 / seconds(lambda: torch.mm(left, right), device)


def _status(name: str) -> int:
    """Return a size in bytes from the process' status."""
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), flags=re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def _without_holes() -> None:
    """Return freed memory that the allocator keeps to the system, and let it keep no large blocks from here on.

    Memory kept from before would be used again without the resident size growing.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "malloc_trim"):  # glibc has it, other C libraries do not
            library.mallopt(M_MMAP_THRESHOLD, LARGE)
            library.malloc_trim(0)


@contextmanager
def _high_water() -> Iterator[Callable[[], int]]:
    """Measure the largest resident size of the process since the start of the context; yields a function, bytes."""
    try:
        CLEAR_REFS.write_text(RESET_HIGH_WATER)
    except OSError:
        with _sampled() as peak:
            yield peak
    else:
        yield lambda: _status("VmHWM")


@contextmanager
def _sampled() -> Iterator[Callable[[], int]]:
    """Measure as :func:`_high_water` by a sample every millisecond, which may miss the highest point."""
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
