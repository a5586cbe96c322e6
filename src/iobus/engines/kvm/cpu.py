"""One vCPU in the kernel: the run loop, its accesses, and how requests and interrupts get in.

Above `runpage.py`, `cpustate.py`, `cpuid.py`, `kick.py` and `side.py`. Two kinds of vCPU derive from `KvmCpu`: one
whose LAPIC is a Python object (`cpu_user.py`), one whose LAPIC is in the kernel (`cpu_lapic.py`). By the kernel's
Documentation/virt/kvm/api.rst, section 5 (`kvm_run`).

The loop runs on whichever thread called `run`, unless that is the main one (see side.py). Requests from other
threads (`kick`, `interrupt`, `nmi`, `init`, `startup`) leave a note, set `attention`, and then, if the vCPU is
`_open`, signal it. The loop opens first and looks at `attention` then: whichever comes first, the note is seen.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
from collections import deque
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Final

from iobus.claims import device_error
from iobus.clock import Tsc
from iobus.cpu_registers import RFLAGS_IF, Registers
from iobus.engines.kvm import abi, cpuid, cpustate, failure, ioctls
from iobus.engines.kvm.ioctls import call
from iobus.engines.kvm.kick import Kicker
from iobus.engines.kvm.runpage import (
    APIC_BASE,
    CR8,
    IF,
    IMMEDIATE_EXIT,
    IO_AT,
    IO_COUNT,
    IO_DIRECTION,
    IO_PORT,
    IO_SIZE,
    MASKS,
    MMIO_AT,
    MMIO_DATA,
    MOSTLY,
    MOSTLY_AT,
    READY,
    REASON,
    WINDOW,
    Access,
    RunPage,
)
from iobus.engines.kvm.side import Side
from iobus.errors import RAISED
from iobus.exits import EngineError, Exit, KickExit, MmioExit, PioExit, ShutdownExit
from iobus.paging import Paging
from iobus.vcpu import VCPU, Answer

if TYPE_CHECKING:
    from iobus.engines.kvm.engine import KvmEngine

_GLIMPSE: Final = 0.0001  # seconds: how long a vCPU may take to leave guest code is not known

_RUN: Final = int(ioctls.KVM_RUN)
_INTR, _MMIO, _IO, _OUT = ioctls.KVM_EXIT_INTR, ioctls.KVM_EXIT_MMIO, ioctls.KVM_EXIT_IO, ioctls.KVM_EXIT_IO_OUT


class _UnansweredError(Exception):
    """Inside a run: nobody claims the access, and the caller is to answer it."""

    def __init__(self, exit: MmioExit | PioExit) -> None:
        self.exit = exit


class KvmCpu:
    """The `Executor` of one vCPU, but for what depends on where its LAPIC is."""

    traps_msrs = True
    tsc: Tsc | None = None

    def __init__(self, engine: KvmEngine, vcpu: VCPU) -> None:
        vm = engine.vm
        self.engine: Final = engine
        self.vcpu: Final = vcpu
        self.fd: Final = call(vm.fd, ioctls.KVM_CREATE_VCPU, vcpu.index)
        self.page: Final = RunPage(self.fd, call(vm.system, ioctls.KVM_GET_VCPU_MMAP_SIZE))
        self._shortcuts: Final = engine.shortcuts
        self._ring_first, self._ring_last = self._shortcuts.find_ring(self.page.view)
        self._kicker = Kicker(self.fd)
        self._side = Side(f"iobus-kvm{vcpu.index}", vcpu.machine)
        self._features: object = None
        self._power_on: cpustate.PowerOn | None = None  # made when the vCPU first runs
        self._signature = 0
        self._answer: Answer | None = None
        self._rest: deque[Access] = deque()  # of the exit under way, not yet asked
        self._waiting: tuple[MmioExit | PioExit, int] | None = None  # for the caller, and where its data is
        self._unserved = False  # the exit in kvm_run has not been looked at: coalesced writes come before it
        self.cr8 = 0
        self.apic_base = cpustate.apic_base(self.fd)
        """The two as the kernel has them, as far as is known here."""
        self.apic_page = -1
        """The page of a LAPIC in Python, whose TPR is CR8: after a write there `controller_written` is called."""
        # Requests; see this file's docstring.
        self._open = False
        self.attention = True
        self._kicked = False
        self.nmis: Final[deque[None]] = deque(maxlen=2)  # one to be taken, and one behind it; KVM drops what is more
        self.init_pending = False
        self.must_enter = False
        """A vector was given that only KVM_RUN moves to where INIT and a reset find it."""
        self._held = False
        self._released = threading.Event()
        self._closed = False
        self.set_registers(Registers())

    # The Executor's part that callers use.

    def run(self, answer: Answer | None) -> Exit:
        if threading.current_thread() is threading.main_thread():
            return self._side.run(partial(self._run, answer), self.kick)
        return self._run(answer)

    def kick(self) -> None:
        self._kicked = True
        self.attend_soon()

    def interrupt(self) -> None:
        self.attend_soon()

    def nmi(self) -> None:
        self.nmis.append(None)
        self.attend_soon()

    def init(self) -> None:
        with self._kicker.gate:
            self.init_pending = True
            if not self._kicker.running:
                self._side.forget()
                self.abandon()
                self.take_init()
                return
        self.attend_soon()

    def startup(self, vector: int) -> None:
        """Nothing to do here; see `cpu_user.py`."""

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
        self.page.u8[READY] = 0
        self.page.u8[IF] = bool(registers.rflags & RFLAGS_IF)

    def paging(self) -> Paging:
        return cpustate.paging(self.fd)

    def rip(self) -> int:
        regs = abi.Regs()
        call(self.fd, ioctls.KVM_GET_REGS, regs)
        rip: int = regs.rip
        return rip

    @property
    def running(self) -> bool:
        """Whether it is inside `run`."""
        return self._kicker.running

    def power_on(self) -> None:
        """Return what INIT leaves as it is (MSRs, FPU, XCR0) to the values it had at power-on."""
        if self._power_on is not None:
            self._power_on.restore()
        self._kicked = False
        self.nmis.clear()

    def close(self) -> None:
        """Free the kernel's vCPU. It must not be running."""
        if self._closed:
            return
        self._closed = True
        self._side.close()
        self.page.close()
        os.close(self.fd)

    # The run loop.

    def _run(self, answer: Answer | None) -> Exit:
        if self._closed:
            raise EngineError("the machine is closed")
        self._answer = answer
        self.engine.map_memory()
        if self._power_on is None:
            self._install_cpuid()
            self._power_on = cpustate.PowerOn(self.fd, self.engine.vm.system, self.engine.xsave_size)
        self.prepare()
        self._kicker.enter()
        try:
            if self._waiting is not None:
                exit, at = self._waiting
                self._waiting = None
                if not exit.is_write:
                    self.page.put(at, exit.size, exit.data & MASKS[exit.size])
            if self._shortcuts.stale:
                self._shortcuts.sync()
            pending = self._serve_rest()
            return self._loop() if pending is None else pending
        finally:
            self._open = False
            self.attention = True  # what is still wanted, the next run looks for
            self._kicker.leave()

    def _loop(self) -> Exit:
        fd, ioctl, vcpu = self.fd, fcntl.ioctl, self.vcpu
        page, memory = self.page, self.page.memory
        u8, u16, u32, u64 = page.u8, page.u16, page.u32, page.u64
        first, last, shortcuts = self._ring_first, self._ring_last, self._shortcuts
        zones, late = shortcuts.zones, shortcuts.waiting
        mmio, pio, lock, me = vcpu.mmio_path, vcpu.pio_path, vcpu.machine.lock, get_ident()
        take, give, waiting = lock.take, lock.give, lock.waiting
        unserved, self._unserved = self._unserved, False
        while True:
            if not unserved:
                self._open = True
                if self.attention and (exit := self._attend()) is not None:
                    return exit
                try:
                    ioctl(fd, _RUN)  # with an argument, even 0, Python tries it as a buffer first, which costs a lot
                except OSError as exc:
                    self._came_back(exc)
                self._open = False
            unserved = False
            # One look at the page for all that most exits need: each one by itself costs as much.
            reason, cr8, apic_base, address, data, length, is_write = MOSTLY(memory, MOSTLY_AT)
            if cr8 != self.cr8 or apic_base != self.apic_base:  # before anything ends the run: the next one's `prepare`
                self.guest_changed(cr8, apic_base)  # would undo it
            if late or (zones and u32[first] != u32[last]):
                self._unserved = True  # however the next lines end
                try:
                    shortcuts.drain(vcpu)
                except _UnansweredError as pending:
                    return self._hand_out(pending.exit, MMIO_AT)
                self._unserved = False
            if reason == _MMIO:
                path, view, slot = mmio, u64, MMIO_DATA
                mask = MASKS[length]
                if not mask:
                    self._rest.extend(page.cut(address, length))
            elif reason == _IO:
                length, address, slot = u8[IO_SIZE], u16[IO_PORT], u64[IO_AT] >> 2
                path, view, is_write, data = pio, u32, u8[IO_DIRECTION] == _OUT, u32[slot]
                mask = MASKS[length] if u32[IO_COUNT] == 1 else 0
                if not mask:
                    self._rest.extend(page.unroll())
            elif (ended := self._other(reason)) is not None:
                return ended
            else:
                continue
            if not mask:
                if (handed := self._serve_rest()) is not None:
                    return handed
                continue
            # `AccessPath.read` and `write`, and `Lock`, written out once more: an exit costs three calls less.
            try:
                claim, result = None, NotImplemented
                try:
                    take()
                except IndexError:
                    lock.wait()
                lock.owner = me
                try:
                    if is_write:
                        data &= mask
                        call, at, claim = path.writes[length][address]
                        result = call(at, length, data)
                    else:
                        call, at, claim = path.reads[length][address]
                        result = call(at, length)
                        if type(result) is int and 0 <= result <= mask:
                            view[slot] = result
                            continue
                except RAISED as exc:
                    if claim is not None:
                        raise device_error(claim, address, length, data if is_write else None, exc) from exc
                finally:
                    lock.owner = 0
                    give(True)
                    if waiting:
                        lock.wake()
                if not is_write:
                    view[slot] = path.read_on(address, length, claim, result)
                elif result is NotImplemented:
                    path.write_on(address, length, data, claim)
                if is_write and address >> 12 == self.apic_page:
                    self.controller_written()
            except _UnansweredError as pending:
                return self._hand_out(pending.exit, slot * view.itemsize)
            except BaseException:
                page.answer_with_ones()  # what a read ends with if its device fails
                raise

    def _came_back(self, exc: OSError) -> None:
        """KVM_RUN returned without an exit: a signal, or an instruction finished that was not to run on."""
        self._open = False
        if exc.errno == errno.EINTR:
            self.page.u8[IMMEDIATE_EXIT] = 0
            self._kicker.drain()
            self.attention = True
        elif exc.errno != errno.EAGAIN:
            raise EngineError(f"KVM_RUN failed: {exc.strerror}; {failure.where(self.get_registers())}") from exc
        self.page.u32[REASON] = _INTR

    def _other(self, reason: int) -> Exit | None:
        """Deal with the rarer exits."""
        match reason:
            case ioctls.KVM_EXIT_IRQ_WINDOW_OPEN:
                self.attention = True
            case ioctls.KVM_EXIT_SHUTDOWN:
                return ShutdownExit(self.rip())
            case ioctls.KVM_EXIT_SET_TPR | ioctls.KVM_EXIT_INTR:
                pass
            case _:
                if not self.other(reason):
                    what = failure.describe(abi.Run.from_buffer(self.page.memory))
                    raise EngineError(f"{what}; {failure.where(self.get_registers())}")
        return None

    # Accesses.

    def _serve_rest(self) -> Exit | None:
        """Make the accesses of an exit that has several; return the one that waits for the caller."""
        vcpu, rest, page = self.vcpu, self._rest, self.page
        while rest:
            access = rest.popleft()
            size, at = access.size, access.at
            try:
                if access.is_write:
                    value = page.get(at, size)
                    (vcpu.pio_path.write if access.is_port else vcpu.mmio_path.write)(access.address, size, value)
                else:
                    page.put(at, size, MASKS[size])
                    page.put(
                        at, size, (vcpu.pio_path.read if access.is_port else vcpu.mmio_path.read)(access.address, size)
                    )
            except _UnansweredError as pending:
                return self._hand_out(pending.exit, at)
        return None

    def _hand_out(self, exit: MmioExit | PioExit, at: int) -> Exit:
        self._waiting = exit, at
        return exit

    def abandon(self) -> None:
        """Bring an instruction that waits for accesses to its end: reads give ones, writes are dropped.

        Not while `run` is under way.
        """
        self._waiting, self._unserved = None, False
        self._rest.clear()
        page, u8 = self.page, self.page.u8
        while page.within_instruction():
            page.answer_with_ones()
            u8[IMMEDIATE_EXIT] = 1
            try:
                fcntl.ioctl(self.fd, _RUN)
            except InterruptedError:
                page.u32[REASON] = _INTR
            finally:
                u8[IMMEDIATE_EXIT] = 0

    # Requests.

    def attend_soon(self) -> None:
        """Have the run loop look at what is asked for. From any thread, after the note of it."""
        self.attention = True
        if self._open:
            self._kicker.poke()

    def _attend(self) -> Exit | None:
        """Do what was asked for since the last look. Returns with the vCPU open, or with an exit."""
        while self.attention:
            self._open = False
            self.attention = False
            if self._held:
                self._released.wait()
            self.engine.map_memory()
            if self._kicked or self.init_pending:
                if self._finish_first():
                    self._open = True
                    if not self._held:
                        return None
                    continue  # `hold` came meanwhile, did not find it open, and has set `attention`
                if self.init_pending:
                    self.take_init()
                    with self.vcpu.machine.lock:  # what the CPU did to it between the message and now is from before
                        if (controller := self.vcpu.controller) is not None:
                            controller.init()
                    self.prepare()
                if self._kicked:
                    self._kicked = False
                    return KickExit()
            if (exit := self.attend()) is not None:
                return exit
            self._open = True
            if self.must_enter:
                self.must_enter = False
                if self.attention:  # it comes back as soon as the kernel has taken the vector
                    self._kicker.poke()
                return None
        return None

    def hold(self) -> None:
        """Keep the vCPU out of guest code until `release`. From another thread than its own, or its own."""
        self._released.clear()
        self._held = True
        self.attend_soon()
        while self._open:
            time.sleep(_GLIMPSE)

    def release(self) -> None:
        """Let it go on."""
        self._held = False
        self._released.set()

    def inject(self) -> bool:
        """Give the CPU the controller's interrupt if it can take one, else have the kernel say when it can.

        Returns whether one is pending, or was given.
        """
        controller = self.vcpu.controller
        if controller is None:
            return False
        vector = None
        with self.vcpu.machine.lock:
            pending = controller.pending()
            # An instruction that is not finished may yet fault, and the kernel then drops an interrupt it was given.
            if pending and self.page.u8[READY] and not self._finish_first():
                vector = controller.acknowledge()
                pending = controller.pending()
        if vector is not None:
            call(self.fd, ioctls.KVM_INTERRUPT, abi.Interrupt(irq=vector))
            self.page.u8[READY] = 0
        self.page.u8[WINDOW] = pending
        return pending or vector is not None

    def _finish_first(self) -> bool:
        """In the middle of an instruction, have KVM_RUN finish it and come back; return whether that is so."""
        if not self.page.within_instruction():
            return False
        self.page.u8[IMMEDIATE_EXIT] = True
        return True

    @property
    def interruptible(self) -> bool:
        """RFLAGS.IF, as the last exit or the caller left it."""
        return bool(self.page.u8[IF])

    def sleep(self) -> None:
        """Wait for a request."""
        self._open = True
        if not self.attention:
            self._kicker.wait()
        self.attention = True

    def _install_cpuid(self) -> None:
        """Tell the kernel what CPUID says, unless it knows. Only before the first run."""
        vcpu, features = self.vcpu, self.vcpu.features
        if self._power_on is not None or self._features == features:
            return
        leaves = cpuid.table(self.engine.cpuid, vcpu.index, len(vcpu.machine.vcpus), features)
        cpuid.install(self.fd, leaves)
        self._features = type(features)(**vars(features))
        self._signature = next((leaf.eax for leaf in leaves if leaf.function == 1), 0)

    # What depends on where the LAPIC is.

    def prepare(self) -> None:
        """Before each run and after INIT: make the CPU's registers what the controller's are."""

    def attend(self) -> Exit | None:
        """Take NMIs and interrupts, wait in HLT, start up."""
        raise NotImplementedError

    def other(self, reason: int) -> bool:
        """Deal with an exit of this kind of vCPU; return whether it was one."""
        raise NotImplementedError

    def take_init(self) -> None:
        """Put the CPU in the INIT state."""
        self.init_pending = False
        self.nmis.clear()  # INIT drops them
        cpustate.init(self.fd, self._signature)
        self.page.u8[READY] = self.page.u8[IF] = 0
        self.set_cr8(0)

    def set_cr8(self, value: int) -> None:
        """Have the CPU go on with this CR8."""
        self.page.u64[CR8] = self.cr8 = value

    def set_apic_base(self, value: int) -> None:
        """Have the CPU go on with this IA32_APIC_BASE."""
        if value != self.apic_base:
            cpustate.write_msr(self.fd, cpustate.IA32_APIC_BASE, value)
            self.page.u64[APIC_BASE] = self.apic_base = value

    def guest_changed(self, cr8: int, apic_base: int) -> None:
        """The guest has written CR8 or IA32_APIC_BASE, without an exit."""
        self.cr8, self.apic_base = cr8, apic_base

    def controller_written(self) -> None:
        """The guest has written a register of the controller's."""
