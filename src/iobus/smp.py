"""Running several vCPUs at once, a host thread each, until one of them has something for the caller.

Stands between `vcpu.py` and `machine.py`, which uses it when there is more than one vCPU. It knows
nothing of engines: to it a vCPU is something whose `run` returns an exit and whose `kick` ends it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from iobus.exits import Exit, HltExit, KickExit
from iobus.hung import SIGNAL_CHECK, comes_back
from iobus.vcpu import VCPU, Answer


class Gang:
    """The vCPUs of one machine, which run and pause together.

    `attention()` says whether a kicked vCPU should end the run; otherwise it goes on.
    """

    def __init__(self, vcpus: Sequence[VCPU], attention: Callable[[], bool]) -> None:
        self._vcpus = vcpus
        self._attention = attention
        self._pausing = False
        # Guards the three below. A leaf: nothing is called with it held.
        self._change = threading.Lock()
        self._parked: set[VCPU] = set()
        self._results: deque[tuple[VCPU, Exit | BaseException]] = deque()
        self._any_result = threading.Event()

    def run(self, answer: Answer | None) -> tuple[VCPU, Exit]:
        """Run all until one has an exit, pause all, and return it; what others had meanwhile, the next run returns.

        Raises what a vCPU's `run` raises. `HltExit` comes when every vCPU waits for another one; `KickExit` only
        when `attention()` said so.
        """
        if not self._results:
            self._run_until_result(answer)
        with self._change:
            vcpu, result = self._results.popleft()
        if isinstance(result, BaseException):
            raise result
        return vcpu, result

    def reset(self) -> None:
        """Forget the exits not yet returned."""
        self._results.clear()

    def _run_until_result(self, answer: Answer | None) -> None:
        self._pausing = False
        self._any_result.clear()
        self._parked.clear()
        threads = [
            threading.Thread(target=self._main, args=(vcpu, answer), name=f"iobus-vcpu{vcpu.index}", daemon=True)
            for vcpu in self._vcpus
        ]
        started = []
        try:
            for thread in threads:
                thread.start()
                started.append(thread)
            while not self._any_result.wait(SIGNAL_CHECK):
                pass
            self._pause()
            for thread in started:
                thread.join()
        except BaseException:  # Ctrl-C
            self._pause()
            comes_back(self._vcpus[0].machine, lambda seconds: _have_ended(started, seconds))
            raise

    def _pause(self) -> None:
        self._pausing = True
        for vcpu in self._vcpus:
            vcpu.kick()

    def _main(self, vcpu: VCPU, answer: Answer | None) -> None:
        """One vCPU's thread."""
        while not self._pausing:
            with self._change:
                # Together, so that nobody sees this vCPU parked and not yet woken when it has been.
                vcpu.woken.clear()
                self._parked.discard(vcpu)
            if self._pausing:  # its kick may have been what was cleared
                return
            try:
                exit = vcpu.run(answer)
            except BaseException as exc:
                self._report(vcpu, exc)
                return
            if isinstance(exit, KickExit):
                if self._pausing:
                    return
                if self._attention():
                    self._report(vcpu, exit)
                    return
            elif isinstance(exit, HltExit):
                self._park(vcpu, exit)
            else:
                self._report(vcpu, exit)
                return

    def _park(self, vcpu: VCPU, exit: HltExit) -> None:
        """Wait until another vCPU, or who else kicks it, wakes this one; tell when there is no other left."""
        with self._change:
            self._parked.add(vcpu)
            alone = all(other in self._parked and not other.woken.is_set() for other in self._vcpus)
        if alone:
            self._report(vcpu, exit)
        vcpu.woken.wait()

    def _report(self, vcpu: VCPU, result: Exit | BaseException) -> None:
        with self._change:
            self._results.append((vcpu, result))
        self._any_result.set()


def _have_ended(threads: Sequence[threading.Thread], seconds: float) -> bool:
    """Wait until all have ended, for so long at most for each; return whether they have."""
    for thread in threads:
        thread.join(seconds)
    return not any(thread.is_alive() for thread in threads)
