"""Getting a thread out of `KVM_RUN`, from any other thread, so that no request is lost.

Beside `cpu.py`, whose vCPUs each have a `Kicker`. The signal is blocked in the vCPU's thread and let through only
inside `KVM_RUN`, by `KVM_SET_SIGNAL_MASK`: one that comes earlier waits, and the request returns at once.
Nothing handles it; it is taken away afterwards (`drain`). A handler could not do this: Python's run between
bytecodes, and one that ran just before the request would let the guest spin for ever. `kvm_run.immediate_exit`,
the newer way, has the same need of a handler that runs at once; here it serves to finish an instruction only.

The same signal wakes a vCPU that waits in HLT, so that there is one way to wake a thread wherever it is.
"""

from __future__ import annotations

import signal
import struct
import threading
from typing import Final

from iobus.engines.kvm import ioctls
from iobus.engines.kvm.ioctls import call

KICK: Final = signal.SIGURG
"""Ignored by default, so that one that strays does no harm; several that wait are one."""

_SET: Final = frozenset({KICK})


class Kicker:
    """The way to one vCPU's thread. `fd` is the vCPU's."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.gate: Final = threading.RLock()
        """Held while a thread enters or leaves, is signalled, or the vCPU is used from outside. After the machine's
        lock in order; nothing that takes another lock is called with it held."""
        self._thread: int | None = None  # guarded by gate
        self._before: set[int] = set()
        self._installed: set[int] | None = None

    @property
    def running(self) -> bool:
        """Whether a thread is between `enter` and `leave`. Hold `gate` for an answer that lasts."""
        return self._thread is not None

    def enter(self) -> None:
        """This thread is going to run the vCPU: it can be signalled from now on."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SET)
        if before != self._installed:
            blocked = sum(1 << number - 1 for number in before if number != KICK)
            call(self._fd, ioctls.KVM_SET_SIGNAL_MASK, struct.pack("<IQ", 8, blocked))
            self._installed = set(before)
        self._before = set(before)
        with self.gate:
            self._thread = threading.get_ident()

    def leave(self) -> None:
        """This thread is done with the vCPU."""
        with self.gate:
            self._thread = None
        self.drain()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def poke(self) -> None:
        """Get the thread out of `KVM_RUN` or `wait`, or make its next one return at once. From any thread."""
        with self.gate:
            if self._thread is not None:
                signal.pthread_kill(self._thread, KICK)

    def drain(self) -> None:
        """Take away a signal that did its work."""
        signal.sigtimedwait(_SET, 0)

    def wait(self) -> None:
        """Sleep until `poke`."""
        signal.sigwaitinfo(_SET)
