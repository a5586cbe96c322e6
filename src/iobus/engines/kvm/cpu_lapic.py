"""One vCPU whose LAPIC is in the kernel.

Above `cpu.py`, whose run loop it is. The kernel halts, starts and interrupts it; from outside come kicks, NMIs and, for
the first CPU beside an 8259 in Python, the 8259's interrupts.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from iobus.cpu_registers import Registers
from iobus.engines.kvm import abi, cpustate, ioctls
from iobus.engines.kvm.cpu import KvmCpu
from iobus.engines.kvm.ioctls import call
from iobus.engines.kvm.runpage import READY
from iobus.engines.kvm.tsc import KvmTsc
from iobus.exits import Exit, HltExit
from iobus.irq import ApicBus
from iobus.vcpu import VCPU

if TYPE_CHECKING:
    from iobus.engines.kvm.engine import KvmEngine

_WAITS_FOR_STARTUP = frozenset((ioctls.KVM_MP_STATE_UNINITIALIZED, ioctls.KVM_MP_STATE_INIT_RECEIVED))
_ASLEEP = _WAITS_FOR_STARTUP | {ioctls.KVM_MP_STATE_HALTED}
_LVT_LINT1, _MODE_AND_MASK, _NMI = 0x360, 0x10700, 0x400


class LapicCpu(KvmCpu):
    """The `Executor` of one vCPU with a LAPIC in the kernel. `apic_bus` is where EOIs are told."""

    def __init__(self, engine: KvmEngine, vcpu: VCPU, apic_bus: ApicBus) -> None:
        engine.sleepers.add(self.attend_soon, vcpu.woken.set)
        super().__init__(engine, vcpu)
        self.tsc = KvmTsc(self.fd, vcpu.machine.clock.now)
        self._apic_bus = apic_bus
        self._lint1 = False  # an edge that came there
        self._power_on_base = self.apic_base
        self._power_on_lapic = abi.LapicState()
        call(self.fd, ioctls.KVM_GET_LAPIC, self._power_on_lapic)

    def prepare(self) -> None:
        self.engine.sleepers.start()
        self.engine.sleepers.begin(self.vcpu.index)

    def set_registers(self, registers: Registers) -> None:
        super().set_registers(registers)
        self.engine.sleepers.woke(self.vcpu.index)
        if self._mp_state() == ioctls.KVM_MP_STATE_HALTED:
            self._set_mp_state(ioctls.KVM_MP_STATE_RUNNABLE)

    def lint1(self) -> None:
        """An edge at LINT1. What it does only the LAPIC knows, which this vCPU's own thread asks."""
        self._lint1 = True
        self.attend_soon()
        self.vcpu.woken.set()

    def attend(self) -> Exit | None:
        if self._lint1:
            self._lint1 = False
            if self._lint1_is_nmi():
                self.nmis.append(None)
        if self.nmis and self._waits_for_startup():
            self.nmis.clear()  # as INIT does; the kernel would keep them, and not let the CPU sleep
        while self.nmis:
            self.nmis.popleft()
            self.engine.sleepers.woke(self.vcpu.index)
            call(self.fd, ioctls.KVM_NMI)
        ready = self.page.u8[READY]
        self.inject()
        if ready and not self.page.u8[READY]:  # an 8259's vector, which the kernel has no other way to forget
            self.must_enter = True
            self._set_mp_state(ioctls.KVM_MP_STATE_RUNNABLE)
        if self.engine.sleepers.look(self.vcpu.index, self._asleep):
            return HltExit()
        return None

    def other(self, reason: int) -> bool:
        if reason != ioctls.KVM_EXIT_IOAPIC_EOI:
            return False
        with self.vcpu.machine.lock:
            self._apic_bus.eoi(abi.Run.from_buffer(self.page.memory).eoi.vector)
        return True

    def take_init(self) -> None:
        """As at power-on: the kernel itself takes the INITs that CPUs send each other."""
        self._mp_state()  # has the kernel take an INIT or start-up that is under way: before, not after
        super().take_init()
        self.engine.sleepers.woke(self.vcpu.index)
        self.set_apic_base(self._power_on_base)
        call(self.fd, ioctls.KVM_SET_LAPIC, self._power_on_lapic)
        boot = self.vcpu.index == 0
        self._set_mp_state(ioctls.KVM_MP_STATE_RUNNABLE if boot else ioctls.KVM_MP_STATE_UNINITIALIZED)

    def _asleep(self) -> bool:
        """Whether the CPU waits for what no interrupt can be: an NMI, INIT or start-up."""
        if self.page.within_instruction():  # asking would have the kernel take an INIT before the instruction's end
            return False
        state = self._mp_state()
        return state in _ASLEEP and (state != ioctls.KVM_MP_STATE_HALTED or not self.interruptible)

    def _waits_for_startup(self) -> bool:
        return not self.page.within_instruction() and self._mp_state() in _WAITS_FOR_STARTUP

    def _lint1_is_nmi(self) -> bool:
        state = abi.LapicState()
        call(self.fd, ioctls.KVM_GET_LAPIC, state)
        (entry,) = struct.unpack_from("<I", state, _LVT_LINT1)
        return entry & _MODE_AND_MASK == _NMI or not self.apic_base & cpustate.APIC_ENABLED

    def _mp_state(self) -> int:
        state = abi.MpState()
        call(self.fd, ioctls.KVM_GET_MP_STATE, state)
        value: int = state.mp_state
        return value

    def _set_mp_state(self, value: int) -> None:
        call(self.fd, ioctls.KVM_SET_MP_STATE, abi.MpState(mp_state=value))
