"""Finding out that the CPUs sleep for ever, where the kernel keeps their HLT to itself.

Beside `cpu_lapic.py`. A CPU that halts with interrupts off, or waits for start-up, makes no exit when its LAPIC is in
the kernel. So a few times a second every vCPU is asked to look at itself. When all have slept so through two rounds,
none is left that could wake another: that is what `HltExit` says on every engine.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Final

_PERIOD: Final = 0.2  # seconds
_ROUNDS: Final = 2


class Sleepers:
    """Asks the vCPUs, each by a function that makes it look soon."""

    def __init__(self) -> None:
        self._ask: list[Callable[[], None]] = []
        self._recall: list[Callable[[], None]] = []
        self._gone: set[int] = set()  # whom `look` told that all sleep for good, so that they do not run
        self._slept: list[int] = []  # for how many rounds, by vCPU
        self._looked: list[int] = []  # in which round last
        self._round = 0
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, ask: Callable[[], None], recall: Callable[[], None]) -> None:
        """Count a vCPU in, the next by index. `recall` has it run on where it does not any more."""
        self._ask.append(ask)
        self._recall.append(recall)
        self._slept.append(0)
        self._looked.append(0)

    def start(self) -> None:
        """Begin to ask."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="iobus-kvm-sleepers", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ask no more."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def look(self, index: int, asleep: Callable[[], bool]) -> bool:
        """A vCPU looks, once a round, whether it is `asleep()`; return whether all are for good."""
        if self._looked[index] != self._round:
            self._looked[index] = self._round
            if asleep():
                self._slept[index] += 1
            else:
                self.woke(index)
        if min(self._slept) < _ROUNDS:
            return False
        self._gone.add(index)
        return True

    def begin(self, index: int) -> None:
        """A vCPU begins to run: what was known of it counts no more."""
        self._slept[index] = 0
        self._gone.discard(index)

    def woke(self, index: int) -> None:
        """A vCPU is awake: those that were told otherwise, because it was long in a device, run on."""
        self._slept[index] = 0
        self.recall()

    def recall(self) -> None:
        """Something may wake a vCPU that does not run any more."""
        while self._gone:
            with contextlib.suppress(KeyError):
                index = self._gone.pop()
                self._slept[index] = 0
                self._recall[index]()

    def _main(self) -> None:
        while not self._closing.wait(_PERIOD):
            self._round += 1
            for ask in self._ask:
                ask()
