"""What a local APIC does with interrupts: accept, order, end and send them. `lapic.py` puts the registers before it.

Intel SDM vol. 3A, sections 11.5 to 11.8. Messages come and go over `irq.ApicBus`, the LINT pins and the
timer make the APIC's own interrupts, and `pending` and `acknowledge` hand them to the CPU.

An `irq.Line` says that an interrupt is asserted, not which voltage that is, so the polarity bits of LINT0 and
LINT1 are kept and have no effect, as the I/O APIC's (see `ioapic.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated

from iobus.clock import Clock
from iobus.devices import lapic_registers as r
from iobus.devices.lapic_timer import LapicTimer, LapicTimerState, TscClock
from iobus.irq import ApicBus, DeliveryMode, Message, Processor
from iobus.state import U8, U32, U64, Range, State, StateError, Stateful

LVTS = (r.LVT_THERMAL, r.LVT_PERFORMANCE, r.LVT_LINT0, r.LVT_LINT1, r.LVT_ERROR)
"""The registers in the order of `LapicState.lvt`."""
LINT0 = 2
"""Its place in that order; LINT1 follows."""
_ERROR = 4
_MODE_AND_MASK = r.LVT_MODE | r.LVT_MASKED
_EXTINT = 7 << 8

# Accepted only while software has the APIC enabled (section 11.4.7.2).
_MASKABLE = frozenset((DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY, DeliveryMode.EXTINT))
# What an ICR can send; ExtINT is reserved there.
_SENDABLE = frozenset(mode.value for mode in DeliveryMode if mode is not DeliveryMode.EXTINT)
# What may come back to the sender with the shorthands that include it (table 11-3), and NMI, as processors do.
_SENDABLE_TO_SELF = frozenset((DeliveryMode.FIXED, DeliveryMode.LOWEST_PRIORITY, DeliveryMode.NMI))

_Vectors = Annotated[int, Range(0, (1 << 256) - (1 << 16))]
"""A bit for each vector; 0-15 are illegal and never set."""


@dataclass
class LapicState(State):
    """All a local APIC remembers, its input pins included. IRR, ISR and TMR are 256-bit numbers: bit = vector."""

    apic_base: U64 = r.DEFAULT_BASE | r.BASE_EN
    """IA32_APIC_BASE."""
    id: U8 = 0
    """The xAPIC ID, writable by the guest; the x2APIC ID is fixed."""
    arbitration_id: U32 = 0
    tpr: U8 = 0
    ldr: U32 = 0
    dfr: U32 = r.DFR_FLAT
    svr: Annotated[int, Range(0, r.SVR_WRITABLE)] = 0xFF
    isr: _Vectors = 0
    tmr: _Vectors = 0
    irr: _Vectors = 0
    esr: U8 = 0
    """As last latched by a write to it."""
    errors: U8 = 0
    """Detected since then."""
    icr: U64 = 0
    lvt: list[U32] = field(default_factory=lambda: [r.LVT_MASKED] * len(LVTS))
    """Thermal, performance, LINT0, LINT1, error; the timer's is in `timer`."""
    timer: LapicTimerState = field(default_factory=LapicTimerState)
    lint: list[bool] = field(default_factory=lambda: [False, False])
    """The levels at LINT0 and LINT1."""
    extint: bool = False
    """An ExtINT message waits for the CPU's acknowledgement."""

    def check(self) -> None:
        for name in ("isr", "tmr", "irr"):
            if getattr(self, name) & 0xFFFF:
                raise StateError(f"LapicState.{name}: {getattr(self, name):#x} has vectors below 16")
        entries = (*self.lvt, self.timer.lvt)
        for register, entry in zip((*LVTS, r.LVT_TIMER), entries, strict=True):
            if entry & ~(r.LVT_WRITABLE[register] | (r.LVT_REMOTE_IRR if register == r.LVT_LINT0 else 0)):
                raise StateError(f"LapicState: {entry:#x} is no value that the LVT register {register:#x} can have")


class LapicCore(Stateful):
    """The interrupt logic of one local APIC: an `irq.ApicClient` and most of an `irq.Controller`."""

    state: LapicState

    def __init__(
        self,
        apic_id: int,
        processor: Processor,
        apic_bus: ApicBus,
        clock: Clock,
        bsp: bool,
        intack: Callable[[], int | None] | None,
        tsc: TscClock | None,
    ) -> None:
        self.apic_id = apic_id
        """The initial APIC ID, which CPUID gives, and the x2APIC ID."""
        self._processor = processor
        self._apic_bus = apic_bus
        self._bsp = bsp
        self._intack = intack
        self._tsc = tsc
        self._timer = LapicTimer(clock, tsc, self._timer_expired, f"lapic{apic_id} timer")
        self._pending = False
        self._deaf = False  # set while it sends to all others
        self.state = self._fresh_state()
        self._timer.load(self.state.timer)
        apic_bus.attach(self)

    @property
    def enabled(self) -> bool:
        """Whether IA32_APIC_BASE enables it: what CPUID.01H:EDX.APIC[9] shows."""
        return bool(self.state.apic_base & r.BASE_EN)

    @property
    def x2apic_mode(self) -> bool:
        """Whether it is in x2APIC mode: registers are MSRs, the page is gone."""
        return bool(self.state.apic_base & r.BASE_EXTD)

    def lint0(self, level: bool) -> None:
        """The level at LINT0: the INTR pin while the APIC is disabled in IA32_APIC_BASE."""
        self._lint(0, level)

    def lint1(self, level: bool) -> None:
        """The level at LINT1: the NMI pin while the APIC is disabled in IA32_APIC_BASE."""
        self._lint(1, level)

    def pending(self) -> bool:
        return self._pending

    def acknowledge(self) -> int | None:
        state = self.state
        if not self._pending:
            return None
        if self._extint_pending():  # ahead of the APIC's own, and whatever TPR says
            state.extint = False
            vector = self._intack() if self._intack else None
        else:
            vector = state.irr.bit_length() - 1
            state.irr ^= 1 << vector
            state.isr |= 1 << vector
        self._update()
        return vector

    def read_cr8(self) -> int:
        return self.state.tpr >> 4

    def write_cr8(self, value: int) -> None:
        self.state.tpr = (value & 0xF) << 4
        self._update()

    # Priorities.

    def _ppr(self) -> int:
        """Section 11.8.3.1: the higher class of the task's and that in service; TPR's subclass only with TPR's."""
        state = self.state
        serving = max(state.isr.bit_length() - 1, 0) & 0xF0
        return state.tpr if state.tpr & 0xF0 >= serving else serving

    def _apr(self) -> int:
        """Arbitration priority, by the formula of section 11.6.2.4; only the P6 family has the register."""
        state = self.state
        serving = max(state.isr.bit_length() - 1, 0) & 0xF0
        requested = max(state.irr.bit_length() - 1, 0) & 0xF0
        task = state.tpr & 0xF0
        return state.tpr if task >= requested and task > serving else max(task & serving, requested)

    def _ldr(self) -> int:
        """In x2APIC mode derived from the ID: cluster in the high half, one bit in the low (section 11.12.10.2)."""
        if self.x2apic_mode:
            return self.apic_id >> 4 << 16 & 0xFFFFFFFF | 1 << (self.apic_id & 0xF)
        return self.state.ldr

    # Interrupts in: acceptance, priority, end.

    def matches(self, message: Message) -> bool:
        """Sections 11.6.2 and 11.12.10. Destination 0xFF is everybody's, but a logical one in x2APIC mode."""
        state = self.state
        if not state.apic_base & r.BASE_EN or self._deaf:
            return False
        if message.mode in _MASKABLE and not state.svr & r.SVR_ENABLE:
            return False
        destination = message.destination
        if destination == r.BROADCAST:
            return True
        if self.x2apic_mode:
            if not message.logical:
                return destination in (self.apic_id, r.XAPIC_BROADCAST)
            ldr = self._ldr()
            return destination >> 16 == ldr >> 16 and bool(destination & ldr & 0xFFFF)
        if destination == r.XAPIC_BROADCAST:
            return True
        if not message.logical:
            return destination == state.id
        ldr = state.ldr >> 24
        if state.dfr >> 28:  # flat
            return destination <= 0xFF and bool(destination & ldr)
        return destination >> 4 == ldr >> 4 and bool(destination & ldr & 0xF)

    def accept(self, message: Message) -> None:
        mode = message.mode
        if mode is DeliveryMode.NMI:
            self._processor.nmi()
        elif not message.asserted:
            if mode is DeliveryMode.INIT:  # section 11.4.7.4: the level de-assert
                self.state.arbitration_id = self.apic_id
        elif mode is DeliveryMode.INIT:
            self._init()
        elif mode is DeliveryMode.STARTUP:
            self._processor.startup(message.vector)
        elif mode is DeliveryMode.EXTINT:
            self.state.extint = True
            self._update()
        elif mode is not DeliveryMode.SMI:
            self._request(message.vector, message.level_triggered)

    def is_focus(self, vector: int) -> bool:
        """SVR's bit 9, set, keeps it out of this (section 11.9)."""
        state = self.state
        return not state.svr & r.SVR_FOCUS_DISABLED and bool((state.irr | state.isr) >> vector & 1)

    def arbitration_priority(self) -> int:
        return self._ppr()

    @property
    def arbitration_id(self) -> int:
        """Its place among equals in lowest-priority delivery: the APIC ID at first, then by turns."""
        return self.state.arbitration_id

    @arbitration_id.setter
    def arbitration_id(self, value: int) -> None:
        self.state.arbitration_id = value

    def _request(self, vector: int, level: bool) -> None:
        """Accept a fixed interrupt into IRR (section 11.8.4)."""
        if vector < 16:
            self._error(r.ERROR_RECEIVE_ILLEGAL_VECTOR)
            return
        state, bit = self.state, 1 << vector
        state.irr |= bit
        state.tmr = state.tmr | bit if level else state.tmr & ~bit
        self._update()

    def _end_of_interrupt(self, value: int) -> None:
        """Section 11.8.5: end the highest in service; a level-triggered one ends at its source too."""
        state = self.state
        if not state.isr:
            return
        vector = state.isr.bit_length() - 1
        state.isr ^= 1 << vector
        if state.tmr >> vector & 1:
            if state.lvt[LINT0] & (r.LVT_REMOTE_IRR | 0xFF) == r.LVT_REMOTE_IRR | vector:
                state.lvt[LINT0] &= ~r.LVT_REMOTE_IRR
                self._serve_level_lint0()
            if not state.svr & r.SVR_SUPPRESS_EOI:
                self._apic_bus.eoi(vector)
        self._update()

    def _extint_pending(self) -> bool:
        """Whether the 8259 (or an ExtINT message) wants the CPU."""
        if self._intack is None:
            return False
        state = self.state
        if not state.apic_base & r.BASE_EN:
            return state.lint[0]
        lint0, lint1 = state.lvt[LINT0], state.lvt[LINT0 + 1]
        return (
            state.extint
            or (lint0 & _MODE_AND_MASK == _EXTINT and state.lint[0])
            or (lint1 & _MODE_AND_MASK == _EXTINT and state.lint[1])
        )

    def _update(self) -> None:
        """Recompute `pending` after a change of anything it follows from, and tell the CPU."""
        state = self.state
        requested = state.irr.bit_length() - 1 >> 4
        self._pending = (
            requested > state.tpr >> 4 and requested > state.isr.bit_length() - 1 >> 4
        ) or self._extint_pending()
        if self._pending:
            self._processor.interrupt()

    # Interrupts of its own: LINT pins, timer, errors.

    def _lint(self, pin: int, level: bool) -> None:
        state = self.state
        if level == state.lint[pin]:
            return
        state.lint[pin] = level
        if not self.enabled:
            if pin == 1 and level:
                self._processor.nmi()
        elif pin == 0 and state.lvt[LINT0] & (r.LVT_LEVEL | r.LVT_MODE) == r.LVT_LEVEL:
            self._serve_level_lint0()
        elif level:
            self._deliver_local(state.lvt[LINT0 + pin])
        self._update()

    def _serve_level_lint0(self) -> None:
        """Request a level-sensitive LINT0's vector unless it is under way. LINT1 is always edge-sensitive."""
        entry = self.state.lvt[LINT0]
        wanted = entry & (r.LVT_LEVEL | r.LVT_MODE | r.LVT_MASKED | r.LVT_REMOTE_IRR) == r.LVT_LEVEL
        if wanted and self.state.lint[0]:
            if entry & 0xF0:  # an illegal vector never gets an EOI
                self.state.lvt[LINT0] |= r.LVT_REMOTE_IRR
            self._request(entry & 0xFF, True)

    def _deliver_local(self, entry: int) -> None:
        """Deliver an LVT entry's interrupt (section 11.5.1). ExtINT is the pin's level, so nothing happens here."""
        if entry & r.LVT_MASKED:
            return
        mode = entry >> 8 & 7
        if mode == DeliveryMode.FIXED:
            self._request(entry & 0xFF, False)
        elif mode == DeliveryMode.NMI:
            self._processor.nmi()
        elif mode == DeliveryMode.INIT:
            self._init()

    def _timer_expired(self) -> None:
        self._request(self.state.timer.lvt & 0xFF, False)

    def _error(self, bit: int) -> None:
        """Record an error; the first since the last write to ESR interrupts."""
        first = not self.state.errors
        self.state.errors |= bit
        entry = self.state.lvt[_ERROR]
        if first and not entry & r.LVT_MASKED:
            self._request(entry & 0xFF, False)

    # Interrupts out: section 11.6.1.

    def _send_ipi(self) -> None:
        icr = self.state.icr
        self._send(icr & 0xFFFFFFFF, icr >> 32 if self.x2apic_mode else icr >> 56)

    def _send(self, low: int, destination: int) -> None:
        code, vector, shorthand = low >> 8 & 7, low & 0xFF, low & r.ICR_SHORTHAND
        if code not in _SENDABLE:
            return
        mode = DeliveryMode(code)
        if vector < 16 and mode <= DeliveryMode.LOWEST_PRIORITY:
            self._error(r.ERROR_SEND_ILLEGAL_VECTOR)
        # IPIs are edge-triggered; the level bits only tell the INIT level de-assert, which goes to all.
        if mode is DeliveryMode.INIT and low & (r.ICR_LEVEL | r.ICR_ASSERT) == r.ICR_LEVEL:
            self._apic_bus.send(Message(r.BROADCAST, False, mode, vector, asserted=False))
            return
        if shorthand in (r.ICR_SELF, r.ICR_ALL) and mode not in _SENDABLE_TO_SELF:
            return
        logical = bool(low & r.ICR_LOGICAL)
        if shorthand:
            message = Message(r.BROADCAST, False, mode, vector)
        elif self.x2apic_mode and destination == r.XAPIC_BROADCAST and not logical:
            return  # in 32 bits that is an ID, and nobody's; on the bus it would be the broadcast in 8 bits
        else:
            message = Message(destination, logical, mode, vector)
        if shorthand == r.ICR_SELF:
            if self.matches(message):
                self.accept(message)
            return
        self._deaf = shorthand == r.ICR_OTHERS
        try:
            self._apic_bus.send(message)
        finally:
            self._deaf = False

    # State.

    def _init(self) -> None:
        self.init()
        self._processor.init()

    def init(self) -> None:
        """INIT (section 11.4.7.3): power-up state, but both IDs, IA32_APIC_BASE and so the mode stay."""
        state = self.state
        self.state = self._fresh_state(apic_base=state.apic_base, id=state.id, lint=state.lint)
        self.state.arbitration_id = state.arbitration_id
        self._timer.load(self.state.timer)
        self._update()

    def _fresh_state(
        self,
        *,
        apic_base: int | None = None,
        id: int | None = None,
        tpr: int = 0,
        lint: list[bool] | None = None,
    ) -> LapicState:
        if apic_base is None:
            apic_base = r.DEFAULT_BASE | r.BASE_EN | (r.BASE_BSP if self._bsp else 0)
        return LapicState(
            apic_base=apic_base,
            id=self.apic_id & 0xFF if id is None else id,
            arbitration_id=self.apic_id,
            tpr=tpr,
            lint=[False, False] if lint is None else lint,
        )
