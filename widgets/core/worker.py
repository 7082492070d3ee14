"""Run one job at a time in a thread of its own, so that the kernel stays free; the latest replaces the others."""

import threading
from collections.abc import Callable
from typing import Any

#: Asked by a job between two blocks of work: True once it has been cancelled or replaced.
Stopped = Callable[[], bool]


class Worker:
    """Run one job after another in a daemon thread that lives while there is something to do.

    A job is a function of `stopped`, which it calls now and then to see whether to end; its exception goes to `failed`.

    Parameters
    ----------
    failed : callable, optional
        Gets the exception of a job that was not stopped. Called in the worker's thread.
    """

    def __init__(self, failed: Callable[[Exception], Any] | None = None) -> None:
        self._failed = failed
        self._lock = threading.Condition()
        self._next: Callable[[Stopped], Any] | None = None
        self._stop = threading.Event()  # of the job that runs
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, job: Callable[[Stopped], Any]) -> None:
        """Run a job soon; one that runs is stopped, one that waits is forgotten.

        Raises
        ------
        RuntimeError
            The worker is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this worker is closed")
            self._stop.set()
            self._next = job
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fwl-worker", daemon=True)
                self._thread.start()

    def cancel(self) -> None:
        """Stop the job that runs, and forget one that waits."""
        with self._lock:
            self._stop.set()
            self._next = None

    @property
    def busy(self) -> bool:
        """Whether a job runs or waits."""
        return self._thread is not None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is nothing left to do; return False where `timeout` seconds were not enough."""
        with self._lock:
            return self._lock.wait_for(lambda: self._thread is None, timeout)

    def close(self) -> None:
        """Cancel, and take no more jobs. The thread ends when its job next asks whether it was stopped."""
        self.cancel()
        self._closed, self._failed = True, None

    def _run(self) -> None:
        while True:
            with self._lock:
                job, self._next = self._next, None
                if job is None:
                    self._thread = None
                    self._lock.notify_all()
                    return
                stop = self._stop = threading.Event()
            try:
                job(stop.is_set)
            except Exception as error:
                failed = self._failed
                if failed is not None and not stop.is_set():
                    failed(error)
            del job  # what it holds is not kept while the thread looks for the next
