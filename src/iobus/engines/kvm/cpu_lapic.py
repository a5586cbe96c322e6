"""One vCPU whose LAPIC is in the kernel.

Above `cpu.py`, whose run loop it is. The kernel halts, starts and interrupts it; from outside come kicks, NMIs and, for
the first CPU beside an 8259 in Python, the 8259's interrupts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iobus.cpu_registers import Registers
from iobus.engines.kvm import abi, ioctls
from iobus.engines.kvm.cpu import KvmCpu
from iobus.engines.kvm.ioctls import call
from iobus.engines.kvm.tsc import KvmTsc
from iobus.exits import Exit, HltExit
from iobus.irq import ApicBus
from iobus.vcpu import VCPU

if TYPE_CHECKING:
    from iobus.engines.kvm.engine import KvmEngine

_ASLEEP = frozenset((ioctls.KVM_MP_STATE_HALTED, ioctls.KVM_MP_STATE_UNINITIALIZED, ioctls.KVM_MP_STATE_INIT_RECEIVED))


class LapicCpu(KvmCpu):
    """The `Executor` of one vCPU with a LAPIC in the kernel. `apic_bus` is where EOIs are told."""

    def __init__(self, engine: KvmEngine, vcpu: VCPU, apic_bus: ApicBus) -> None:
        engine.sleepers.add(self.attend_soon)
        super().__init__(engine, vcpu)
        self.tsc = KvmTsc(self.fd, vcpu.machine.clock.now)
        self._apic_bus = apic_bus
        self._power_on_base = self.apic_base
        self._power_on_lapic = abi.LapicState()
        call(self.fd, ioctls.KVM_GET_LAPIC, self._power_on_lapic)

    def prepare(self) -> None:
        self.engine.sleepers.start()

    def set_registers(self, registers: Registers) -> None:
        super().set_registers(registers)
        self.engine.sleepers.woke(self.vcpu.index)
        if self._mp_state() == ioctls.KVM_MP_STATE_HALTED:
            self._set_mp_state(ioctls.KVM_MP_STATE_RUNNABLE)

    def attend(self) -> Exit | None:
        while self.nmis:
            self.nmis.popleft()
            self.engine.sleepers.woke(self.vcpu.index)
            call(self.fd, ioctls.KVM_NMI)
        self.inject()
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
        super().take_init()
        self.engine.sleepers.woke(self.vcpu.index)
        self.set_apic_base(self._power_on_base)
        call(self.fd, ioctls.KVM_SET_LAPIC, self._power_on_lapic)
        boot = self.vcpu.index == 0
        self._set_mp_state(ioctls.KVM_MP_STATE_RUNNABLE if boot else ioctls.KVM_MP_STATE_UNINITIALIZED)

    def _asleep(self) -> bool:
        """Whether the CPU waits for what no interrupt can be: an NMI, INIT or start-up."""
        state = self._mp_state()
        return state in _ASLEEP and (state != ioctls.KVM_MP_STATE_HALTED or not self.interruptible)

    def _mp_state(self) -> int:
        state = abi.MpState()
        call(self.fd, ioctls.KVM_GET_MP_STATE, state)
        value: int = state.mp_state
        return value

    def _set_mp_state(self, value: int) -> None:
        call(self.fd, ioctls.KVM_SET_MP_STATE, abi.MpState(mp_state=value))
