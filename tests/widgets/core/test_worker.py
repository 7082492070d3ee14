"""The worker: one job at a time, the latest wins, errors come back, nothing is kept."""

import gc
import threading
import weakref
from functools import partial

import pytest

from widgets.core.worker import Worker


def test_jobs_run_one_after_another_elsewhere():
    worker, seen = Worker(), []
    for number in range(3):

        def job(stopped, number=number):
            seen.append((number, threading.current_thread().name))

        worker.submit(job)
        assert worker.wait(10)
    assert seen == [(0, "fwl-worker"), (1, "fwl-worker"), (2, "fwl-worker")]
    assert not worker.busy


def test_the_latest_wins():
    worker, seen = Worker(), []
    began, go_on = threading.Event(), threading.Event()

    def long(stopped):
        began.set()
        go_on.wait(10)
        seen.append(("long", stopped()))

    worker.submit(long)
    assert began.wait(10) and worker.busy
    worker.submit(lambda stopped: seen.append(("never", stopped())))
    worker.submit(lambda stopped: seen.append(("last", stopped())))
    go_on.set()
    assert worker.wait(10)
    assert seen == [("long", True), ("last", False)]


def test_cancelling_stops_what_runs_and_forgets_what_waits():
    worker, seen = Worker(), []
    began = threading.Event()

    def until_stopped(stopped):
        began.set()
        while not stopped():
            pass
        seen.append("stopped")

    worker.submit(until_stopped)
    assert began.wait(10)
    worker.submit(lambda stopped: seen.append("never"))
    worker.cancel()
    assert worker.wait(10) and seen == ["stopped"]


def test_an_error_comes_back_and_the_worker_goes_on():
    said: list[Exception] = []
    worker, seen = Worker(said.append), []

    def fails(stopped):
        raise ValueError("no such token")

    worker.submit(fails)
    assert worker.wait(10)
    worker.submit(lambda stopped: seen.append("after"))
    assert worker.wait(10)
    assert [str(error) for error in said] == ["no such token"] and seen == ["after"]


def test_an_error_after_being_stopped_is_nobodys():
    said: list[Exception] = []
    worker, began, go_on = Worker(said.append), threading.Event(), threading.Event()

    def fails_late(stopped):
        began.set()
        go_on.wait(10)
        raise ValueError("too late")

    worker.submit(fails_late)
    assert began.wait(10)
    worker.cancel()
    go_on.set()
    assert worker.wait(10) and said == []


def test_waiting_tells_when_time_is_up():
    worker, go_on = Worker(), threading.Event()
    worker.submit(lambda stopped: go_on.wait(10))
    assert not worker.wait(0)
    go_on.set()
    assert worker.wait(10)


def test_closed_it_takes_no_job_and_keeps_nothing():
    class Heavy:
        pass

    heavy = Heavy()
    gone = weakref.ref(heavy)
    worker = Worker()
    worker.submit(partial(lambda heavy, stopped: None, heavy))
    assert worker.wait(10)
    worker.close()
    with pytest.raises(RuntimeError, match="closed"):
        worker.submit(lambda stopped: None)
    del heavy
    gc.collect()
    assert gone() is None
