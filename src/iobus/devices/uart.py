"""The serial port: a 16550A UART as it sits in a PC.

Stands beside the other devices of the PC: it knows one interrupt line, a clock, and the host's two
directions, `output` and `receive`. Registers, FIFOs and interrupts are those of the National
Semiconductor PC16550D datasheet (June 1995), section 8; that OUT2 gates the interrupt is the IBM PC's wiring.

What differs from silicon: transmission takes no time. THR and the transmit FIFO are empty again at once,
so a guest that polls LSR for THRE never waits. There is no wire: a character passes whole whatever the
word length, parity and divisor, which only decide how long a character time is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.bus import Device
from iobus.clock import Clock
from iobus.irq import Line
from iobus.state import U8, U16, Length, Range, State, StateError, Stateful, Time

CLOCK_HZ: Final = 1_843_200
"""The crystal of a PC's serial port: divisor 1 is 115200 baud."""
FIFO_SIZE: Final = 16
HOST_CHARACTER_NS: Final = 86_806
"""How fast the host's end sends: 10 bits at 115200 baud."""

# Register offsets.
RBR: Final = 0  # read; DLL with DLAB set
THR: Final = 0  # written; DLL with DLAB set
IER: Final = 1  # DLM with DLAB set
IIR: Final = 2  # read
FCR: Final = 2  # written
LCR: Final = 3
MCR: Final = 4
LSR: Final = 5
MSR: Final = 6
SCR: Final = 7

# IER
ERBFI: Final = 1 << 0
ETBEI: Final = 1 << 1
ELSI: Final = 1 << 2
EDSSI: Final = 1 << 3
# IIR, bits 3-0; in the order of their priority.
IIR_LINE_STATUS: Final = 0b0110
IIR_TIME_OUT: Final = 0b1100
IIR_DATA: Final = 0b0100
IIR_THRE: Final = 0b0010
IIR_MODEM: Final = 0b0000
IIR_NONE: Final = 0b0001
IIR_FIFOS: Final = 0xC0
# FCR
FIFO_ENABLE: Final = 1 << 0
RCVR_FIFO_RESET: Final = 1 << 1
DMA_MODE: Final = 1 << 3
TRIGGER: Final = 3 << 6
_TRIGGER_LEVELS: Final = (1, 4, 8, 14)
# LCR
STB: Final = 1 << 2
PEN: Final = 1 << 3
SET_BREAK: Final = 1 << 6
DLAB: Final = 1 << 7
# MCR
DTR: Final = 1 << 0
RTS: Final = 1 << 1
OUT1: Final = 1 << 2
OUT2: Final = 1 << 3
LOOP: Final = 1 << 4
# LSR
DR: Final = 1 << 0
OE: Final = 1 << 1
PE: Final = 1 << 2
FE: Final = 1 << 3
BI: Final = 1 << 4
THRE: Final = 1 << 5
TEMT: Final = 1 << 6
FIFO_ERROR: Final = 1 << 7
_ERRORS: Final = OE | PE | FE | BI
_CLEARED_BY_READING: Final = _ERRORS | FIFO_ERROR
# MSR; the delta bits are these four shifted right by 4, RI's being TERI.
CTS: Final = 1 << 4
DSR: Final = 1 << 5
RI: Final = 1 << 6
DCD: Final = 1 << 7

_BREAK: Final = (BI | FE) << 8  # the zero character of a break; its stop bit is a space, hence FE too
_BYTES: Final = tuple(bytes((value,)) for value in range(256))
_NS: Final = 1_000_000_000


@dataclass
class UartState(State):
    """The registers, the receive FIFO, and what the host has sent that has not arrived yet.

    In `rx` and `host` a character is its byte, with the LSR error bits it came with at bits 8-15.
    """

    ier: U8 = 0
    fcr: U8 = 0
    lcr: U8 = 0
    mcr: U8 = 0
    lsr: U8 = THRE | TEMT
    msr: U8 = CTS | DSR | DCD
    scr: U8 = 0
    dll: U8 = 12
    dlm: U8 = 0
    rbr: U8 = 0
    """The last character read: what a read of an empty RBR shows."""
    thre_pending: bool = False
    timed_out: bool = False
    """The character time-out interrupt is due."""
    rx: Annotated[list[U16], Length(0, FIFO_SIZE)] = field(default_factory=list)
    rx_touched: Time = 0
    """When a character last entered or left the receive FIFO, in ns."""
    inputs: U8 = CTS | DSR | DCD
    """The modem lines as the host's end drives them, in MSR's positions."""
    host: list[U16] = field(default_factory=list)
    host_at: Annotated[int, Range(0, (1 << 63) - 1)] = 0
    """Index in `host` of the next character to arrive."""
    wire_free: Time = 0
    """When the host's end has sent its last character, in ns: the next can follow."""

    def check(self) -> None:
        if self.host_at > len(self.host):
            raise StateError(f"UartState.host_at: {self.host_at} of {len(self.host)} characters")


class Uart(Stateful, Device):
    """A 16550A. `output` takes what the guest transmits, as it transmits it.

    `receive` takes any amount and loses nothing: characters wait on the host's side and follow each
    other into the receive FIFO as it has room, a FIFO's worth at once and then no faster than
    115200 baud, so that a guest's interrupt handler gets to its end. Once in the FIFO they are the
    guest's, to read or to discard. Only loopback can overrun.

    The power-on divisor is 12 (9600 baud), as a PC's firmware leaves it. A reset keeps what the datasheet's
    master reset keeps (SCR, DLL, DLM), and what belongs to the host: the modem inputs and
    the characters that have not arrived.
    """

    name = "uart"
    length: Final = 8
    state: UartState

    def __init__(self, irq: Line, clock: Clock, output: Callable[[bytes], None]) -> None:
        self.state = UartState()
        self._irq = irq
        self._clock = clock
        self._output = output
        self._iir = IIR_NONE
        self._wire = clock.timer(self._pull, "uart receive")
        self._idle = clock.timer(self._check_idle, "uart time-out")

    def reset(self) -> None:
        old = self.state
        self.state = UartState(
            msr=old.inputs, scr=old.scr, dll=old.dll, dlm=old.dlm, inputs=old.inputs,
            host=old.host, host_at=old.host_at, wire_free=old.wire_free,
        )  # fmt: skip
        self._idle.cancel()
        self._update()
        self._pull()

    def restored(self) -> None:
        self._update()
        self._wire.cancel()
        self._idle.cancel()
        if self.state.host:
            self._wire.arm(self.state.wire_free)
        self._watch_idle()

    # The host's end.

    def receive(self, data: bytes) -> None:
        """Send `data` to the guest."""
        self._send(data)

    def receive_break(self) -> None:
        """Send a break to the guest, after what was sent before."""
        self._send((_BREAK,))

    def set_modem_lines(self, *, cts: bool = True, dsr: bool = True, ri: bool = False, dcd: bool = True) -> None:
        """Drive the four modem inputs; a line not named goes to what a connected terminal gives."""
        self.state.inputs = cts * CTS | dsr * DSR | ri * RI | dcd * DCD
        if not self.state.mcr & LOOP:
            self._set_msr(self.state.inputs)
            self._update()

    # The guest's end.

    def read(self, offset: int, size: int) -> int:
        state = self.state
        if size != 1:  # the ISA bus makes byte cycles of it, lowest address first
            return sum(self.read(offset + index, 1) << 8 * index for index in range(size))
        if offset == LSR:
            lsr = state.lsr
            if lsr & _CLEARED_BY_READING:
                state.lsr &= ~_CLEARED_BY_READING
                if state.fcr & FIFO_ENABLE and any(entry > 0xFF for entry in state.rx):
                    state.lsr |= FIFO_ERROR
                self._update()
            return lsr
        if offset == IIR:
            iir = self._iir
            if iir == IIR_THRE:
                state.thre_pending = False
                self._update()
            return iir | IIR_FIFOS if state.fcr & FIFO_ENABLE else iir
        if offset == RBR:
            return state.dll if state.lcr & DLAB else self._take()
        if offset == IER:
            return state.dlm if state.lcr & DLAB else state.ier
        if offset == LCR:
            return state.lcr
        if offset == MCR:
            return state.mcr
        if offset == MSR:
            msr = state.msr
            if msr & 0x0F:
                state.msr = msr & 0xF0
                self._update()
            return msr
        return state.scr

    def write(self, offset: int, size: int, value: int) -> None:
        state = self.state
        if size != 1:
            for index, byte in enumerate(value.to_bytes(size, "little")):
                self.write(offset + index, 1, byte)
        elif offset == THR:
            if state.lcr & DLAB:
                state.dll = value
                self._watch_idle()
                return
            if state.mcr & LOOP:
                self._arrive([value])
            elif not state.lcr & SET_BREAK:  # a break holds SOUT at space: nothing gets out
                self._output(_BYTES[value])
            if state.ier & ETBEI:
                if self._iir == IIR_THRE:  # the write ends the interrupt, THR's being empty makes the next
                    if self._irq.level:
                        self._irq.set(False)
                        self._irq.set(True)
                elif not state.thre_pending:
                    state.thre_pending = True
                    self._update()
        elif offset == IER:
            if state.lcr & DLAB:
                state.dlm = value
                self._watch_idle()
                return
            # Enabling the interrupt while THR is empty, which it always is, makes one.
            state.thre_pending = bool(value & ETBEI) and (state.thre_pending or not state.ier & ETBEI)
            state.ier = value & (ERBFI | ETBEI | ELSI | EDSSI)
            self._update()
        elif offset == FCR:
            self._control_fifos(value)
        elif offset == LCR:
            state.lcr = value
            self._watch_idle()
        elif offset == MCR:
            state.mcr = value & (DTR | RTS | OUT1 | OUT2 | LOOP)
            self._set_msr(self._looped(value) if value & LOOP else state.inputs)
            self._update()
            self._pull()
        elif offset == SCR:
            state.scr = value
        # LSR and MSR are for reading; the datasheet leaves writes to them to the factory's tests.

    def _take(self) -> int:
        """Read RBR: the oldest character."""
        state = self.state
        rx = state.rx
        if not rx:
            return state.rbr
        state.rbr = rx.pop(0) & 0xFF
        state.timed_out = False
        state.rx_touched = self._clock.now()
        self._expose()
        if rx and self._idle.deadline is None:
            self._watch_idle()
        if state.host:
            self._pull()
        self._update()
        return state.rbr

    def _control_fifos(self, value: int) -> None:
        state = self.state
        # FIFO mode going on or off empties them; the transmit FIFO always is empty.
        empty = (value ^ state.fcr) & FIFO_ENABLE
        if value & FIFO_ENABLE:
            empty |= value & RCVR_FIFO_RESET
            state.fcr = value & (FIFO_ENABLE | DMA_MODE | TRIGGER)
        else:  # the other bits are not programmed without FIFO_ENABLE
            state.fcr &= ~FIFO_ENABLE
        if empty:
            state.rx.clear()
            state.lsr &= ~(DR | FIFO_ERROR)
            state.timed_out = False
        self._update()
        self._pull()

    @staticmethod
    def _looped(mcr: int) -> int:
        """MSR's upper half in loopback: the four modem outputs, each at its input."""
        return (mcr & RTS) << 3 | (mcr & DTR) << 5 | (mcr & OUT1) << 4 | (mcr & OUT2) << 4

    def _set_msr(self, lines: int) -> None:
        """Show `lines` in MSR's upper half and what changed in the lower; RI counts at its trailing edge."""
        before = self.state.msr
        changed = (before ^ lines) & (CTS | DSR | DCD) | before & ~lines & RI
        self.state.msr = lines | before & 0x0F | changed >> 4

    # Characters on their way in.

    def _send(self, characters: bytes | tuple[int, ...]) -> None:
        state = self.state
        if state.host_at > FIFO_SIZE << 8:  # now and then, so that a long input costs little
            del state.host[: state.host_at]
            state.host_at = 0
        state.host.extend(characters)
        self._pull()

    def _pull(self) -> None:
        """Let characters from the host arrive, as many as there is room for, or wait until they may."""
        state = self.state
        room = (FIFO_SIZE if state.fcr & FIFO_ENABLE else 1) - len(state.rx)
        if not state.host or room <= 0 or state.mcr & LOOP:
            return
        now = self._clock.now()
        if now < state.wire_free:
            if self._wire.deadline != state.wire_free:
                self._wire.arm(state.wire_free)
            return
        characters = state.host[state.host_at : state.host_at + room]
        state.host_at += len(characters)
        if state.host_at >= len(state.host):
            state.host.clear()
            state.host_at = 0
        state.wire_free = now + len(characters) * HOST_CHARACTER_NS
        if state.host:
            self._wire.arm(state.wire_free)
        self._arrive(characters)

    def _arrive(self, characters: list[int]) -> None:
        """Receive `characters`, from the host or from the transmitter in loopback."""
        state = self.state
        rx = state.rx
        fifos = state.fcr & FIFO_ENABLE
        if len(rx) >= (FIFO_SIZE if fifos else 1):
            state.lsr |= OE
            if fifos:  # what is in the FIFO stays, the new character is lost
                self._update()
                return
            rx.clear()  # without a FIFO the old one is
        at_top = not rx
        rx.extend(characters)
        if fifos and any(character > 0xFF for character in characters):
            state.lsr |= FIFO_ERROR
        if at_top:
            self._expose()
        state.rx_touched = self._clock.now()
        self._watch_idle()
        self._update()

    def _expose(self) -> None:
        """Show in LSR whether there is a character to read, and the errors of that one."""
        state = self.state
        if state.rx:
            state.lsr |= DR | state.rx[0] >> 8
            state.rx[0] &= 0xFF
        else:
            state.lsr &= ~DR

    def _idle_deadline(self) -> int:
        """Four character times after the receive FIFO was last touched."""
        state = self.state
        # In half bits, as five-bit characters with STB have 1.5 stop bits: start, word, parity, stop.
        word = 5 + (state.lcr & 3)
        stop = 2 if not state.lcr & STB else 3 if word == 5 else 4
        half_bits = 2 + 2 * word + (2 if state.lcr & PEN else 0) + stop
        divisor = state.dlm << 8 | state.dll or 1  # 0 is no divisor of the datasheet's
        return state.rx_touched + 4 * half_bits * 8 * divisor * _NS // CLOCK_HZ

    def _watch_idle(self) -> None:
        """Be called when the character time-out may be due.

        Reads of RBR put it off without arming the timer again: `_check_idle` looks when it fires.
        """
        if self.state.rx and self.state.fcr & FIFO_ENABLE and not self.state.timed_out:
            self._idle.arm(self._idle_deadline())

    def _check_idle(self) -> None:
        state = self.state
        if not state.rx or not state.fcr & FIFO_ENABLE or state.timed_out:
            return
        deadline = self._idle_deadline()
        if self._clock.now() >= deadline:
            state.timed_out = True
            self._update()
        else:
            self._idle.arm(deadline)

    def _update(self) -> None:
        """Find the interrupt of the highest priority and drive the line."""
        state = self.state
        ier = state.ier
        if ier & ELSI and state.lsr & _ERRORS:
            iir = IIR_LINE_STATUS
        elif ier & ERBFI and state.timed_out:
            iir = IIR_TIME_OUT
        elif ier & ERBFI and len(state.rx) >= (_TRIGGER_LEVELS[state.fcr >> 6] if state.fcr & FIFO_ENABLE else 1):
            iir = IIR_DATA
        elif state.thre_pending:
            iir = IIR_THRE
        elif ier & EDSSI and state.msr & 0x0F:
            iir = IIR_MODEM
        else:
            iir = IIR_NONE
        self._iir = iir
        # Loopback forces the modem outputs inactive, OUT2 among them, and OUT2 gates the line.
        self._irq.set(iir != IIR_NONE and state.mcr & (OUT2 | LOOP) == OUT2)
