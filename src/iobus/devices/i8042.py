"""The keyboard controller, with a keyboard and a mouse on its two interfaces.

Stands beside the other devices of the PC. `I8042` is the controller, after the IBM PS/2 Hardware
Interface Technical Reference, "Keyboard and Auxiliary Device Controller"; what is plugged in are the
`Keyboard` of `ps2_keyboard.py` and the `Mouse` of `ps2_mouse.py`. A command is carried out at once and a byte on
its way takes no time, so IBF (input buffer full) is never seen set.

The A20 bit of the output port is remembered and reads back, but address line 20 is never forced low. There
is no password: A4 says so, and A5 and A6, which load one and demand it, do nothing; nor do C1 and C2, which
would show the input port in the status.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

from iobus.bus import Device
from iobus.clock import Clock
from iobus.devices.ps2_keyboard import RELEASED, TRANSLATION, Keyboard, KeyboardState
from iobus.devices.ps2_mouse import Mouse, MouseState
from iobus.irq import Line
from iobus.state import U8, Length, Range, State, StateError, Stateful

# Status, read at port 0x64. IBF (1 << 1) is never set.
OBF: Final = 1 << 0
SYS: Final = 1 << 2
CMD: Final = 1 << 3
UNLOCKED: Final = 1 << 4
AUXB: Final = 1 << 5

# Command byte, controller RAM address 0. SYS is the status bit's.
KBD_INT: Final = 1 << 0
AUX_INT: Final = 1 << 1
KBD_DISABLE: Final = 1 << 4
AUX_DISABLE: Final = 1 << 5
TRANSLATE: Final = 1 << 6

# Output port. A low RESET resets the machine.
RESET: Final = 1 << 0
A20: Final = 1 << 1
AUX_DATA: Final = 1 << 2
AUX_CLOCK: Final = 1 << 3
IRQ1: Final = 1 << 4
IRQ12: Final = 1 << 5
KBD_CLOCK: Final = 1 << 6
KBD_DATA: Final = 1 << 7

_ANSWERS: Final = 16


@dataclass
class I8042State(State):
    """The controller's memory, and what is plugged in."""

    ram: list[U8] = field(default_factory=lambda: [KBD_INT | AUX_INT | SYS | TRANSLATE] + [0] * 31)
    """The command byte and 31 more; at power-on as a PC's firmware leaves it."""
    output: U8 = 0
    """The output buffer; it keeps its value when it was read."""
    status: U8 = 0
    """OBF, CMD and AUXB."""
    answers: Annotated[list[Annotated[int, Range(0, 0x1FF)]], Length(0, _ANSWERS)] = field(default_factory=list)
    """The controller's own bytes for the output buffer; those in AUX's name have bit 8 set."""
    command: U8 = 0
    """The command whose data byte is awaited at port 0x60, or 0."""
    output_port: Annotated[int, Range(0, RESET | A20)] = RESET | A20
    """Those two bits; the others follow from the rest."""
    release: bool = False
    """The translation has swallowed an F0: the next code is a release."""
    keyboard: KeyboardState = field(default_factory=KeyboardState)
    mouse: MouseState = field(default_factory=MouseState)

    def check(self) -> None:
        if self.status & ~(OBF | CMD | AUXB):
            raise StateError(f"I8042State.status: {self.status:#x} has more than OBF, CMD and AUXB")


class I8042(Stateful, Device):
    """The controller. Attach its `data` at port 0x60 and its `command` at port 0x64, one byte each.

    Resetting either port, as a machine does with what is on its buses, resets the controller whole.
    `reset` is called when the guest pulses or writes the reset line low. Interrupts are levels: high
    while the output buffer is full with a byte of that source and the command byte enables it.
    """

    name = "i8042"
    state: I8042State

    def __init__(self, keyboard: Line, mouse: Line, reset: Callable[[], None], clock: Clock) -> None:
        self._keyboard_line = keyboard
        self._mouse_line = mouse
        self._reset = reset
        self._keyboard = Keyboard(clock, self._fill)
        self._mouse = Mouse()
        self.data = _Port("i8042-data", self._read_data, self._write_data, self.reset)
        self.command = _Port("i8042-command", self._read_status, self._write_command, self.reset)
        self.reset()

    def reset(self) -> None:
        self.state = I8042State()
        self.restored()

    def restored(self) -> None:
        self._keyboard.state = self.state.keyboard
        self._mouse.state = self.state.mouse
        self._keyboard.restored()
        self._drive()

    # The host's end.

    def press(self, code: int) -> bool:
        """Press the key of `code`, a make code of scan code set 1: 0x1E, with a prefix 0xE048, or `PAUSE`.

        It repeats until it is released or another key is pressed. Returns False where the key is lost, as
        the keyboard is off or its buffer full. Raises `ValueError` for what is no make code.
        """
        return self._key(code, False)

    def release(self, code: int) -> bool:
        """Release the key; otherwise like `press`."""
        return self._key(code, True)

    @property
    def takes_keys(self) -> bool:
        """Whether the guest listens to the keyboard and has read all that was typed: nothing typed now is lost."""
        state = self.state
        listens = state.keyboard.scanning and not state.ram[0] & KBD_DISABLE
        return listens and not state.keyboard.codes and not state.status & OBF

    def move(self, dx: int, dy: int, wheel: int = 0) -> None:
        """Move the mouse by `dx` counts to the right and `dy` counts up, the wheel by `wheel` towards the user."""
        self.state.mouse.dx += dx
        self.state.mouse.dy += dy
        self.state.mouse.dz += wheel
        self._fill()

    def set_buttons(
        self,
        *,
        left: bool = False,
        right: bool = False,
        middle: bool = False,
        back: bool = False,
        forward: bool = False,
    ) -> None:
        """Hold just these mouse buttons down. The last two are told to drivers that have asked for five buttons."""
        self.state.mouse.buttons = left | right << 1 | middle << 2 | back << 3 | forward << 4
        self._fill()

    def _key(self, code: int, release: bool) -> bool:
        taken = self._keyboard.key(code, release)
        self._fill()
        return taken

    # The guest's end.

    def _read_data(self) -> int:
        state = self.state
        value = state.output
        if state.status & OBF:
            state.status &= ~(OBF | AUXB)
            self._drive()  # low, so that the next byte makes an edge
            self._fill()
        return value

    def _read_status(self) -> int:
        return self.state.status | UNLOCKED | self.state.ram[0] & SYS

    def _write_data(self, value: int) -> None:
        state = self.state
        state.status &= ~CMD
        command, state.command = state.command, 0
        if command == 0:  # to send, the controller lets go of the clock it holds low when disabled
            state.ram[0] &= ~KBD_DISABLE
            self._keyboard.receive(value)
        elif command == 0xD1:
            state.output_port = value & (RESET | A20)
        elif command == 0xD2:
            self._answer(value)
        elif command == 0xD3:
            self._answer(value | 1 << 8)
        elif command == 0xD4:
            state.ram[0] &= ~AUX_DISABLE
            self._mouse.receive(value)
        else:  # 0x60-0x7F
            state.ram[command & 0x1F] = value
        self._fill()
        if command == 0xD1 and not value & RESET:
            self._reset()

    def _write_command(self, value: int) -> None:
        state = self.state
        state.status |= CMD
        state.command = 0
        if 0x20 <= value <= 0x3F:
            self._answer(state.ram[value & 0x1F])
        elif 0x60 <= value <= 0x7F or 0xD1 <= value <= 0xD4:
            state.command = value
        elif value == 0xA4:  # is there a password: none
            self._answer(0xF1)
        elif value == 0xA7:
            state.ram[0] |= AUX_DISABLE
        elif value == 0xA8:
            state.ram[0] &= ~AUX_DISABLE
        elif value in (0xA9, 0xAB):  # interface tests: no fault
            self._answer(0x00)
        elif value == 0xAA:  # self-test
            state.ram[0] |= SYS
            self._answer(0x55)
        elif value == 0xAD:
            state.ram[0] |= KBD_DISABLE
        elif value == 0xAE:
            state.ram[0] &= ~KBD_DISABLE
        elif value == 0xC0:  # input port: both data lines idle, the lock open
            self._answer(0x83)
        elif value == 0xD0:
            self._answer(self._output_port())
        elif value == 0xE0:  # test inputs: the two clock lines
            self._answer((not state.ram[0] & KBD_DISABLE) | (not state.ram[0] & AUX_DISABLE) << 1)
        self._fill()
        if value >= 0xF0 and not value & RESET:
            self._reset()

    def _output_port(self) -> int:
        state = self.state
        port = state.output_port | AUX_DATA | KBD_DATA
        if not state.ram[0] & KBD_DISABLE:
            port |= KBD_CLOCK
        if not state.ram[0] & AUX_DISABLE:
            port |= AUX_CLOCK
        if state.status & OBF:
            port |= IRQ12 if state.status & AUXB else IRQ1
        return port

    def _answer(self, value: int) -> None:
        """Put a byte of the controller's own in the output buffer, when its turn comes."""
        if len(self.state.answers) < _ANSWERS:  # a guest that asks on and on without reading loses the rest
            self.state.answers.append(value)

    def _fill(self) -> None:
        """Put the next byte, if there is one, in an empty output buffer: answers, keyboard, mouse."""
        state = self.state
        if not state.status & OBF:
            byte, aux = None, False
            if state.answers:
                byte = state.answers.pop(0)
                byte, aux = byte & 0xFF, byte > 0xFF
            if byte is None and not state.ram[0] & KBD_DISABLE:
                byte = self._from_keyboard()
            if byte is None and not state.ram[0] & AUX_DISABLE:
                byte, aux = self._mouse.send(), True
            if byte is not None:
                state.output = byte
                state.status |= OBF | (AUXB if aux else 0)
        self._drive()

    def _from_keyboard(self) -> int | None:
        """The keyboard's next byte, translated to scan code set 1 where the command byte says so."""
        state = self.state
        while (byte := self._keyboard.send()) is not None:
            if not state.ram[0] & TRANSLATE:
                return byte
            if byte != RELEASED:
                byte = TRANSLATION[byte] | (0x80 if state.release else 0)
                state.release = False
                return byte
            state.release = True
        return None

    def _drive(self) -> None:
        state = self.state
        full = state.status & OBF
        aux = state.status & AUXB
        self._keyboard_line.set(bool(full and not aux and state.ram[0] & KBD_INT))
        self._mouse_line.set(bool(full and aux and state.ram[0] & AUX_INT))


class _Port(Device):
    """One of the controller's two ports, a byte wide."""

    length: Final = 1

    def __init__(
        self, name: str, read: Callable[[], int], write: Callable[[int], None], reset: Callable[[], None]
    ) -> None:
        self.name = name
        self._read = read
        self._write = write
        self._reset = reset

    def reset(self) -> None:
        self._reset()

    def read(self, offset: int, size: int) -> int:
        return self._read()

    def write(self, offset: int, size: int, value: int) -> None:
        self._write(value & 0xFF)
