"""One vCPU whose LAPIC is a Python object, or that has none: its interrupts, HLT, start-up, CR8 and MSRs.

Above `cpu.py`, whose run loop it is. The kernel has no LAPIC then: HLT is an exit, vectors go in one by one, and what
a guest does to CR8, IA32_APIC_BASE and the LAPIC's MSRs is handed on to the controller.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from iobus.cpu_registers import Registers, Segment
from iobus.engines.kvm import cpustate, ioctls
from iobus.engines.kvm.cpu import KvmCpu
from iobus.engines.kvm.ioctls import call
from iobus.engines.kvm.runpage import MSR_DATA, MSR_ERROR, MSR_INDEX
from iobus.engines.kvm.tsc import KvmTsc
from iobus.exits import Exit, HltExit
from iobus.vcpu import VCPU

if TYPE_CHECKING:
    from iobus.engines.kvm.engine import KvmEngine

_SHOWN: Final = frozenset({cpustate.IA32_APIC_BASE, 0x808})
"""The controller's MSRs that change what the CPU has too: its base, and x2APIC's TPR, which is CR8."""


class UserCpu(KvmCpu):
    """The `Executor` of one vCPU without a LAPIC in the kernel."""

    def __init__(self, engine: KvmEngine, vcpu: VCPU) -> None:
        self._halted = False
        self._waits_for_startup = vcpu.index > 0
        self._vector: int | None = None  # of a start-up message
        self._nmi_given = False  # to the kernel, which may not have delivered it yet
        super().__init__(engine, vcpu)
        self.traps_msrs = engine.traps_msrs
        if self.traps_msrs:
            self.tsc = KvmTsc(self.fd, vcpu.machine.clock.now)

    def init(self) -> None:
        self._vector = None  # one that came before has no effect
        super().init()

    def startup(self, vector: int) -> None:
        # The first one starts it: to a second one it is no longer waiting, even if it has not come to start yet.
        if (self._waits_for_startup or self.init_pending) and self._vector is None:
            self._vector = vector
            self.attend_soon()

    def set_registers(self, registers: Registers) -> None:
        super().set_registers(registers)
        self._halted = False

    def prepare(self) -> None:
        if self.vcpu.controller is not None:
            self.controller_written()
        else:
            self.set_apic_base(0)

    def attend(self) -> Exit | None:
        if self._waits_for_startup and not self._start():
            return HltExit()
        if self.nmis and not (self._halted and cpustate.nmi_masked(self.fd)):
            self._halted = False
            while self.nmis:
                self.nmis.popleft()
                call(self.fd, ioctls.KVM_NMI)
                self._nmi_given = True
        if self.inject() and self.interruptible:
            self._halted = False
            if self.nmis:  # held up while it was halted; the kernel knows when it can be taken
                self.attention = True
        if self._halted and not self.attention:
            if not self.interruptible:
                return HltExit()
            self.sleep()
        return None

    def other(self, reason: int) -> bool:
        if reason == ioctls.KVM_EXIT_HLT:
            self._halted, self.attention = not self._nmi_waits(), True
        elif reason in (ioctls.KVM_EXIT_X86_RDMSR, ioctls.KVM_EXIT_X86_WRMSR):
            self._msr(reason == ioctls.KVM_EXIT_X86_WRMSR)
        else:
            return False
        return True

    def take_init(self) -> None:
        # Before the note of INIT goes: a start-up message between the two would find a CPU that does not wait for it.
        self._waits_for_startup = self.vcpu.index > 0
        super().take_init()
        self._halted = False

    def guest_changed(self, cr8: int, apic_base: int) -> None:
        moved = apic_base != self.apic_base  # only where WRMSR is not an exit
        super().guest_changed(cr8, apic_base)
        controller = self.vcpu.controller
        if controller is None:
            return
        with self.vcpu.machine.lock:
            if not self.init_pending:  # the controller has taken that INIT already, and this is from before it
                controller.write_cr8(cr8)
            if moved:
                controller.write_msr(cpustate.IA32_APIC_BASE, apic_base)
        self.controller_written()

    def controller_written(self) -> None:
        """Make CR8 and IA32_APIC_BASE, which the CPU has too, what the controller has."""
        controller = self.vcpu.controller
        if controller is None:
            return
        with self.vcpu.machine.lock:  # for all: an INIT from elsewhere, which sets them too, is not to come in between
            self.set_cr8(controller.read_cr8())
            base = controller.read_msr(cpustate.IA32_APIC_BASE) or 0
            self.set_apic_base(base)
        self.apic_page = base >> 12 if base & cpustate.APIC_ENABLED else -1

    def _start(self) -> bool:
        """Start at the vector of a start-up message, if there is one (SDM vol. 3A, section 9.4.3)."""
        vector, self._vector = self._vector, None
        if vector is None:
            return False
        self._waits_for_startup = False
        registers = self.get_registers()
        registers.cs, registers.rip = Segment(vector << 8, vector << 12, 0xFFFF, 0x9B), 0
        cpustate.set_registers(self.fd, registers)
        return True

    def _nmi_waits(self) -> bool:
        """Whether the kernel has an NMI for the CPU that has just halted: it is delivered when the CPU runs on.

        Right behind an STI or the IRET of the last NMI it could not be delivered before; the kernel makes the exit
        of HLT without a look at it.
        """
        if not self._nmi_given:
            return False
        nmi = cpustate.events(self.fd).nmi
        self._nmi_given = bool(nmi.pending)
        return self._nmi_given and not nmi.masked

    def _msr(self, is_write: bool) -> None:
        """An MSR that the kernel leaves to us: the controller's, or nobody's, which is #GP."""
        page, controller = self.page, self.vcpu.controller
        index, done = page.u32[MSR_INDEX], False
        if controller is not None:
            with self.vcpu.machine.lock:
                if is_write:
                    done = controller.write_msr(index, page.u64[MSR_DATA])
                elif (value := controller.read_msr(index)) is not None:
                    page.u64[MSR_DATA], done = value, True
        page.u8[MSR_ERROR] = not done
        if is_write and index in _SHOWN:
            self.controller_written()
