"""The keyboard controller, with a keyboard and a mouse on its two interfaces.

Stands beside the other devices of the PC. `I8042` is the controller, after the IBM PS/2 Hardware
Interface Technical Reference, "Keyboard and Auxiliary Device Controller"; `Keyboard` and `Mouse` are
what is plugged in, after its "Keyboard" and "Mouse" chapters. A command is carried out at once and a byte on
its way takes no time, so IBF (input buffer full) is never seen set.

The A20 bit of the output port is remembered and reads back, but address line 20 is never forced low.
Keys do not repeat by themselves: the host's own keyboard does that, and calls `press` again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from iobus.bus import Device
from iobus.irq import Line
from iobus.state import State, Stateful

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

ACK: Final = 0xFA
RESEND: Final = 0xFE
ERROR: Final = 0xFC
BAT_PASSED: Final = 0xAA
RELEASED: Final = 0xF0
PAUSE: Final = 0xE11D45
"""The Pause key for `press`: its make code is E1 1D 45, and it has no release."""

# IBM's keyboard holds 16 bytes of codes. As bytes take no time here, Linux's probe, which reads until
# nothing is left and gives up after 16, must come to the end: of these, the overrun code, and the output buffer.
_CODES: Final = 14
_ANSWERS: Final = 16

# What the controller makes of a byte of scan code set 2: the technical reference's table of scan codes
# in sets 1 and 2. From 0x85 on a byte stands for itself.
_SET_1: Final = bytes.fromhex(
    "ff 43 41 3f 3d 3b 3c 58 64 44 42 40 3e 0f 29 59  65 38 2a 70 1d 10 02 5a 66 71 2c 1f 1e 11 03 5b"
    "67 2e 2d 20 12 05 04 5c 68 39 2f 21 14 13 06 5d  69 31 30 23 22 15 07 5e 6a 72 32 24 16 08 09 5f"
    "6b 33 25 17 18 0b 0a 60 6c 34 35 26 27 19 0c 61  6d 73 28 74 1a 0d 62 6e 3a 36 1c 1b 75 2b 63 76"
    "55 56 77 78 79 7a 0e 7b 7c 4f 7d 4b 47 7e 7f 6f  52 53 50 4c 4d 48 01 45 57 4e 51 4a 37 49 46 54"
    "80 81 82 41 54"
) + bytes(range(0x85, 0x100))
# The other way. Of the two codes that give F7 and SysRq, the later one is what keyboards send.
_SET_2: Final = {translated: code for code, translated in enumerate(_SET_1[:0x85]) if code and translated < 0x80}


@dataclass
class KeyboardState(State):
    """What the keyboard remembers."""

    replies: list[int] = field(default_factory=list)
    """Its answer to the last command, as far as it is not sent."""
    codes: list[int] = field(default_factory=list)
    """Scan code bytes not sent yet."""
    last: int = BAT_PASSED
    """The byte it sent last."""
    mid_code: bool = False
    """That byte was a prefix: the code's end goes before any reply."""
    command: int = 0
    """The command whose option byte is awaited, or 0."""
    scan_set: int = 2
    scanning: bool = True
    leds: int = 0
    """Scroll Lock, Num Lock, Caps Lock from bit 0."""
    typematic: int = 0x2B
    """Delay and rate: 500 ms, 10.9 characters a second."""


class Keyboard:
    """A PS/2 keyboard with scan code sets 1 and 2, and a buffer with an overrun code at its end."""

    def __init__(self) -> None:
        self.state = KeyboardState()

    def key(self, code: int, release: bool) -> bool:
        """Hold the code of a key pressed or released; False where it is lost."""
        state = self.state
        low = code & 0xFF
        if code == PAUSE:
            bytes_1 = b"" if release else b"\xe1\x1d\x45\xe1\x9d\xc5"
            bytes_2 = b"" if release else b"\xe1\x14\x77\xe1\xf0\x14\xf0\x77"
        elif code >> 8 not in (0, 0xE0) or not 0 < low < 0x80:
            raise ValueError(
                f"key code {code:#x}: use a make code of scan code set 1, 0x01-0x7f or 0xe001-0xe07f, or PAUSE"
            )
        else:
            prefix = b"\xe0" if code >> 8 else b""
            bytes_1 = prefix + bytes((low | (0x80 if release else 0),))
            bytes_2 = prefix + (b"\xf0" if release else b"") + bytes((_SET_2[low],))
        if not state.scanning:
            return False
        data = bytes_1 if state.scan_set == 1 else bytes_2
        overrun = 0xFF if state.scan_set == 1 else 0x00
        if len(state.codes) + len(data) > _CODES:
            if state.codes[-1] != overrun:
                state.codes.append(overrun)
            return False
        state.codes.extend(data)
        return True

    def send(self) -> int | None:
        """The next byte for the controller, if there is one."""
        state = self.state
        if state.replies and not (state.mid_code and state.codes):
            state.last = state.replies.pop(0)
        elif state.codes:
            state.last = state.codes.pop(0)
            state.mid_code = state.last in (0xE0, 0xE1, RELEASED)
        else:
            return None
        return state.last

    def receive(self, value: int) -> None:
        """Take a byte from the controller; what is left of an earlier reply is dropped."""
        state = self.state
        command, state.command = state.command, 0
        state.replies = [ACK]
        if command and value < 0xED:
            self._option(command, value)
        elif value == 0xFF:  # reset, then the basic assurance test
            self._set_defaults()
            state.scanning, state.leds = True, 0
            state.replies = [ACK, BAT_PASSED]
        elif value == 0xFE:
            state.replies = [state.last]
        elif 0xF7 <= value <= 0xFD:  # key types: they are scan code set 3's
            pass
        elif value in (0xF5, 0xF6):  # defaults, and stop or go on
            self._set_defaults()
            state.scanning = value == 0xF6
        elif value == 0xF4:
            state.codes.clear()
            state.scanning = True
        elif value == 0xF2:
            state.replies = [ACK, 0xAB, 0x83]
        elif value in (0xED, 0xF0, 0xF3):
            state.command = value
        elif value == 0xEE:  # echo
            state.replies = [0xEE]
        else:
            state.replies = [RESEND]

    def _option(self, command: int, value: int) -> None:
        state = self.state
        if command == 0xED:
            state.leds = value & 7
        elif command == 0xF3:
            state.typematic = value & 0x7F
        elif value == 0:
            state.replies = [ACK, state.scan_set]
        elif value in (1, 2):
            state.codes.clear()
            state.scan_set = value
        else:  # set 3, or none: ask for another
            state.replies, state.command = [RESEND], command

    def _set_defaults(self) -> None:
        self.state.codes.clear()
        self.state.scan_set, self.state.typematic = 2, 0x2B


@dataclass
class MouseState(State):
    """What the mouse remembers."""

    replies: list[int] = field(default_factory=list)
    """Its answer to the last command, as far as it is not sent."""
    report: list[int] = field(default_factory=list)
    """What is left to send of a movement report."""
    last: bytes = bytes((BAT_PASSED,))
    """The reply or report it sent last, for a resend."""
    command: int = 0
    """The command whose option byte is awaited, or 0."""
    failed: bool = False
    """The last byte was not understood: another such byte is an error."""
    enabled: bool = False
    remote: bool = False
    wrap: bool = False
    scaling: bool = False
    """2:1 in stream mode."""
    resolution: int = 2
    """2 ** this counts a millimetre."""
    rate: int = 100
    """Reports a second."""
    buttons: int = 0
    """Left, right, middle from bit 0."""
    reported: int = 0
    """The buttons as last reported."""
    dx: int = 0
    dy: int = 0
    """Counts not yet reported, right and up positive."""


class Mouse:
    """A PS/2 mouse with three buttons. It reports as soon as its last report is taken, whatever the rate.

    Movement that does not fit a report stays for the next one, so the overflow bits are never set.
    """

    def __init__(self) -> None:
        self.state = MouseState()

    def send(self) -> int | None:
        """The next byte for the controller, if there is one."""
        state = self.state
        if state.replies:
            return state.replies.pop(0)
        if not state.report and state.enabled and not (state.remote or state.wrap):
            if not (state.dx or state.dy or state.buttons != state.reported):
                return None
            state.report = self._report(state.scaling)
            state.last = bytes(state.report)
        return state.report.pop(0) if state.report else None

    def receive(self, value: int) -> None:
        """Take a byte from the controller; what is left of a reply or report is dropped."""
        state = self.state
        state.report.clear()
        if value == 0xFE:
            state.replies = list(state.last)
            return
        if state.wrap and value not in (0xEC, 0xFF):
            state.replies = [value]
        else:
            replies = self._option(value) if state.command else self._command(value)
            if replies is not None:
                state.replies = [ACK, *replies]
            else:
                state.replies = [ERROR if state.failed else RESEND]
            state.failed = replies is None and not state.failed
        state.last = bytes(state.replies)

    def _option(self, value: int) -> list[int] | None:
        """Take the option byte of a command; None where it is not a valid one, which leaves one more try."""
        state = self.state
        if state.command == 0xF3 and value in (10, 20, 40, 60, 80, 100, 200):
            state.rate = value
        elif state.command == 0xE8 and value < 4:
            state.resolution = value
        else:
            if state.failed:
                state.command = 0
            return None
        state.command = 0
        return []

    def _command(self, value: int) -> list[int] | None:
        """Carry out a command and return what follows its acknowledgement; None where it is no command."""
        state = self.state
        replies: list[int] = []
        if value == 0xEB:  # read data
            return self._report(False)
        if value in (0xFF, 0xF6):  # reset, set defaults
            state.rate, state.resolution = 100, 2
            state.enabled = state.remote = state.wrap = state.scaling = False
            if value == 0xFF:
                replies = [BAT_PASSED, 0x00]
        elif value in (0xF4, 0xF5):
            state.enabled = value == 0xF4
        elif value in (0xF3, 0xE8):  # sample rate, resolution: the value follows
            state.command = value
        elif value == 0xF2:  # read device type
            replies = [0x00]
        elif value in (0xF0, 0xEA):  # remote mode, stream mode
            state.remote = value == 0xF0
        elif value in (0xEE, 0xEC):  # wrap mode on, off
            state.wrap = value == 0xEE
        elif value == 0xE9:  # status request
            mode = state.remote << 6 | state.enabled << 5 | state.scaling << 4
            left, right, middle = state.buttons & 1, state.buttons >> 1 & 1, state.buttons >> 2 & 1
            replies = [mode | left << 2 | middle << 1 | right, state.resolution, state.rate]
        elif value in (0xE7, 0xE6):
            state.scaling = value == 0xE7
        else:
            return None
        state.dx = state.dy = 0
        return replies

    def _report(self, scaled: bool) -> list[int]:
        state = self.state
        limit = 127 if scaled else 255
        dx, dy = (max(-limit, min(limit, count)) for count in (state.dx, state.dy))
        state.dx -= dx
        state.dy -= dy
        state.reported = state.buttons
        if scaled:
            dx, dy = _scale(dx), _scale(dy)
        return [state.buttons | 1 << 3 | (dx < 0) << 4 | (dy < 0) << 5, dx & 0xFF, dy & 0xFF]


def _scale(count: int) -> int:
    """2:1 scaling."""
    size = abs(count)
    size = (0, 1, 1, 3, 6, 9)[size] if size < 6 else 2 * size
    return -size if count < 0 else size


@dataclass
class I8042State(State):
    """The controller's memory, and what is plugged in."""

    ram: list[int] = field(default_factory=lambda: [KBD_INT | AUX_INT | SYS | TRANSLATE] + [0] * 31)
    """The command byte and 31 more; at power-on as a PC's firmware leaves it."""
    output: int = 0
    """The output buffer; it keeps its value when it was read."""
    status: int = 0
    """OBF, CMD and AUXB."""
    answers: list[int] = field(default_factory=list)
    """The controller's own bytes for the output buffer; those in AUX's name have bit 8 set."""
    command: int = 0
    """The command whose data byte is awaited at port 0x60, or 0."""
    output_port: int = RESET | A20
    """Those two bits; the others follow from the rest."""
    release: bool = False
    """The translation has swallowed an F0: the next code is a release."""
    keyboard: KeyboardState = field(default_factory=KeyboardState)
    mouse: MouseState = field(default_factory=MouseState)


class I8042(Stateful, Device):
    """The controller. Attach its `data` at port 0x60 and its `command` at port 0x64, one byte each.

    Resetting either port, as a machine does with what is on its buses, resets the controller whole.
    `reset` is called when the guest pulses or writes the reset line low. Interrupts are levels: high
    while the output buffer is full with a byte of that source and the command byte enables it.
    """

    name = "i8042"
    state: I8042State

    def __init__(self, keyboard: Line, mouse: Line, reset: Callable[[], None]) -> None:
        self._keyboard_line = keyboard
        self._mouse_line = mouse
        self._reset = reset
        self._keyboard = Keyboard()
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
        self._drive()

    # The host's end.

    def press(self, code: int) -> bool:
        """Press the key of `code`, a make code of scan code set 1: 0x1E, with a prefix 0xE048, or `PAUSE`.

        Returns False where the key is lost, as the keyboard is off or its buffer full. Raises
        `ValueError` for what is no make code.
        """
        return self._key(code, False)

    def release(self, code: int) -> bool:
        """Release the key; otherwise like `press`."""
        return self._key(code, True)

    def move(self, dx: int, dy: int) -> None:
        """Move the mouse by `dx` counts to the right and `dy` counts up."""
        self.state.mouse.dx += dx
        self.state.mouse.dy += dy
        self._fill()

    def set_buttons(self, *, left: bool = False, right: bool = False, middle: bool = False) -> None:
        """Hold just these mouse buttons down."""
        self.state.mouse.buttons = left | right << 1 | middle << 2
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
                byte = _SET_1[byte] | (0x80 if state.release else 0)
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
