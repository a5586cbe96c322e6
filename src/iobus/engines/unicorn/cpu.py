"""One vCPU on the library: what others ask of it, and what it has for the caller of `run`.

`native.py` and `fallback.py` derive from `UnicornCpu` and add how guest code is entered, how exceptions,
interrupts and stops get in. Guest code runs on the engine's thread (runner.py) in the library's CPU
(instance.py): `run` leaves word there and waits. What is asked from other threads is a flag here,
which the engine's thread looks at in `settle`, between two slices of guest code, or in the slice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from iobus.bus import MOST
from iobus.clock import Tsc
from iobus.cpu_registers import RFLAGS_IF, Registers, Segment
from iobus.engines.unicorn.cpuid import CPU_SIGNATURE, Cpuid
from iobus.engines.unicorn.cpustate import CpuState
from iobus.engines.unicorn.instance import Instance
from iobus.engines.unicorn.library import Library
from iobus.engines.unicorn.runner import Runner
from iobus.exits import EngineError, Exit, HltExit, KickExit, MmioExit, PioExit
from iobus.hung import SIGNAL_CHECK, comes_back
from iobus.paging import Paging
from iobus.vcpu import VCPU, Answer

_RAX, _RBX, _RCX, _RDX = 0, 3, 1, 2
_main_thread: Final = threading.main_thread().ident


class UnicornCpu:
    """The `Executor` of one vCPU, without the way into the guest."""

    traps_msrs: bool
    tsc: Tsc | None = None

    def __init__(self, instance: Instance, vcpu: VCPU) -> None:
        self.instance = instance
        self.runner: Final[Runner] = instance.runner
        self.library: Final[Library] = instance.library
        self.uc: Final = instance.uc
        self.vcpu: Final = vcpu
        self.machine: Final = vcpu.machine
        self.running = False
        """Inside `run`, and not handed over. Set by its caller, cleared by the engine's thread."""
        self.used = 0
        """How long it has run, in ns of host time, or as if it had: who has run least goes next."""
        self.called = False
        """Something has come up since it last looked, in its code or, where it has none to run, outside."""
        self.asleep = False
        """It has no code to run until it is called."""
        self.halted = False
        self._waits_for_startup = False
        self._answer: Answer | None = None
        self._exit: Exit | None = None  # ends the slice
        self._outcome: Exit | BaseException | None = None  # handed over
        self._unseen = False  # an exit or error whose run() was left by Ctrl-C: the next run's
        self._errors: list[BaseException] = []  # happened under the library's frames, not yet raised
        self._in_slice = False  # guest code is being run, or waits inside a callback
        # Requests, each set from any thread.
        self._kicked = False
        self._interrupted = False  # the controller is to be asked
        self._nmis: Final[deque[None]] = deque(maxlen=2)  # one to be taken, and one behind it
        self._init_pending = False
        self._startup: int | None = None
        self._cut: threading.Event | None = None  # the access under way is to end anyhow; set when it has
        # The hand-over back: a binary semaphore.
        self._done = threading.Lock()
        self._done.acquire()
        self._runs = self._returns = 0  # how often each way
        self._lost = False  # the wait for the thread was given up
        self._cpuid: Cpuid | None = None
        self.runner.cpus.append(self)
        vcpu.mmio.on_change(instance.devices_changed)

    # The Executor's part that callers use.

    def run(self, answer: Answer | None) -> Exit:
        runner = self.runner
        if runner.closing or self._lost:
            raise EngineError("the machine is closed" if runner.closing else "a run of this vCPU was abandoned")
        if not self._unseen:
            self._answer = answer
            runner.start()
            try:
                self._runs += 1
                self._interrupted = True
                self.running = True
                runner.call(self, leave=not self._in_slice)  # in a slice, its access waits for the answer
                if threading.get_ident() == _main_thread:
                    # Not for ever: a signal that comes just before the wait does not interrupt it.
                    while not self._done.acquire(timeout=SIGNAL_CHECK):
                        pass
                else:
                    self._done.acquire()
            except BaseException:  # Ctrl-C: get the guest to a clean stop, then let it go on up
                self._lost = True
                self.kick()
                if comes_back(self.machine, self._has_returned):
                    self._done.acquire(blocking=False)  # back already: the signal came before or after that was taken
                    self._lost = False
                    self._unseen = True
                raise
        self._unseen = False
        outcome = self._outcome
        if isinstance(outcome, BaseException):
            raise outcome
        assert outcome is not None
        return outcome

    def _has_returned(self, seconds: float) -> bool:
        return self._returns >= self._runs or self._done.acquire(timeout=seconds)

    def kick(self) -> None:
        self._kicked = True
        self.runner.call(self, leave=True)

    def interrupt(self) -> None:
        self._interrupted = True
        self.runner.call(self)

    def nmi(self) -> None:
        self._nmis.append(None)
        self.runner.call(self)

    def init(self) -> None:
        self._startup = None
        self._nmis.clear()
        self._init_pending = True
        if self._in_slice and not self.running and self._cut is None:
            self._cut = threading.Event()
        self.runner.call(self, leave=True)

    def startup(self, vector: int) -> None:
        if self._waits_for_startup or (self._init_pending and self.vcpu.index):
            self._startup = vector
            self.runner.call(self, leave=True)

    def unclaimed(self, exit: MmioExit | PioExit) -> int:
        if self._answer is not None:
            return self._answer(self.vcpu, exit)
        # Hand the access to the caller of run() and wait here, inside the instruction.
        self._hand_over(exit)
        self.runner.wait_until(lambda: self.running or self._cut is not None)
        if self.running:
            return exit.data
        self.instance.cut_off()  # nobody will answer: let the block come to its end
        return MOST[exit.size]

    def get_registers(self) -> Registers:
        self._settled()
        return self.state().get(self.rflags())

    def set_registers(self, registers: Registers) -> None:
        self._settled()
        if self._in_slice:
            raise EngineError("registers cannot be set in the middle of an access: complete it with run() first")
        self._set_registers(registers)

    def paging(self) -> Paging:
        self._settled()
        return self.state().paging()

    def rip(self) -> int:
        self._settled()
        return self.state().rip

    # What the two ways of running define.

    def state(self) -> CpuState:
        """Return the CPU's state as it is now."""
        raise NotImplementedError

    def put_state(self) -> None:
        """Put back what was changed in `state()`."""

    def rflags(self) -> int:
        """Return RFLAGS as they are now."""
        raise NotImplementedError

    def enter(self) -> None:
        """Run guest code until `_exit` is set, the CPU halts, or the runner's attention is wanted."""
        raise NotImplementedError

    def power_on(self) -> None:
        """Return what lies beside the registers (MSRs) to its power-on state."""

    def flush(self) -> None:
        """Drop the CPU's address translations: registers that they depend on were changed."""

    def leave(self) -> None:
        """What it has for its caller is about to be handed over: its state may be looked at, and changed."""

    # On the engine's thread.

    def slice(self) -> None:
        """Run guest code for a while."""
        self.instance.map_memory()
        self.instance.runs_here()
        self._in_slice = True
        try:
            self.enter()
        finally:
            self._in_slice = False
            if (cut := self._cut) is not None:
                self._exit = None
                self._take_init()
                self.instance.take(self)
                self._cut = None
                cut.set()

    def settle(self) -> bool:
        """Take what is asked of it, outside guest code; hand over what there is for `run`'s caller.

        Returns whether it has code to run.
        """
        if self.halted:
            self.asleep = self.called = False  # before looking: what comes from here on sets it again
        if (exit := self._exit) is not None:
            self._exit = None
            return self._hand_over(exit)
        if self._errors:
            return self._hand_over(self._errors.pop(0))
        self._take_init()
        if self._kicked:
            self._kicked = False
            return self._hand_over(KickExit())
        if self._waits_for_startup:
            return self._hand_over(HltExit())
        if not self.halted:
            return True
        if self.wakes():
            self.called = True
            return True
        if not self.rflags() & RFLAGS_IF:
            return self._hand_over(HltExit())
        self.asleep = True
        return False

    def wakes(self) -> bool:
        """Wake the halted CPU if it is interrupted; return whether it was."""
        if self.nmi_wakes():
            self.halted = False
        elif self._interrupted:
            self._interrupted = False
            if self.rflags() & RFLAGS_IF:
                with self.machine.lock:
                    controller = self.vcpu.controller
                    self.halted = controller is None or not controller.pending()
        return not self.halted

    def nmi_wakes(self) -> bool:
        """Whether an NMI waits, and would be taken."""
        return bool(self._nmis)

    def fail(self, error: BaseException) -> None:
        """End the slice with an error that happened under the library's frames; each run raises one.

        There may be more than one, for the guest stops only at the end of its block of code.
        """
        self._errors.append(error)
        self.runner.call(self, leave=True)

    def on_cpuid(self) -> None:
        """The CPUID instruction."""
        if self._cpuid is None:
            self._cpuid = Cpuid(
                self.vcpu.index, len(self.machine.vcpus), self.vcpu.features,
                traps_msrs=self.traps_msrs, tsc_hz=self.tsc_hz(),
            )  # fmt: skip
        state = self.state()
        leaf, subleaf = state.u64[_RAX] & 0xFFFFFFFF, state.u64[_RCX] & 0xFFFFFFFF
        answer = self._cpuid(leaf, subleaf, apic_on=self._apic_on())
        for index, value in zip((_RAX, _RBX, _RCX, _RDX), answer, strict=True):
            state.u64[index] = value
        self.put_state()

    def tsc_hz(self) -> Callable[[], int] | None:
        """Return a function that gives the guest TSC's frequency in Hz, or None where it is not known."""
        return None

    # Within.

    def _hand_over(self, outcome: Exit | BaseException) -> bool:
        if not self._in_slice:
            self.leave()
        self._outcome = outcome
        self.running = False
        self._done.release()
        self._returns += 1  # last: who sees it can take `_done` without waiting
        return False

    def _settled(self) -> None:
        """For who looks at the CPU while it is not running: let an INIT have happened, and a start-up."""
        if (cut := self._cut) is not None:
            cut.wait()
        if not self.running:
            self._take_init()

    def _take_init(self) -> None:
        """Take an INIT, by the SDM vol. 3A, table 10-1, and a start-up message.

        The boot CPU starts at the reset vector. The others wait, and start in real mode at `vector << 12`.
        """
        if self._init_pending:
            self._waits_for_startup = self.vcpu.index > 0
            self._init_pending = False  # only now, so that a start-up message in between finds one or the other
            self.power_on()
            self._set_registers(Registers(rdx=CPU_SIGNATURE))
        if (vector := self._startup) is not None:
            self._startup = None
            if self._waits_for_startup:
                code = Segment(vector << 8, vector << 12, 0xFFFF, 0x9B)
                self._set_registers(Registers(rdx=CPU_SIGNATURE, cs=code, rip=0))
                self._waits_for_startup = False

    def _set_registers(self, registers: Registers) -> None:
        self.state().set(registers, running=False)
        self.put_state()
        self.flush()
        self.halted = False

    def _apic_on(self) -> bool:
        controller = self.vcpu.controller
        if controller is None:
            return False
        with self.machine.lock:
            base = controller.read_msr(0x1B)
        return base is not None and bool(base & 1 << 11)
