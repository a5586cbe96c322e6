"""One vCPU in the kernel: the run loop, what its exits mean, and how interrupts get in.

Above `cpustate.py`, `cpuid.py`, `kick.py` and `side.py`; `engine.py` makes one for each vCPU of the machine. By
the kernel's Documentation/virt/kvm/api.rst, section 5 (`kvm_run`).

The loop runs on whichever thread called `run`, unless that is the main one (see side.py). Requests from other
threads (`kick`, `interrupt`, `nmi`, `init`, `startup`) leave a note, set `_attention`, and then, if the vCPU is
`_open`, signal it. The loop opens first and looks at `_attention` then: whichever comes first, the note is seen.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import sys
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from iobus.clock import Tsc
from iobus.cpu_registers import RFLAGS_IF, Registers, Segment
from iobus.engines.kvm import abi, cpuid, cpustate, failure, ioctls
from iobus.engines.kvm.ioctls import call
from iobus.engines.kvm.kick import Kicker
from iobus.engines.kvm.side import Side
from iobus.engines.kvm.tsc import KvmTsc
from iobus.exits import EngineError, Exit, HltExit, KickExit, MmioExit, PioExit, ShutdownExit
from iobus.paging import Paging
from iobus.vcpu import VCPU, Answer

if TYPE_CHECKING:
    from iobus.engines.kvm.engine import KvmEngine

# Places in kvm_run, in units of their size.
_WINDOW: Final = abi.offset(abi.Run, "request_interrupt_window")
_IMMEDIATE_EXIT: Final = abi.offset(abi.Run, "immediate_exit")
_REASON: Final = abi.offset(abi.Run, "exit_reason") // 4
_READY: Final = abi.offset(abi.Run, "ready_for_interrupt_injection")
_IF: Final = abi.offset(abi.Run, "if_flag")
_CR8: Final = abi.offset(abi.Run, "cr8") // 8
_APIC_BASE: Final = abi.offset(abi.Run, "apic_base") // 8
_MMIO_ADDRESS: Final = abi.offset(abi.Run, "mmio", "phys_addr") // 8
_MMIO_AT: Final = abi.offset(abi.Run, "mmio", "data")
_MMIO_DATA: Final = _MMIO_AT // 8
_MMIO_LENGTH: Final = abi.offset(abi.Run, "mmio", "len") // 4
_MMIO_IS_WRITE: Final = abi.offset(abi.Run, "mmio", "is_write")
_IO_DIRECTION: Final = abi.offset(abi.Run, "io", "direction")
_IO_SIZE: Final = abi.offset(abi.Run, "io", "size")
_IO_PORT: Final = abi.offset(abi.Run, "io", "port") // 2
_IO_COUNT: Final = abi.offset(abi.Run, "io", "count") // 4
_IO_AT: Final = abi.offset(abi.Run, "io", "data_offset") // 8

_ONES: Final = (1 << 64) - 1
_MASKS: Final = tuple((1 << 8 * size) - 1 if size in (1, 2, 4, 8) else 0 for size in range(9))
"""By the size of an access; 0 where the bus has no such size."""

_RUN: Final = int(ioctls.KVM_RUN)
_INTR, _MMIO, _IO = ioctls.KVM_EXIT_INTR, ioctls.KVM_EXIT_MMIO, ioctls.KVM_EXIT_IO
_COMPLETED_BY_RUN: Final = frozenset((_MMIO, _IO, ioctls.KVM_EXIT_X86_RDMSR, ioctls.KVM_EXIT_X86_WRMSR))
"""Exits in the middle of an instruction, which the next KVM_RUN finishes before it runs on."""
_APIC_ENABLED: Final = 1 << 11


class Access(NamedTuple):
    """One access of an exit that made several."""

    is_port: bool
    address: int
    size: int
    is_write: bool
    at: int
    """Where its data is, in bytes from `kvm_run`."""


class _UnansweredError(Exception):
    """Inside a run: nobody claims the access, and the caller is to answer it."""

    def __init__(self, exit: MmioExit | PioExit) -> None:
        self.exit = exit


class KvmCpu:
    """The `Executor` of one vCPU whose interrupt controller is a Python object."""

    def __init__(self, engine: KvmEngine, vcpu: VCPU) -> None:
        vm = engine.vm
        self.engine: Final = engine
        self.vcpu: Final = vcpu
        self.traps_msrs = engine.traps_msrs
        self.fd: Final = call(vm.fd, ioctls.KVM_CREATE_VCPU, vcpu.index)
        self.shared: Final = mmap.mmap(self.fd, call(vm.system, ioctls.KVM_GET_VCPU_MMAP_SIZE))
        view = memoryview(self.shared)
        self._u8, self._u16, self._u32, self._u64 = view.cast("B"), view.cast("H"), view.cast("I"), view.cast("Q")
        self.tsc: Tsc | None = KvmTsc(self.fd, vcpu.machine.clock.now) if self.traps_msrs else None
        self._kicker = Kicker(self.fd)
        self._side = Side(f"iobus-kvm{vcpu.index}")
        self._features: object = None
        self._power_on: cpustate.PowerOn | None = None  # made when the vCPU first runs
        self._signature = 0
        self._answer: Answer | None = None
        self._rest: deque[Access] = deque()  # of the exit under way, not yet asked
        self._waiting: tuple[MmioExit | PioExit, int] | None = None  # for the caller, and where its data is
        self._cr8 = 0
        self._apic_base = cpustate.apic_base(self.fd)
        self._apic_page = -1
        # Requests; see this file's docstring.
        self._open = False
        self._attention = True
        self._kicked = False
        self._nmi = False
        self._init = False
        self._startup: int | None = None
        self.halted = False
        self._waits_for_startup = vcpu.index > 0
        self._closed = False
        self.set_registers(Registers())

    # The Executor's part that callers use.

    def run(self, answer: Answer | None) -> Exit:
        if threading.current_thread() is threading.main_thread():
            return self._side.run(partial(self._run, answer), self.kick)
        return self._run(answer)

    def kick(self) -> None:
        self._kicked = True
        self._attend_soon()

    def interrupt(self) -> None:
        self._attend_soon()

    def nmi(self) -> None:
        self._nmi = True
        self._attend_soon()

    def init(self) -> None:
        with self._kicker.gate:
            self._startup = None
            self._init = True
            if not self._kicker.running:
                self._side.forget()
                self.abandon()
                self._take_init()
                return
        self._attend_soon()

    def startup(self, vector: int) -> None:
        if self._waits_for_startup or self._init:
            self._startup = vector
            self._attend_soon()

    def unclaimed(self, exit: MmioExit | PioExit) -> int:
        if self._answer is None:
            raise _UnansweredError(exit)
        return self._answer(self.vcpu, exit)

    def get_registers(self) -> Registers:
        return cpustate.get_registers(self.fd)

    def set_registers(self, registers: Registers) -> None:
        if self._waiting is not None or self._rest:
            raise EngineError("registers cannot be set in the middle of an access: complete it with run() first")
        self.abandon()
        self._install_cpuid()
        cpustate.set_registers(self.fd, registers)
        self.halted = False
        self._u8[_READY] = 0
        self._u8[_IF] = bool(registers.rflags & RFLAGS_IF)

    def paging(self) -> Paging:
        return cpustate.paging(self.fd)

    def rip(self) -> int:
        regs = abi.Regs()
        call(self.fd, ioctls.KVM_GET_REGS, regs)
        rip: int = regs.rip
        return rip

    def power_on(self) -> None:
        """Return what INIT leaves as it is (MSRs, FPU, XCR0) to the values it had at power-on."""
        if self._power_on is not None:
            self._power_on.restore()
        self._kicked = self._nmi = False

    def close(self) -> None:
        """Free the kernel's vCPU. It must not be running."""
        if self._closed:
            return
        self._closed = True
        self._side.close()
        for view in (self._u8, self._u16, self._u32, self._u64):
            view.release()
        self.shared.close()
        os.close(self.fd)

    # The run loop.

    def _run(self, answer: Answer | None) -> Exit:
        if self._closed:
            raise EngineError("the machine is closed")
        self._answer = answer
        self._prepare()
        self._kicker.enter()
        try:
            if self._waiting is not None:
                exit, at = self._waiting
                self._waiting = None
                if not exit.is_write:
                    self._put(at, exit.size, exit.data & _MASKS[exit.size])
            pending = self._serve_rest()
            return self._loop() if pending is None else pending
        finally:
            self._open = False
            self._attention = True  # what is still wanted, the next run looks for
            self._kicker.leave()

    def _loop(self) -> Exit:
        fd, ioctl, vcpu = self.fd, fcntl.ioctl, self.vcpu
        u8, u16, u32, u64 = self._u8, self._u16, self._u32, self._u64
        while True:
            self._open = True
            if self._attention and (exit := self._attend()) is not None:
                return exit
            try:
                ioctl(fd, _RUN, 0)
            except OSError as exc:
                self._open = False
                self._came_back(exc)
                continue
            self._open = False
            if u64[_CR8] != self._cr8:
                self._cr8_changed()
            reason = u32[_REASON]
            try:
                if reason == _MMIO:
                    address, length = u64[_MMIO_ADDRESS], u32[_MMIO_LENGTH]
                    if not (mask := _MASKS[length]):
                        self._cut(address, length)
                    elif u8[_MMIO_IS_WRITE]:
                        vcpu.mmio_path.write(address, length, u64[_MMIO_DATA] & mask)
                        if address >> 12 == self._apic_page:
                            self._controller_written()
                        continue
                    else:
                        u64[_MMIO_DATA] = _ONES  # what the access ends with if a device fails
                        u64[_MMIO_DATA] = vcpu.mmio_path.read(address, length)
                        continue
                elif reason == _IO:
                    if u32[_IO_COUNT] != 1:
                        self._unroll()
                    else:
                        size, at = u8[_IO_SIZE], u64[_IO_AT] >> 2
                        if u8[_IO_DIRECTION] == ioctls.KVM_EXIT_IO_OUT:
                            vcpu.pio_path.write(u16[_IO_PORT], size, u32[at] & _MASKS[size])
                        else:
                            u32[at] = 0xFFFFFFFF
                            u32[at] = vcpu.pio_path.read(u16[_IO_PORT], size)
                        continue
                elif (ended := self._other(reason)) is not None:
                    return ended
            except _UnansweredError as pending:
                return self._hand_out(pending.exit, _MMIO_AT if reason == _MMIO else u64[_IO_AT])
            if self._rest and (handed := self._serve_rest()) is not None:
                return handed

    def _came_back(self, exc: OSError) -> None:
        """KVM_RUN returned without an exit: a signal, or an instruction finished that was not to run on."""
        if exc.errno == errno.EINTR:
            self._u8[_IMMEDIATE_EXIT] = 0
            self._u32[_REASON] = _INTR
            self._kicker.drain()
        elif exc.errno != errno.EAGAIN:
            raise EngineError(f"KVM_RUN failed: {exc.strerror}; {failure.where(self.get_registers())}") from exc

    def _other(self, reason: int) -> Exit | None:
        """Deal with the rarer exits."""
        match reason:
            case ioctls.KVM_EXIT_HLT:
                self.halted = self._attention = True
            case ioctls.KVM_EXIT_IRQ_WINDOW_OPEN:
                self._attention = True
            case ioctls.KVM_EXIT_X86_RDMSR | ioctls.KVM_EXIT_X86_WRMSR:
                self._msr(reason == ioctls.KVM_EXIT_X86_WRMSR)
            case ioctls.KVM_EXIT_SHUTDOWN:
                return ShutdownExit(self.rip())
            case ioctls.KVM_EXIT_SET_TPR | ioctls.KVM_EXIT_INTR:
                pass
            case _:
                what = failure.describe(abi.Run.from_buffer(self.shared))
                raise EngineError(f"{what}; {failure.where(self.get_registers())}")
        return None

    # Accesses.

    def _cut(self, address: int, length: int) -> None:
        """An MMIO exit of a size the bus has not: elements of the bus's sizes, largest first."""
        is_write, part = bool(self._u8[_MMIO_IS_WRITE]), 0
        while part < length:
            unit = min(8, 1 << (length - part).bit_length() - 1)
            self._rest.append(Access(False, address + part, unit, is_write, _MMIO_AT + part))
            part += unit

    def _unroll(self) -> None:
        """The elements of a string instruction's exit."""
        size, at, port = self._u8[_IO_SIZE], self._u64[_IO_AT], self._u16[_IO_PORT]
        is_write = self._u8[_IO_DIRECTION] == ioctls.KVM_EXIT_IO_OUT
        for index in range(self._u32[_IO_COUNT]):
            self._rest.append(Access(True, port, size, is_write, at + index * size))

    def _serve_rest(self) -> Exit | None:
        """Make the accesses of an exit that has several; return the one that waits for the caller."""
        vcpu, rest = self.vcpu, self._rest
        while rest:
            access = rest.popleft()
            size, at = access.size, access.at
            try:
                if access.is_write:
                    value = int.from_bytes(self._u8[at : at + size], sys.byteorder)
                    (vcpu.pio_path.write if access.is_port else vcpu.mmio_path.write)(access.address, size, value)
                else:
                    self._put(at, size, _MASKS[size])
                    self._put(
                        at, size, (vcpu.pio_path.read if access.is_port else vcpu.mmio_path.read)(access.address, size)
                    )
            except _UnansweredError as pending:
                return self._hand_out(pending.exit, at)
        return None

    def _hand_out(self, exit: MmioExit | PioExit, at: int) -> Exit:
        self._waiting = exit, at
        return exit

    def _put(self, at: int, size: int, value: int) -> None:
        self._u8[at : at + size] = value.to_bytes(size, sys.byteorder)

    def abandon(self) -> None:
        """Bring an instruction that waits for accesses to its end: reads give ones, writes are dropped.

        Not while `run` is under way.
        """
        self._waiting = None
        self._rest.clear()
        u8, u32, u64 = self._u8, self._u32, self._u64
        while (reason := u32[_REASON]) in _COMPLETED_BY_RUN:
            if reason == _IO and u8[_IO_DIRECTION] != ioctls.KVM_EXIT_IO_OUT:
                at, length = u64[_IO_AT], u8[_IO_SIZE] * u32[_IO_COUNT]
                u8[at : at + length] = b"\xff" * length
            elif reason == _MMIO:
                u64[_MMIO_DATA] = _ONES
            u8[_IMMEDIATE_EXIT] = 1
            try:
                fcntl.ioctl(self.fd, _RUN, 0)
            except InterruptedError:
                u32[_REASON] = _INTR
            finally:
                u8[_IMMEDIATE_EXIT] = 0

    # Requests.

    def _attend_soon(self) -> None:
        self._attention = True
        if self._open:
            self._kicker.poke()

    def _attend(self) -> Exit | None:
        """Do what was asked for since the last look. Returns with the vCPU open, or with an exit."""
        while self._attention:
            self._open = False
            self._attention = False
            if self._kicked or self._init:
                if self._u32[_REASON] in _COMPLETED_BY_RUN:  # then it comes back here
                    self._u8[_IMMEDIATE_EXIT] = self._attention = self._open = True
                    return None
                if self._init:
                    self._take_init()
                    self._controller_written()
                if self._kicked:
                    self._kicked = False
                    return KickExit()
            if self._waits_for_startup and not self._take_startup():
                return HltExit()
            if self._nmi and not (self.halted and cpustate.nmi_masked(self.fd)):
                self._nmi = self.halted = False
                call(self.fd, ioctls.KVM_NMI)
            self._take_interrupt()
            if self.halted and not self._attention:
                if not self._u8[_IF]:
                    return HltExit()
                self._open = True
                if not self._attention:
                    self._kicker.wait()
                self._attention = True
            self._open = True
        return None

    def _take_interrupt(self) -> None:
        """Hand the CPU the controller's interrupt if it can take one, else have the kernel say when."""
        controller = self.vcpu.controller
        if controller is None:
            return
        vector = None
        with self.vcpu.machine.lock:
            pending = controller.pending()
            if pending and self._u8[_READY]:
                vector = controller.acknowledge()
                pending = controller.pending()
        if vector is not None:
            call(self.fd, ioctls.KVM_INTERRUPT, abi.Interrupt(irq=vector))
            self._u8[_READY] = 0
            self.halted = False
        elif pending and self._u8[_IF]:
            self.halted = False
        self._u8[_WINDOW] = pending

    def _take_init(self) -> None:
        self._init = False
        cpustate.init(self.fd, self._signature)
        self._waits_for_startup = self.vcpu.index > 0
        self.halted = False
        self._u8[_READY] = self._u8[_IF] = 0
        self._u64[_CR8] = self._cr8 = 0

    def _take_startup(self) -> bool:
        """Start at the vector of a start-up message, if there is one."""
        vector, self._startup = self._startup, None
        if vector is None:
            return False
        self._waits_for_startup = False
        registers = self.get_registers()
        registers.cs = Segment(vector << 8, vector << 12, 0xFFFF, 0x9B)
        registers.rip = 0
        cpustate.set_registers(self.fd, registers)
        return True

    # The controller: CR8 and IA32_APIC_BASE are its registers and the CPU's.

    def _prepare(self) -> None:
        """Before each run: RAM, CPUID and the controller's registers as they are now."""
        self.engine.vm.map_ram(self.vcpu.machine.memory.slots)
        if self._power_on is None:
            self._install_cpuid()
            self._power_on = cpustate.PowerOn(self.fd, self.engine.vm.system, self.engine.xsave_size)
        controller = self.vcpu.controller
        if controller is not None:
            self._controller_written()
        elif self._apic_base != 0:
            self._set_apic_base(0)

    def _controller_written(self) -> None:
        """Make the CPU's registers what the controller's are."""
        controller = self.vcpu.controller
        if controller is None:
            return
        with self.vcpu.machine.lock:
            self._cr8 = controller.read_cr8()
            base = controller.read_msr(cpustate.IA32_APIC_BASE) or 0
        self._u64[_CR8] = self._cr8
        if base != self._apic_base:
            self._set_apic_base(base)

    def _set_apic_base(self, base: int) -> None:
        cpustate.write_msr(self.fd, cpustate.IA32_APIC_BASE, base)
        self._apic_base = base
        self._apic_page = base >> 12 if base & _APIC_ENABLED else -1

    def _cr8_changed(self) -> None:
        """The guest has written CR8."""
        self._cr8 = self._u64[_CR8]
        controller = self.vcpu.controller
        if controller is not None:
            with self.vcpu.machine.lock:
                controller.write_cr8(self._cr8)

    def _msr(self, is_write: bool) -> None:
        """An MSR that the kernel leaves to us: the controller's, or nobody's, which is #GP."""
        msr, controller = abi.Run.from_buffer(self.shared).msr, self.vcpu.controller
        msr.error = 1
        if controller is None:
            return
        with self.vcpu.machine.lock:
            if is_write:
                done = controller.write_msr(msr.index, msr.data)
            else:
                value = controller.read_msr(msr.index)
                done = value is not None
                msr.data = value or 0
        msr.error = not done
        if is_write:
            self._controller_written()

    def _install_cpuid(self) -> None:
        """Tell the kernel what CPUID says, unless it knows. Only before the first run."""
        vcpu, features = self.vcpu, self.vcpu.features
        if self._power_on is not None or self._features == features:
            return
        leaves = cpuid.table(self.engine.cpuid, vcpu.index, len(vcpu.machine.vcpus), features)
        cpuid.install(self.fd, leaves)
        self._features = type(features)(**vars(features))
        self._signature = next((leaf.eax for leaf in leaves if leaf.function == 1), 0)
