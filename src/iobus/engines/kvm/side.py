"""A thread on the side for a caller on the main thread, where Python handles signals.

Beside `cpu.py`. A handler, Ctrl-C's above all, may raise at any point of the main thread's Python code: in the
middle of a device's callback it would leave the device half changed. So guest code and devices never run there.
The main thread waits here; when a handler raises, the vCPU is brought to a clean stop before that goes on up, if it
comes to one in time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, Final

from iobus.exits import EngineError, Exit, KickExit
from iobus.hung import SIGNAL_CHECK, comes_back

if TYPE_CHECKING:
    from iobus.machine import Machine


class _Job:
    """One run, done once however often it is called."""

    def __init__(self, function: Callable[[], Exit]) -> None:
        self._function = function
        self._claimed = False
        self._exit: Exit | None = None
        self._error: BaseException | None = None
        self.done: Final = threading.Event()

    def __call__(self) -> None:
        if self._claimed:
            return
        self._claimed = True
        try:
            self._exit = self._function()
        except BaseException as exc:
            self._error = exc
        self.done.set()

    def is_kick(self) -> bool:
        return isinstance(self._exit, KickExit)

    def result(self) -> Exit:
        if self._error is not None:
            raise self._error
        assert self._exit is not None
        return self._exit


class Side:
    """The thread, made when first needed."""

    def __init__(self, name: str, machine: Machine) -> None:
        self._name = name
        self._machine = machine
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._unseen: _Job | None = None  # its caller was interrupted: the next one's
        self._lost = False

    def run(self, function: Callable[[], Exit], stop: Callable[[], None]) -> Exit:
        """Have `function` called on the thread; return or raise what it does. `stop` makes it return soon."""
        if self._lost:
            raise EngineError("a run of this vCPU was abandoned")
        job, self._unseen = self._unseen, None
        if job is not None:
            return job.result()
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name=self._name, daemon=True)
            self._thread.start()
        job = _Job(function)
        try:
            self._jobs.put(job)
            while not job.done.wait(SIGNAL_CHECK):
                pass
        except BaseException:
            self._lost = True  # should the wait for a clean stop be given up
            self._jobs.put(job)  # it may not have been; twice is as good
            stop()
            if comes_back(self._machine, job.done.wait):
                self._lost = False
                self._unseen = None if job.is_kick() else job
            raise
        return job.result()

    def forget(self) -> None:
        """Drop a result that its caller did not see."""
        self._unseen = None

    def close(self) -> None:
        """End the thread, which runs nothing."""
        if self._thread is not None and not self._lost:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _main(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
