"""The PC's two 8259A interrupt controllers, cascaded, and the edge/level registers beside them.

Stands among the devices: knows its registers, its sixteen input pins and one output, the CPU's INTR. By
the 8259A data sheet (Intel 231468), application note AP-59 for what ICW1 resets, and the ICH9 data sheet
(316972, "8259 Interrupt Controllers") for the ELCR and the fixed wiring of the pair. Where they leave room:

- An edge stays latched until it is acknowledged or the chip initialised, even if the input falls before.
  The data sheet asks a source to hold its input until INTA, but a `Line.pulse` has no width to hold.
- INT stays low until the initialisation is complete ("before normal operation can begin, each 8259A must
  be brought to a starting point"); the chip has no reset pin, so `reset` asks for a new initialisation.
- In buffered mode SP/EN is an output and M/S tells the roles: here the roles are wired, both bits are kept.
- In MCS-80/85 mode the vector is the byte that the second INTA pulse gives: the low byte of the call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.bus import Device
from iobus.state import U8, Range, State, Stateful

# ICW1 and ICW4, bits.
IC4: Final = 0x01
SNGL: Final = 0x02
ADI: Final = 0x04
LTIM: Final = 0x08
ICW1: Final = 0x10
U_PM: Final = 0x01
AEOI: Final = 0x02
SFNM: Final = 0x10

# OCW2, bits; its low three bits name a level.
R: Final = 0x80
SL: Final = 0x40
EOI: Final = 0x20

# OCW3, bits.
ESMM: Final = 0x40
SMM: Final = 0x20
OCW3: Final = 0x08
P: Final = 0x04
RR: Final = 0x02
RIS: Final = 0x01

CASCADE: Final = 2
"""The master's input that the slave's INT drives, and so the slave's identity on the cascade lines."""
DEFAULT_LEVEL: Final = 7
"""The level a chip answers with when the request is gone at INTA."""
ELCR_WRITABLE: Final = (0xF8, 0xDE)
"""Timer, keyboard, cascade (IRQ 0-2), RTC (8) and the coprocessor's IRQ 13 are always edge-triggered."""
FLOATING: Final = 0xFF
"""The data bus when no chip drives it."""


@dataclass
class ChipState(State):
    """One 8259A."""

    pins: U8 = 0
    """The levels at IR0-IR7."""
    edges: U8 = 0
    """Edge-triggered inputs whose rising edge waits for its acknowledge."""
    elcr: U8 = 0
    isr: U8 = 0
    imr: U8 = 0
    icw1: U8 = 0
    icw2: U8 = 0
    icw3: U8 = 0
    """Master: the inputs that have slaves. Slave: its identity."""
    icw4: U8 = 0
    expect: Annotated[int, Range(0, 4)] = 1
    """The number of the initialisation command word that comes next; 0 when all have come."""
    lowest: Annotated[int, Range(0, 7)] = 7
    """The level of lowest priority: what rotation moves."""
    special_mask: bool = False
    rotate_in_aeoi: bool = False
    read_isr: bool = False
    poll: bool = False
    """Whether the next read is a poll's."""


@dataclass
class PicPairState(State):
    """Both chips."""

    master: ChipState = field(default_factory=ChipState)
    slave: ChipState = field(default_factory=ChipState)


class Pic(Device):
    """One 8259A of the pair, at two ports. Its state is part of the pair's."""

    length = 2

    def __init__(self, name: str, unselected: int, out: Callable[[bool], None]) -> None:
        self.name = name
        self.state = ChipState()
        self._unselected = unselected  # ICW3 before it is written: no slaves, or slave identity 7
        self._out = out
        self._int = False

    def read(self, offset: int, size: int) -> int:
        """Read IRR, ISR or a poll's answer at the even port, IMR at the odd one."""
        if size > 1:
            return int.from_bytes(bytes(self.read(offset + n, 1) for n in range(size)), "little")
        state = self.state
        if state.poll:
            state.poll = False
            level = self.accept()
            self.acknowledged()
            return 0 if level is None else 0x80 | level
        if offset & 1:
            return state.imr
        return state.isr if state.read_isr else self.irr

    def write(self, offset: int, size: int, value: int) -> None:
        """Take a command word: ICW1, OCW2 and OCW3 at the even port, the others at the odd one."""
        if size > 1:
            for n in range(size):
                self.write(offset + n, 1, value >> 8 * n & 0xFF)
            return
        if offset & 1:
            if self.state.expect > 1:
                self._icw(value)
            else:
                self.state.imr = value
        elif value & ICW1:
            self._icw1(value)
        elif value & OCW3:
            self._ocw3(value)
        else:
            self._ocw2(value)
        self.update()

    def reset(self) -> None:
        """Return to the power-on state, uninitialised; the inputs stay at the levels they are driven to."""
        pins = self.state.pins
        for name, value in vars(ChipState(pins=pins, icw3=self._unselected)).items():
            setattr(self.state, name, value)
        self.update()

    @property
    def irr(self) -> int:
        """The interrupt request register: latched edges, and level-triggered inputs as they are."""
        return self.state.edges | self.state.pins & self._level_triggered

    def set_input(self, n: int, level: bool) -> None:
        """Drive input `n`, 0-7."""
        state, bit = self.state, 1 << n
        if level == bool(state.pins & bit):
            return
        state.pins ^= bit
        if level and not self._level_triggered & bit:
            state.edges |= bit
        self.update()

    def set_elcr(self, value: int) -> None:
        """Make the inputs whose bits are set level-triggered."""
        self.state.elcr = value
        self.state.edges &= ~value
        self.update()

    def accept(self) -> int | None:
        """Put the request of the highest priority in service and return its level; None if there is none."""
        level = self._request()
        if level is not None:
            state = self.state
            state.edges &= ~(1 << level)
            if not state.icw4 & AEOI:
                state.isr |= 1 << level
            elif state.rotate_in_aeoi:
                state.lowest = level
        return level

    def acknowledged(self) -> None:
        """End an acknowledge: INT falls, and rises again where another request can be served at once."""
        self._drive(False)
        self.update()

    def vector(self, level: int) -> int:
        """The byte that the chip puts on the bus for `level`."""
        state = self.state
        if state.icw4 & U_PM:
            return state.icw2 & 0xF8 | level
        return state.icw1 & 0xE0 | level << 2 if state.icw1 & ADI else state.icw1 & 0xC0 | level << 3

    def update(self) -> None:
        """Bring INT in line with the registers."""
        self._drive(self._request() is not None)

    def derive(self) -> bool:
        """Take INT from the registers without driving it, after a restore; return it."""
        self._int = self._request() is not None
        return self._int

    @property
    def _level_triggered(self) -> int:
        return 0xFF if self.state.icw1 & LTIM else self.state.elcr

    def _drive(self, level: bool) -> None:
        if level != self._int:
            self._int = level
            self._out(level)

    def _rank(self, levels: int) -> int:
        """The rank, 0 (highest) to 7, of the first among `levels`, which are not empty."""
        first = self.state.lowest + 1 & 7
        turned = levels >> first | levels << 8 - first & 0xFF
        return (turned & -turned).bit_length() - 1

    def _level(self, rank: int) -> int:
        return rank + self.state.lowest + 1 & 7

    @property
    def _in_service(self) -> int:
        """The levels in service that count: special mask mode hides the masked ones."""
        return self.state.isr & ~self.state.imr if self.state.special_mask else self.state.isr

    def _request(self) -> int | None:
        """The level that INT asks service for, or None."""
        state = self.state
        requests = self.irr & ~state.imr
        if not requests or state.expect:
            return None
        rank = self._rank(requests)
        level = self._level(rank)
        if serving := self._in_service:
            limit = self._rank(serving)
            # Special fully nested: a slave that is in service may ask for its own higher levels.
            slave = state.icw4 & SFNM and state.icw3 >> level & 1
            if rank > limit or (rank == limit and not slave):
                return None
        return level

    def _icw1(self, value: int) -> None:
        state = self.state
        state.icw1 = value
        state.icw3 = self._unselected
        state.icw4 = 0
        state.expect = 2
        state.edges = state.isr = state.imr = 0
        state.lowest = 7
        state.special_mask = state.rotate_in_aeoi = state.read_isr = state.poll = False

    def _icw(self, value: int) -> None:
        state = self.state
        last = 4 if state.icw1 & IC4 else 0
        if state.expect == 2:
            state.icw2 = value
            state.expect = last if state.icw1 & SNGL else 3
        elif state.expect == 3:
            state.icw3 = value
            state.expect = last
        else:
            state.icw4 = value
            state.expect = 0

    def _ocw2(self, value: int) -> None:
        state = self.state
        if not value & EOI:
            if value & SL:
                if value & R:  # set priority
                    state.lowest = value & 7
            else:
                state.rotate_in_aeoi = bool(value & R)
            return
        if value & SL:
            level = value & 7
        elif serving := self._in_service:
            level = self._level(self._rank(serving))
        else:
            return
        state.isr &= ~(1 << level)
        if value & R:
            state.lowest = level

    def _ocw3(self, value: int) -> None:
        state = self.state
        if value & ESMM:
            state.special_mask = bool(value & SMM)
        if value & RR:
            state.read_isr = bool(value & RIS)
        state.poll = bool(value & P)


class Elcr(Device):
    """The edge/level control registers, one port a chip. Their state is the chips'."""

    name = "elcr"
    length = 2

    def __init__(self, *chips: Pic) -> None:
        self._chips = chips

    def read(self, offset: int, size: int) -> int:
        """A set bit: the input is level-triggered."""
        return int.from_bytes(bytes(self._chips[offset + n & 1].state.elcr for n in range(size)), "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose level (1) or edge (0) for each input; the bits that the PC forbids stay 0."""
        for n in range(size):
            which = offset + n & 1
            self._chips[which].set_elcr(value >> 8 * n & ELCR_WRITABLE[which])


class PicPair(Stateful, Device):
    """Both 8259As: attach `master`, `slave` and `elcr`; save, restore and reset the pair as one.

    `intr(level)` is called at each change of the master's INT. It falls at every acknowledge, and
    rises again within it where the next request can be served at once.
    """

    name = "pic"
    state: PicPairState

    def __init__(self, intr: Callable[[bool], None]) -> None:
        self.master = Pic("pic-master", 0, intr)
        self.slave = Pic("pic-slave", 7, lambda level: self.master.set_input(CASCADE, level))
        self.elcr = Elcr(self.master, self.slave)
        self.slave.state.icw3 = 7
        self.state = PicPairState(self.master.state, self.slave.state)
        self._intr = intr

    def set_pin(self, n: int, level: bool) -> None:
        """Drive interrupt line `n`, 0-15. Line 2 is not led out of the pair: its level is ignored."""
        if not 0 <= n <= 15:
            raise ValueError(f"interrupt line {n}: the two 8259As have lines 0 to 15")
        if n >= 8:
            self.slave.set_input(n - 8, level)
        elif n != CASCADE:
            self.master.set_input(n, level)

    def acknowledge(self) -> int | None:
        """Run the CPU's INTA cycle; return the vector, or None from an uninitialised master.

        Where the request is gone, the chip that should have had it answers with its level 7 and puts
        nothing in service: the spurious IRQ 7, or IRQ 15 with the master's input 2 in service.
        """
        master, slave = self.master, self.slave
        if master.state.expect:
            return None
        level = master.accept()
        if level is None:
            vector = master.vector(DEFAULT_LEVEL)
        elif not master.state.icw3 >> level & 1:
            vector = master.vector(level)
        elif level == CASCADE == slave.state.icw3 & 7 and not slave.state.expect:
            asked = slave.accept()
            vector = slave.vector(DEFAULT_LEVEL if asked is None else asked)
            slave.acknowledged()
        else:
            vector = FLOATING
        master.acknowledged()
        return vector

    def reset(self) -> None:
        """Return both chips to the power-on state."""
        self.slave.reset()
        self.master.reset()

    def restored(self) -> None:
        """Hand the chips their records and tell INTR's level."""
        self.master.state, self.slave.state = self.state.master, self.state.slave
        self.slave.derive()
        self._intr(self.master.derive())
