"""How the process ends where a device, or whatever else, keeps it from ending by itself: `LAST_RESORT`.

Beside `outcome.py`. Signals, Ctrl-A X and `--timeout` ask the guest to stop, and ask here too. What then does not end
in time is ended with the terminal restored, what is known of the trace written, and a sentence that names the device.
Python cannot end a thread that is in a device, so this is by `os._exit`, and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, Self

from iobus import hung
from iobus.cli.outcome import Status
from iobus.machine import Machine

AGAIN: Final = 0.5
"""Seconds that are left after a second request, for both may have come at once."""

_STEP: Final = 1.0  # seconds for each of the last steps: a terminal or pipe may take nothing any more
_LOOK_AGAIN: Final = 3600.0  # seconds, for a wait has an upper limit


class _Request(NamedTuple):
    at: float
    """When the end is asked for, by `time.monotonic`."""
    deadline: float
    status: int


class LastResort:
    """Within its `with` block, what was asked to end by `ask` has `hung.GRACE` seconds."""

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self._steps: list[Callable[[], object]] = []
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._thread: threading.Thread

    def __enter__(self) -> Self:
        self.machine, self._requests = None, SimpleQueue()
        self._thread = threading.Thread(target=self._main, args=(self._requests,), name="iobus-ending", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.machine is not None and self.machine.hung:
            now = time.monotonic()
            self._requests.put(_Request(now, now, Status.DEVICE_ERROR))  # as an earlier request says, if there is one
            self._thread.join()  # which does not return
        self._requests.put(None)
        self.machine = None

    def ask(self, status: int, after: float = 0.0) -> None:
        """Have the process end with `status` should it not end by itself, `after` seconds from now and the grace.

        From any thread, and a signal's handler. A second request leaves it `AGAIN` seconds.
        """
        at = time.monotonic() + after
        self._requests.put(_Request(at, at + hung.GRACE, status))

    @contextlib.contextmanager
    def before(self, step: Callable[[], object]) -> Iterator[None]:
        """Within, `step` is among what is done before the end; the latest is the first. It may block, or raise."""
        self._steps.append(step)
        try:
            yield
        finally:
            self._steps.remove(step)

    def _main(self, requests: SimpleQueue[_Request | None]) -> None:
        due: _Request | None = None
        while due is None or time.monotonic() < due.deadline:
            left = _LOOK_AGAIN if due is None else max(0.0, due.deadline - time.monotonic())
            try:
                request = requests.get(timeout=min(left, _LOOK_AGAIN))
            except Empty:
                continue
            if request is None:
                return
            if due is not None and due.at <= time.monotonic():
                due = due._replace(deadline=min(due.deadline, request.at + AGAIN))
            elif due is None or request.deadline < due.deadline:
                due = request
        self._end(due.status)

    def _end(self, status: int) -> None:
        try:
            sentence = self._sentence()
            for step in (*reversed(self._steps), lambda: print(f"iobus: {sentence}", file=sys.stderr, flush=True)):
                self._try(step)
        finally:
            os._exit(status)

    def _sentence(self) -> str:
        if self.machine is None:
            return "the command did not end when it was asked to"
        try:
            what = hung.find(self.machine)
        except Exception as exc:  # of a device that is in the middle of a change
            what = f"a device that cannot be named: {exc}"
        if what is None:
            return "the guest did not stop when it was asked to, and was given up"
        return f"a device hangs, and the guest was given up: {what}"

    @staticmethod
    def _try(step: Callable[[], object]) -> None:
        def call() -> None:
            with contextlib.suppress(Exception):
                step()

        thread = threading.Thread(target=call, name="iobus-last-step", daemon=True)
        thread.start()
        thread.join(_STEP)


LAST_RESORT: Final = LastResort()
"""The process's."""
