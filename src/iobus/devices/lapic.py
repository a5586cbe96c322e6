"""The local APIC: a vCPU's own interrupt controller, in xAPIC and x2APIC mode.

Intel SDM vol. 3A, chapter 11, whose section numbers the docstrings give. It registers on its vCPU's
bus and relocates itself when the guest writes IA32_APIC_BASE. This file is what software sees: the
registers as a page and as MSRs. What becomes of interrupts is in `lapic_core.py`, the timer in
`lapic_timer.py`, the register map in `lapic_registers.py`. LINT0 is where the 8259's INTR arrives, LINT1
takes the NMI.

What the manual leaves open is so here: an access that is no 32-bit one on a 16-byte boundary reads the
register's bytes (zero beyond its four) and writes nothing, but 8-byte ones act as 4-byte ones; a
message arrives as it is sent, so delivery status reads idle; SMIs are dropped, this CPU has no SMM;
disabling in IA32_APIC_BASE loses all state but TPR, which stays CR8's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from iobus.bus import Bus, Device, Region
from iobus.clock import Clock
from iobus.devices import lapic_registers as r
from iobus.devices.lapic_core import LINT0, LVTS, LapicCore, LapicState
from iobus.devices.lapic_timer import TscClock as TscClock
from iobus.irq import ApicBus, DeliveryMode, Processor
from iobus.state import StateError


class Lapic(LapicCore, Device):
    """One vCPU's local APIC: an `irq.Controller` and an `irq.ApicClient`.

    `intack` runs the 8259's INTA cycle and returns its vector; without it no ExtINT is ever pending.
    `tsc` gives the timer its TSC-deadline mode. Both and `x2apic` must agree with the guest's CPUID, as
    must `physical_bits`, the width of a physical address. An ID above 0xFE needs `x2apic`, and 0xFF can be
    nobody's: it is the broadcast of all that has 8 bits for a destination.
    """

    length = 0x1000

    def __init__(
        self,
        apic_id: int,
        processor: Processor,
        apic_bus: ApicBus,
        clock: Clock,
        *,
        bsp: bool,
        intack: Callable[[], int | None] | None = None,
        tsc: TscClock | None = None,
        x2apic: bool = False,
        physical_bits: int = 40,
    ) -> None:
        if not 0 <= apic_id < (r.BROADCAST if x2apic else r.XAPIC_BROADCAST) or apic_id == r.XAPIC_BROADCAST:
            limit = "0 to 0xfffffffe, but not 0xff, which is the broadcast" if x2apic else "0 to 0xfe without x2APIC"
            raise ValueError(f"APIC ID {apic_id:#x}: an ID is from {limit}")
        super().__init__(apic_id, processor, apic_bus, clock, bsp, intack, tsc)
        self.name = f"lapic{apic_id}"
        self._base_reserved = ~(r.BASE_BSP | r.BASE_EN | (r.BASE_EXTD if x2apic else 0) | (1 << physical_bits) - 0x1000)
        self._lvt_writable = r.LVT_WRITABLE | {
            r.LVT_TIMER: r.LVT_WRITABLE[r.LVT_TIMER] & ~(0 if tsc else r.LVT_TIMER_TSC_DEADLINE)
        }
        self._region: Region | None = None
        self._readers = self._make_readers()
        self._writers = self._make_writers()

    # What the machine calls.

    def attach(self, bus: Bus) -> Region:
        """Register on the vCPU's `bus`, where IA32_APIC_BASE says, from now on always there."""
        self._region = bus.attach(self, self.state.apic_base & ~0xFFF)
        self._place()
        return self._region

    def reset(self) -> None:
        """Power-up state (section 11.4.7.1). The levels at the LINT pins are their sources'."""
        self.state = self._fresh_state(lint=self.state.lint)
        self.restored()

    def restore(self, plain: object) -> None:
        base = LapicState.restore(plain).apic_base
        if base & self._base_reserved or base & r.BASE_MODE == r.BASE_EXTD:
            raise StateError(f"LapicState.apic_base: {base:#x} is no value that IA32_APIC_BASE can have here")
        super().restore(plain)

    def restored(self) -> None:
        self._timer.load(self.state.timer)
        self._place()
        self._update()

    def virtual_wire(self) -> None:
        """Leave it as a PC's firmware does: enabled, LINT0 passing the 8259's interrupts, LINT1 the NMI."""
        self._write_svr(r.SVR_ENABLE | 0xFF)
        self._write_lvt(r.LVT_LINT0, DeliveryMode.EXTINT << 8)
        self._write_lvt(r.LVT_LINT1, DeliveryMode.NMI << 8)

    # MSRs: the rest of irq.Controller.

    def handles_msr(self, index: int) -> bool:
        """Whether `read_msr` and `write_msr` decide about this MSR."""
        return index in (r.IA32_APIC_BASE, r.IA32_TSC_DEADLINE) or r.X2APIC_MSRS <= index < r.X2APIC_MSRS_END

    def read_msr(self, index: int) -> int | None:
        if index == r.IA32_APIC_BASE:
            return self.state.apic_base
        if index == r.IA32_TSC_DEADLINE:
            return self._timer.read_tsc_deadline() if self._tsc else None
        register = index - r.X2APIC_MSRS << 4
        if not self.x2apic_mode or register not in r.X2APIC_READABLE:
            return None
        return self.state.icr if register == r.ICR_LOW else self._readers[register]()

    def write_msr(self, index: int, value: int) -> bool:
        if index == r.IA32_APIC_BASE:
            return self._write_base(value)
        if index == r.IA32_TSC_DEADLINE:
            self._timer.write_tsc_deadline(value)
            return self._tsc is not None
        register = index - r.X2APIC_MSRS << 4
        reserved = r.X2APIC_RESERVED.get(register)
        if not self.x2apic_mode or reserved is None or value & reserved:
            return False
        if register == r.LVT_TIMER and value & r.LVT_TIMER_TSC_DEADLINE and not self._tsc:
            return False
        if register == r.ICR_LOW:
            self.state.icr = value & (0xFFFFFFFF << 32 | r.ICR_LOW_WRITABLE)
            self._send_ipi()
        elif register == r.SELF_IPI:
            self._send(r.ICR_SELF | value, 0)
        else:
            self._writers[register](value)
        return True

    # Accesses to the page (section 11.4.1).

    def read(self, offset: int, size: int) -> int:
        within = offset & 0xF
        if within + size > 4 and (within or size != 8):
            return 0
        reader = self._readers.get(offset & 0xFF0)
        if reader is None:
            self._error(r.ERROR_ILLEGAL_REGISTER)
            return 0
        return reader() >> 8 * within & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        if offset & 0xF or size < 4:
            return
        writer = self._writers.get(offset)
        if writer is not None:
            writer(value & 0xFFFFFFFF)
        elif offset not in self._readers:
            self._error(r.ERROR_ILLEGAL_REGISTER)

    def _make_readers(self) -> dict[int, Callable[[], int]]:
        readers: dict[int, Callable[[], int]] = {
            r.ID: lambda: self.apic_id if self.x2apic_mode else self.state.id << 24,
            r.VERSION: lambda: r.VERSION_VALUE,
            r.TPR: lambda: self.state.tpr,
            r.APR: self._apr,
            r.PPR: self._ppr,
            r.EOI: lambda: 0,
            r.RRD: lambda: 0,  # remote read went with the Pentium 4
            r.LDR: self._ldr,
            r.DFR: lambda: self.state.dfr,
            r.SVR: lambda: self.state.svr,
            r.ESR: lambda: self.state.esr,
            r.ICR_LOW: lambda: self.state.icr & 0xFFFFFFFF,
            r.ICR_HIGH: lambda: self.state.icr >> 32,
            r.LVT_TIMER: lambda: self.state.timer.lvt,
            r.INITIAL_COUNT: lambda: self.state.timer.initial_count,
            r.CURRENT_COUNT: self._timer.current_count,
            r.DIVIDE_CONFIGURATION: lambda: self.state.timer.divide_configuration,
        }
        for place, register in enumerate(LVTS):
            readers[register] = partial(self._read_lvt, place)
        for word in range(8):
            readers[r.ISR + 16 * word] = partial(lambda shift: self.state.isr >> shift & 0xFFFFFFFF, 32 * word)
            readers[r.TMR + 16 * word] = partial(lambda shift: self.state.tmr >> shift & 0xFFFFFFFF, 32 * word)
            readers[r.IRR + 16 * word] = partial(lambda shift: self.state.irr >> shift & 0xFFFFFFFF, 32 * word)
        return readers

    def _make_writers(self) -> dict[int, Callable[[int], None]]:
        writers: dict[int, Callable[[int], None]] = {
            r.ID: self._write_id,
            r.TPR: self._write_tpr,
            r.EOI: self._end_of_interrupt,
            r.LDR: self._write_ldr,
            r.DFR: self._write_dfr,
            r.SVR: self._write_svr,
            r.ESR: self._write_esr,
            r.ICR_LOW: self._write_icr_low,
            r.ICR_HIGH: self._write_icr_high,
            r.INITIAL_COUNT: self._timer.write_initial_count,
            r.DIVIDE_CONFIGURATION: self._timer.write_divide_configuration,
        }
        for register in r.LVT_WRITABLE:
            writers[register] = partial(self._write_lvt, register)
        return writers

    # Registers.

    def _read_lvt(self, place: int) -> int:
        return self.state.lvt[place]

    def _write_id(self, value: int) -> None:
        self.state.id = value >> 24

    def _write_tpr(self, value: int) -> None:
        self.state.tpr = value & 0xFF
        self._update()

    def _write_ldr(self, value: int) -> None:
        self.state.ldr = value & 0xFF000000

    def _write_dfr(self, value: int) -> None:
        self.state.dfr = value | 0x0FFFFFFF

    def _write_svr(self, value: int) -> None:
        """Disabling sets the mask of every LVT entry (section 11.4.7.2)."""
        state = self.state
        state.svr = value & r.SVR_WRITABLE
        if not state.svr & r.SVR_ENABLE:
            state.lvt = [entry | r.LVT_MASKED for entry in state.lvt]
            self._timer.write_lvt(state.timer.lvt | r.LVT_MASKED)
            self._update()

    def _write_esr(self, value: int) -> None:
        """Latch what was detected since the last write, and arm the error interrupt anew (section 11.5.3)."""
        self.state.esr, self.state.errors = self.state.errors, 0

    def _write_icr_low(self, value: int) -> None:
        self.state.icr = self.state.icr >> 32 << 32 | value & r.ICR_LOW_WRITABLE
        self._send_ipi()

    def _write_icr_high(self, value: int) -> None:
        self.state.icr = (value & r.ICR_HIGH_WRITABLE) << 32 | self.state.icr & 0xFFFFFFFF

    def _write_lvt(self, register: int, value: int) -> None:
        value &= self._lvt_writable[register]
        if not self.state.svr & r.SVR_ENABLE:
            value |= r.LVT_MASKED
        if register == r.LVT_TIMER:
            self._timer.write_lvt(value)
            return
        place = LVTS.index(register)
        keeps = r.LVT_REMOTE_IRR if place == LINT0 and value & (r.LVT_LEVEL | r.LVT_MODE) == r.LVT_LEVEL else 0
        self.state.lvt[place] = value | self.state.lvt[place] & keeps
        if place == LINT0:
            self._serve_level_lint0()
        self._update()

    def _write_base(self, value: int) -> bool:
        """IA32_APIC_BASE: section 11.4.4, and section 11.12.5 for what may follow what. BSP is the hardware's."""
        state = self.state
        before, after = state.apic_base & r.BASE_MODE, value & r.BASE_MODE
        if value & self._base_reserved or after == r.BASE_EXTD:
            return False
        if (before, after) in ((r.BASE_MODE, r.BASE_EN), (0, r.BASE_MODE)):
            return False
        value = value & ~r.BASE_BSP | state.apic_base & r.BASE_BSP
        if before and not after:
            self.state = self._fresh_state(apic_base=value, tpr=state.tpr, lint=state.lint)
            self._timer.load(self.state.timer)
        elif before != after and after == r.BASE_MODE:
            state.icr &= 0xFFFFFFFF
        self.state.apic_base = value
        self._place()
        self._update()
        return True

    def _place(self) -> None:
        """Put the page where IA32_APIC_BASE says. Disabled or in x2APIC mode there is none."""
        if self._region is None:
            return
        base = self.state.apic_base
        if base & ~0xFFF != self._region.base:
            self._region.move(base & ~0xFFF)
        self._region.enable(base & r.BASE_MODE == r.BASE_EN)
