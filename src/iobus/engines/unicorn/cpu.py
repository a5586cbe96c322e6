"""One vCPU on the library: its thread, its hooks for I/O and CPUID, and what both ways of running share.

`native.py` and `fallback.py` derive from `UnicornCpu` and add how guest code is entered, how exceptions,
interrupts and stops get in. Guest code runs on a thread of this vCPU's own, for two reasons: a read
that no device claims must wait for its caller's answer in the middle of a block, with the library's
stack in place; and the caller's thread stays free for signals, so that Ctrl-C works.

Threads: `run` hands over to the vCPU's thread and waits; `kick`, `interrupt` and `nmi` come from any.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from iobus.clock import Tsc
from iobus.cpu_registers import RFLAGS_IF, Registers
from iobus.engines.unicorn import library as uc_api
from iobus.engines.unicorn.cpuid import CPU_SIGNATURE, Cpuid
from iobus.engines.unicorn.cpustate import CpuState
from iobus.engines.unicorn.library import Library
from iobus.exits import EngineError, Exit, HltExit, KickExit, MmioExit, PioExit
from iobus.memory import Slot
from iobus.paging import PHYSICAL_BITS, Paging
from iobus.vcpu import VCPU, Answer

if TYPE_CHECKING:
    from iobus.engines.unicorn.engine import UnicornEngine

_SIGNAL_CHECK: Final = 0.2  # seconds
_MASKS: Final = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}
_RAX, _RBX, _RCX, _RDX = 0, 3, 1, 2


class UnicornCpu:
    """The `Executor` of one vCPU, without the way into the guest."""

    traps_msrs: bool
    tsc: Tsc | None = None

    def __init__(self, engine: UnicornEngine, vcpu: VCPU) -> None:
        self.library: Final[Library] = engine.library
        self.vcpu: Final = vcpu
        self.machine: Final = vcpu.machine
        self.uc = self.library.open()
        self.halted = False
        self._answer: Answer | None = None
        self._exit: Exit | None = None  # set while a slice is being ended, or handed over
        self._raised: BaseException | None = None  # instead of an exit, handed over
        self._unseen = False  # an exit or error whose run() was left by Ctrl-C: the next run's
        self._error: BaseException | None = None  # happened under the library's frames, not yet raised
        self._further_errors: list[BaseException] = []  # the same, behind it
        self._kicked = False
        self._nmi_pending = False
        self._in_slice = False  # guest code is being run, or waits inside a callback
        self._closing = False
        self._mapped: tuple[Any, ...] | None = None
        self._callbacks: list[Any] = []  # the library keeps no reference
        # The hand-over: two locks as binary semaphores, each released by the other side.
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._runs = self._returns = 0  # how often each way
        self._lost = False  # a second Ctrl-C gave up waiting for the thread
        self._thread: threading.Thread | None = None
        # Set when a halted CPU may have something to do. Only touched while `_waiting`.
        self._wake = threading.Event()
        self._waiting = False
        self._cpuid: Cpuid | None = None
        self._install_io()

    # The Executor's part that callers use.

    def run(self, answer: Answer | None) -> Exit:
        if self._closing or self._lost:
            raise EngineError("the machine is closed" if self._closing else "a run of this vCPU was abandoned")
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name=f"vcpu{self.vcpu.index}", daemon=True)
            self._thread.start()
        if not self._unseen:
            self._answer = answer
            try:
                self._runs += 1
                self._go.release()
                # Not for ever: a signal that comes just before the wait does not interrupt it.
                while not self._done.acquire(timeout=_SIGNAL_CHECK):
                    pass
            except BaseException:  # Ctrl-C: get the guest to a clean stop, then let it go on up
                self._lost = True
                self.kick()
                while self._returns < self._runs and not self._done.acquire(timeout=_SIGNAL_CHECK):
                    pass
                self._done.acquire(blocking=False)  # back already: the signal came before or after that was taken
                self._lost = False
                self._unseen = True
                raise
        self._unseen = False
        if (error := self._raised) is not None:
            self._raised = None
            raise error
        exit = self._exit
        assert exit is not None
        return exit

    def kick(self) -> None:
        self._kicked = True
        self.poke()
        self._wake_up()

    def interrupt(self) -> None:
        self.poke()
        if self._waiting:
            self._wake.set()

    def nmi(self) -> None:
        self._nmi_pending = True
        self.poke()
        self._wake_up()

    def init(self) -> None:
        if self._in_slice and threading.current_thread() is self._thread:
            self._fail(EngineError("the guest sent INIT to its only CPU: not supported by this engine yet"))
            return
        try:
            while self._in_slice:  # an access waits for its caller: let it end, anyhow
                self.kick()
                self.run(lambda _, exit: _ones(exit.size))
        finally:
            self.set_registers(Registers(rdx=CPU_SIGNATURE))
            self._kicked = self._nmi_pending = False
            self.power_on()

    def startup(self, vector: int) -> None:
        """Nothing to do: the boot CPU never waits for a start-up message."""

    def unclaimed(self, exit: MmioExit | PioExit) -> int:
        if self._answer is not None:
            return self._answer(self.vcpu, exit)
        if self._closing:  # nobody will answer: let the block come to its end
            return _ones(exit.size)
        # Hand the access to the caller of run() and wait here, inside the instruction.
        self._exit = exit
        self._hand_over()
        self._go.acquire()
        self._exit = None
        return exit.data

    def get_registers(self) -> Registers:
        return self.state().get(self.rflags())

    def set_registers(self, registers: Registers) -> None:
        if self._in_slice:
            raise EngineError("registers cannot be set in the middle of an access: complete it with run() first")
        self.state().set(registers, running=False)
        self.put_state()
        self.library.flush_tlb(self.uc)
        self.halted = False

    def paging(self) -> Paging:
        return self.state().paging()

    def rip(self) -> int:
        return self.state().rip

    def close(self) -> None:
        """End the thread and free the instance."""
        if self._closing:
            return
        self._closing = True
        if self._thread is not None:
            self.kick()
            self._go.release()
            self._thread.join()
        self.library.close(self.uc)

    # What the two ways of running define.

    def state(self) -> CpuState:
        """Return the CPU's state as it is now."""
        raise NotImplementedError

    def put_state(self) -> None:
        """Put back what was changed in `state()`."""

    def rflags(self) -> int:
        """Return RFLAGS as they are now."""
        raise NotImplementedError

    def poke(self) -> None:
        """Make running guest code look at `_kicked`, `_error` and the controller soon. From any thread."""
        raise NotImplementedError

    def enter(self) -> None:
        """Run guest code until `_exit` is set, the CPU halts, or something asks for attention."""
        raise NotImplementedError

    def power_on(self) -> None:
        """Return what lies beside the registers (MSRs) to its power-on state."""

    def mapped_ram(self, slot: Slot, host: int) -> None:
        """`slot` was mapped from the host address `host`."""

    def invalidate(self, gpa: int, length: int) -> None:
        """Software wrote guest memory: drop translations of code there. From any thread."""
        raise NotImplementedError

    # The vCPU's thread.

    def _main(self) -> None:
        while True:
            self._go.acquire()
            try:
                self._exit = None
                self._exit = self._until_exit()
            except BaseException as exc:
                self._raised = exc
            self._hand_over()
            if self._closing:
                return

    def _hand_over(self) -> None:
        self._done.release()
        self._returns += 1  # last: who sees it can take `_done` without waiting

    def _until_exit(self) -> Exit:
        self._map_memory()
        while True:
            if self._error is not None:
                error, self._error = self._error, self._further_errors.pop(0) if self._further_errors else None
                raise error
            if self._kicked:
                self._kicked = False
                return KickExit()
            if self.halted and (exit := self.wait_halted(bool(self.rflags() & RFLAGS_IF))) is not None:
                return exit
            if self.halted:
                continue
            self._in_slice = True
            try:
                self.enter()
            finally:
                self._in_slice = False
            if self._exit is not None:
                return self._exit

    def wait_halted(self, interruptible: bool) -> Exit | None:
        """Sleep until a halted CPU has something to do. Returns `HltExit` when that can never be."""
        self._waiting = True
        try:
            while True:
                self._wake.clear()  # before looking: what comes from here on sets it again
                if self._kicked or self._error or self.nmi_wakes() or self._closing:
                    break
                if not interruptible:
                    return HltExit()
                with self.machine.lock:
                    if self.controller_pending():
                        break
                self._wake.wait()
        finally:
            self._waiting = False
        if self.nmi_wakes() or not (self._kicked or self._error):
            self.halted = False
        return None

    def nmi_wakes(self) -> bool:
        """Whether an NMI waits, and would be taken."""
        return self._nmi_pending

    def controller_pending(self) -> bool:
        """Whether the controller has an interrupt. The machine lock is held."""
        controller = self.vcpu.controller
        return controller is not None and controller.pending()

    def _wake_up(self) -> None:
        if self._waiting:
            self._wake.set()

    def _fail(self, error: BaseException) -> None:
        """End the slice with an error that happened under the library's frames; each run raises one."""
        if self._error is None:
            self._error = error
        else:  # the guest stops only at the end of its block of code
            self._further_errors.append(error)
        self.poke()

    # Memory and the I/O hooks.

    def _map_memory(self) -> None:
        slots = self.machine.memory.slots
        if self._mapped == slots:
            return
        if self._mapped is not None:
            raise EngineError("RAM was added after the machine had run: add all RAM before the first run")
        at = 0
        for slot in slots:
            if slot.base > at:
                self._map_hole(at, slot.base)
            host = ctypes.addressof(ctypes.c_char.from_buffer(slot.buffer))
            self.library.map_ram(self.uc, slot.base, slot.size, host)
            if slot.base in self.machine.memory.readonly:
                self.library.protect(self.uc, slot.base, slot.size, True)
            self.mapped_ram(slot, host)
            at = slot.base + slot.size
        self._map_hole(at, 1 << PHYSICAL_BITS)
        self._mapped = slots

    def protect(self, slot: Slot, readonly: bool) -> None:
        """Have writes to `slot` go to the buses, or to RAM again, from the next instruction on."""
        if self._mapped is not None:  # else when it is mapped
            self.library.protect(self.uc, slot.base, slot.size, readonly)

    def _map_hole(self, start: int, end: int) -> None:
        """Everything that is not RAM is asked of the buses."""
        vcpu = self.vcpu

        def read(_: int, offset: int, size: int, __: int) -> int:
            try:
                return vcpu.mmio_path.read(start + offset, size)
            except BaseException as exc:
                self._fail(exc)
                return _ones(size)

        def write(_: int, offset: int, size: int, value: int, __: int) -> None:
            try:
                vcpu.mmio_path.write(start + offset, size, value & _MASKS[size])
            except BaseException as exc:
                self._fail(exc)

        pair = uc_api.MMIO_READ_CB(read), uc_api.MMIO_WRITE_CB(write)
        self._callbacks += pair
        self.library.map_io(self.uc, start, end - start, *pair)

    def _install_io(self) -> None:
        vcpu = self.vcpu

        def port_in(_: int, port: int, size: int, __: int) -> int:
            try:
                return vcpu.pio_path.read(port & 0xFFFF, size)
            except BaseException as exc:
                self._fail(exc)
                return _ones(size)

        def port_out(_: int, port: int, size: int, value: int, __: int) -> None:
            try:
                vcpu.pio_path.write(port & 0xFFFF, size, value & _MASKS[size])
            except BaseException as exc:
                self._fail(exc)

        def write_protected(_: int, __: int, address: int, size: int, value: int, ___: int) -> bool:
            try:
                vcpu.mmio_path.write(address, size, value & _MASKS[size])
            except BaseException as exc:
                self._fail(exc)
            return True  # the library then drops the write

        self.hook(uc_api.HOOK_WRITE_PROTECTED, uc_api.WRITE_PROTECTED_CB(write_protected))
        self.hook(uc_api.HOOK_INSN, uc_api.IN_CB(port_in), instruction=uc_api.INSN_IN)
        self.hook(uc_api.HOOK_INSN, uc_api.OUT_CB(port_out), instruction=uc_api.INSN_OUT)
        self.hook(uc_api.HOOK_INSN, uc_api.CPUID_CB(self._on_cpuid), instruction=uc_api.INSN_CPUID)

    def hook(self, kind: int, callback: Any, user_data: int | None = None, instruction: int | None = None) -> None:
        """Install a hook and keep its callback alive."""
        self._callbacks.append(callback)
        self.library.add_hook(self.uc, kind, callback, user_data, instruction)

    def _on_cpuid(self, _: int, __: int) -> int:
        try:
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
        except BaseException as exc:
            self._fail(exc)
        return 1

    def tsc_hz(self) -> Callable[[], int] | None:
        """Return a function that gives the guest TSC's frequency in Hz, or None where it is not known."""
        return None

    def _apic_on(self) -> bool:
        controller = self.vcpu.controller
        if controller is None:
            return False
        with self.machine.lock:
            base = controller.read_msr(0x1B)
        return base is not None and bool(base & 1 << 11)


def _ones(size: int) -> int:
    """What nobody answers, in bytes of `size`."""
    return (1 << 8 * size) - 1
